package nfs

import (
	"fmt"
	"time"
)

// Snapshot is a snapshot as its record tells it.
type Snapshot struct {
	// ID is the record id, unique among the snapshots of its export.
	ID string
	// Name is the name that the orchestrator gave it; the key of idempotency.
	Name string
	// Volume is the record id of the volume that it is of, on the same export. The
	// volume may be gone.
	Volume string
	// Created is when it was begun.
	Created time.Time
	// SizeBytes is how long its files are together; 0 while it is not Ready.
	SizeBytes int64
	// Ready is set when it is whole and on disk.
	Ready bool
}

// Source is what the first content of a volume is copied from: a snapshot or a
// volume. The zero value is none.
type Source struct {
	// Export is where it is; the zero value is the export of the new volume.
	Export Export
	// Snapshot and Volume are record ids, of which one is empty.
	Snapshot, Volume string
}

// IsZero reports whether there is no source.
func (s Source) IsZero() bool { return s.Snapshot == "" && s.Volume == "" }

// String names the source in messages.
func (s Source) String() string {
	kind, id := "volume", s.Volume
	if s.Snapshot != "" {
		kind, id = "snapshot", s.Snapshot
	}
	if s.Export.Server == "" {
		return fmt.Sprintf("%s %q", kind, id)
	}
	return fmt.Sprintf("%s %q on %s", kind, id, s.Export)
}

// Same reports whether both name the same thing. How an export is mounted does not
// matter.
func (s Source) Same(o Source) bool {
	return s.Snapshot == o.Snapshot && s.Volume == o.Volume && s.Export.SameShare(o.Export)
}

func (s Source) words() string {
	if s.IsZero() {
		return "nothing"
	}
	return "the " + s.String()
}

// SnapshotHandle is what the orchestrator keeps of a snapshot.
type SnapshotHandle struct {
	Export Export
	// ID is the record id.
	ID string
}

// No volume handle begins with it.
const snapshotHandleVersion = "s1"

// String formats the handle; ParseSnapshotHandle(h.String()) gives h again. The form
// is "s1:<server>:<share>:<options>:<id>", each part percent-encoded.
func (h SnapshotHandle) String() string {
	return formatHandle(snapshotHandleVersion, h.Export, h.ID)
}

// ParseSnapshotHandle reads a handle. It refuses, with ErrInvalid, unknown versions
// and everything that String would have written differently.
func ParseSnapshotHandle(s string) (SnapshotHandle, error) {
	export, id, err := parseHandle("snapshot", snapshotHandleVersion, s)
	if err != nil {
		return SnapshotHandle{}, err
	}
	return SnapshotHandle{Export: export, ID: id}, nil
}
