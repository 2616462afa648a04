// Package store keeps volumes on one export: it makes, finds, lists and deletes
// them, and remembers each in a record beside the data. It knows an opened root
// directory and nothing of mounts, CSI or Kubernetes.
//
// Everything that is the store's own lies in one directory of the export:
//
//	.nfs-csi/                              mode 0700
//	  volumes/<id>.json                    the record of a volume
//	  changes/<id>-<written>/<n>.json      its n-th change: the whole record as it is since; the last two are kept
//	  shared/<hash>.<random>/<key>         the reference of a volume to the directory that it shares
//	  dirs/<hash of the directory's path>  the claim of a directory: a symbolic link whose text is the volume's key, "<id>-<created>"
//	  archive/<id>-<created>.json          the record of an archived volume
//	  archive/<key>+<key>.json             that of the first volume, which the second takes back
//	  snapshots/<id>/                      a snapshot that is whole: record.json, manifest.json, data/
//	  trash/<slot>/                        what one process has deleted, and is removed in the background
//	    <id>.<when><random>.json           the record of a deleted volume, which the first half of the random is a sum of
//	    <id>.<when><random>                its directory
//	    <id>.<when><random>.claim          its claim, for a moment
//	    <id>.<when><random>.tree           a snapshot, or what a copy has made: a tree without a record
//	  work/                                records being written
//	  work/snapshot_<id>/, work/clone_<id>/  a copy that is being made: a job (see jobDir, treeCopy)
//
// # Several processes, and any of them killed
//
// Any number of stores may work on one export, and each may die between any two
// file operations. Nothing is kept in memory that matters, and every decision is
// one exclusive operation of the file system: the symlink(2) of the claim decides
// who may make a directory, its mkdir(2) that it was not there before, and the
// link(2) of the record that the volume exists, all or nothing.
//
// Create: claim, directory, owner and mode, record. Whoever retries finds a claim
// with its own id, and takes on the directory if it is empty still. A create that
// was killed and is never tried again leaves its claim and, at most, an empty
// directory; parents made by a create that was killed, or that lost a race, stay
// when the volume goes.
//
// Update: the changed record is linked into the volume's directory of changes, under
// the next number, which only one process can; the others read again. The highest
// number counts, so one that comes late under a number that was free again counts for
// nothing, not even for whoever made it, since an update ends by reading what it wants.
// A mark on the file of the record, set before, says that there may be changes: it
// spares all other volumes the look. Changes without their record mean nothing, so an
// update cannot bring back what is deleted; after its link it looks for the record,
// and takes back its change if that is gone. Deletes decide by the record alone, and
// their purge removes the directory of changes as often as a late update fills it,
// which it does once at most. An update that is killed between its link and that
// look, and came late, leaves a small directory that nobody reads.
//
// Delete: the record is renamed into the process' slot in the trash, and with that
// the volume is deleted: only one process can. Then the directory is renamed to
// there. The rest is the purge's: parents, the archive, the claim, and at last the
// files. The claim keeps everyone else from the directory until it has gone.
//
// A process may die between the two, and the entry be taken over by another: again
// a rename of the record that only one can do. But the first may be slow, not dead,
// and about to move the directory, or by then what a third has made in its place.
// So the other removes the slot of the first before it frees anything. That works
// only while it is empty, or else the directory may be in it already; and a rename
// into a removed directory fails. Two that have each taken over an entry would wait for
// each other's slot: the one whose slot has the lesser name takes over what is in the
// other's, record by record, as ever. Whoever completes an entry sees by its name whether
// its record is of the volume that was meant, or of one made since under the same id by
// others, and puts that back. No argument here is about time: that a slot must
// have lain untouched for a while before the purge takes it over, and that a process
// that lives touches its own, only keeps processes from doing each other's work.
// A create or delete that needs the entry takes it over at once.
//
// Share: the claim of a shared directory is of a group, and the directory of the group
// holds a reference for each volume. A create adds one that keeps nothing yet, and
// when its record stands renames it to one that does. A delete, when it has decided,
// removes its reference, and then puts a directory with an entry of its own in the
// place of the group's by a rename, which works only where that is empty: so one delete
// ends the group, none while a reference stands, and its entry says which. That one
// takes the directory away and frees the claim, and then removes the group. References
// that keep nothing it removes before: their creates fail to rename them, and begin anew
// in another group, since one is never used again. A create that enters a group looks
// for that entry and then for the claim: with neither gone, the group was not ended when
// its reference came. Deletes that are taken over are fenced before all of this.
//
// Take back: a create that is to have an archive's directory claims its place, and
// renames the archive's record to "<archive's key>+<volume's key>.json", which only
// one volume can. Then its own record decides. Before that nothing was moved, and a
// run that fails renames the archive's record back. From then on every run goes
// forward: it moves the directory and removes the archive's record. Should that have
// been renamed back by another run of the same volume, it is renamed anew; if another
// volume has it by then, the new volume's record goes. A run that moves the directory
// late, when the volume was deleted, moves it back.
//
// Expire: an archive goes as a volume does, and what decides is the rename of its
// record from archive/ to the slot. The record is there before the directory: so an
// archive whose directory is not in its place is left alone, as its delete may be
// under way. Nobody else moves a directory to that place, or rewrites the record once
// it is there.
//
// # Snapshots and clones
//
// A snapshot and a volume with a content source begin as a job: a directory in work/
// with a record, the lease of the process that copies, and the copy. It is made under
// another name and renamed to its own, which succeeds only where none is, since no
// job is ever empty. So of many that want a name one makes the job, and the rest
// find its record, with the one time of creation. Jobs go on without their callers,
// and after a restart.
//
// A snapshot is ready when its job was renamed to snapshots/<id>, all at once, after
// the copy was made durable and compared with its manifest. To delete one, in either
// place, is to rename it into the process' slot in the trash: that decides, and there is
// nothing else to do, so it needs no record there (see isTree). What another process
// still does to it is done beneath a descriptor of that very directory, so goes to the
// trash as well and never to a later snapshot of the name; it ends when the lease is
// next renewed.
//
// A clone is a job until complete.json says that its data is whole, with the inode
// number of data/. Then a create, of whatever process, claims and makes the volume's
// directory as for any volume, replaces it while it is empty by data/, in one rename,
// and publishes the record. Whoever comes later knows data/ by its inode number.
//
// A create that comes too late may publish the record of a volume that another has
// made of the same copy and a third deleted since: it finds the data gone, and deletes
// the record again. Who gives up a clone with its data in place does not touch that
// either: it publishes the record, which only one can, and deletes the volume.
//
// The source is not locked. A delete is refused while this process copies the volume
// or snapshot. Another process does not know, and deletes; but the purge unlinks
// nothing of what has its record, or its place in snapshots/, still. So when the copy
// is made, and the source stands and is the directory that was opened, nothing of it
// was missing; else the job fails.
//
// The source may be on another export (see Origin), of which the store only reads. A
// store that does not reach it leaves the job to one that does, and removes it when
// its lease was not renewed for a day.
//
// One process at a time works on a job. A process that was stopped for longer than
// its lease (see leaseState) finds its context cancelled before the next operation. Only
// calls that the kernel had begun may reach the server after another process took
// over, as from behind a cut network, for each worker one. They do no harm. A new
// name, in the copy, of a file that the other makes as well: it sees EEXIST, or looks
// at what is there. Data, owner, mode and attributes go to files that the first
// process has made itself, and the other replaces whatever is not complete. Times
// are those of the source. A name removed, or moved away, is missed when the copy
// is compared with its manifest, and made again. The last step is the same rename
// for both.
//
// A job that fails for a reason that an operator has to mend, such as a full disk, is
// given up: its copy goes to the trash, failed.json says why, and the next call for
// it is answered with that and begins anew. What may pass by itself is tried again.
package store
