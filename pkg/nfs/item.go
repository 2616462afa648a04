package nfs

import "time"

// ItemKind says what an Item is.
type ItemKind string

// The kinds of items. The first four are listed; the rest are what a store finds
// that does not belong together (TaskOrphans).
const (
	ItemVolume  ItemKind = "volume"
	ItemTrash   ItemKind = "trash"   // a deleted volume that is not yet unlinked
	ItemArchive ItemKind = "archive" // a deleted volume that was kept
	// ItemSnapshot is of a volume. Its Volume has the snapshot's id, name and time, and
	// its size as the capacity.
	ItemSnapshot ItemKind = "snapshot"
	// ItemDirectory is a directory that no record tells of, ItemRecord a record
	// without its directory or what keeps that for it, or that cannot be read, or
	// changes of one that is gone, and ItemClaim what keeps a directory for volumes
	// that have no record.
	ItemDirectory ItemKind = "directory"
	ItemRecord    ItemKind = "record"
	ItemClaim     ItemKind = "claim"
)

// Item is one thing on an export, as an operator looks at it.
type Item struct {
	Kind ItemKind
	// Key tells it from the others of its kind on the export.
	Key string
	// Path is where it is, relative to the share: the directory with the data or,
	// of an ItemRecord or ItemClaim, the file. Empty when there is nothing (more).
	Path string
	// Volume is what its record says; the zero value when it has none that can be read.
	Volume Volume
	// Source is the id of the volume that an ItemSnapshot is of.
	Source string
	// Driver and Instance are whose it is.
	Driver, Instance string
	// Since is when it became what it is: was created, deleted or archived. Zero
	// when that is not known.
	Since time.Time
	// Expires is when an ItemArchive goes to the trash; zero for never.
	Expires time.Time
	// Problem is what is wrong with it, in words; empty when nothing is.
	Problem string
}

// TaskKind says what a Task is to do.
type TaskKind string

// The tasks.
const (
	// TaskUsage measures the tree of the item with the task's Item and Key.
	TaskUsage TaskKind = "usage"
	// TaskOrphans looks for what does not belong together.
	TaskOrphans TaskKind = "orphans"
	// TaskAdopt gives an existing directory a record, or says why it cannot have one.
	TaskAdopt TaskKind = "adopt"
	// TaskRestore takes the archive with the task's Key, its id or original name, back
	// into service, or says what that would be.
	TaskRestore TaskKind = "restore"
)

// Task is work for an operator that may take long. Two equal tasks are the same one.
type Task struct {
	Kind TaskKind
	// Item and Key name the item of TaskUsage.
	Item ItemKind
	Key  string
	// Name, Dir, CapacityBytes, OnDelete and Claim are of the volume that TaskAdopt
	// makes of the directory Dir, and TaskRestore of an archive: for that, all but Name
	// may be left out. Both only look, unless Commit is set.
	Name, Dir     string
	CapacityBytes int64
	OnDelete      OnDelete
	Claim         Claim
	Commit        bool
}

// TaskState is how far a task is.
type TaskState struct {
	Done bool
	// Seen counts the files and directories (TaskUsage) or records (else) that were
	// looked at, Bytes the disk space of the first. A file with several names counts
	// for each by its share.
	Seen, Bytes int64
	// Denied counts the directories that the server did not let this client read.
	Denied int64
	// Items are what the task has found, when it is done: the orphans, or the volume
	// of the adopted directory.
	Items []Item
	// More is how many items it has found beyond those: it tells 250 at most.
	More int64
}

// TrashState is what is left in the trash of an export.
type TrashState struct {
	// Entries is how many deleted volumes wait to be unlinked, Failing how many of
	// them could not be so far.
	Entries, Failing int
	// Settled is set when the trash has been read and nothing in it waits.
	Settled bool
	// Removed counts the files and directories unlinked since the store was opened.
	Removed uint64
	// Oldest is when the first of the entries was deleted; zero without any.
	Oldest time.Time
}
