package driver

import (
	"context"

	mountutils "k8s.io/mount-utils"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// Stores gives the controller a store for each export.
type Stores interface {
	// Open returns the store of the export and connects to it where that has
	// not happened yet. It fails with nfs.ErrUnavailable when the server does
	// not answer in time and with nfs.ErrPermission when it refuses us.
	Open(ctx context.Context, export nfs.Export) (Store, error)
	// Exports returns every export known: configured ones, those used since the
	// start and those that the cluster's objects name, in the order of their keys.
	Exports() []nfs.Export
}

// Store is the operations on one export. All of them are idempotent, and safe
// against other processes that work on the same export at the same time.
type Store interface {
	// CreateVolume makes the volume, or returns the existing one when it answers
	// the same request. Errors: ErrConflict, ErrForeign, ErrFull, ErrPermission,
	// ErrUnavailable. One with a source fails with ErrBusy, and says how far it is,
	// while that is copied in the background; ErrNotFound when there is no such
	// source, ErrOutOfRange when the capacity is too small for it.
	CreateVolume(ctx context.Context, spec nfs.VolumeSpec) (nfs.Volume, error)
	// GetVolume returns the volume with that record id, or ErrNotFound.
	GetVolume(ctx context.Context, id string) (nfs.Volume, error)
	// ListVolumes returns up to limit volumes (0: all) with ids after the given
	// one, in the order of their ids. More may follow when it returned limit.
	ListVolumes(ctx context.Context, after string, limit int) ([]nfs.Volume, error)
	// UpdateVolume changes the volume and returns what it is then. Errors:
	// ErrNotFound, ErrOutOfRange, ErrForeign, ErrPermission, ErrUnavailable.
	UpdateVolume(ctx context.Context, id string, change nfs.VolumeChange) (nfs.Volume, error)
	// DeleteVolume disposes of the volume as its record says. Without a record
	// it succeeds, unless dir is given and exists: that is ErrForeign, since
	// nothing says that the directory is ours. ErrBusy while it is being copied.
	DeleteVolume(ctx context.Context, id, dir string) error
	// CreateSnapshot begins to copy the volume in the background, or returns the
	// existing snapshot of that name. Errors: ErrNotFound for the volume, ErrConflict
	// when the snapshot is of another volume, and whatever a copy that was given up
	// has failed with, which is begun anew then.
	CreateSnapshot(ctx context.Context, name, volumeID string) (nfs.Snapshot, error)
	// GetSnapshot returns the snapshot with that record id, or ErrNotFound.
	GetSnapshot(ctx context.Context, id string) (nfs.Snapshot, error)
	// ListSnapshots returns up to limit snapshots (0: all) with ids after the given
	// one, in the order of their ids, and only those of the volume unless that is
	// empty. More may follow when it returned limit.
	ListSnapshots(ctx context.Context, volumeID, after string, limit int) ([]nfs.Snapshot, error)
	// DeleteSnapshot removes the snapshot, and succeeds when there is none. ErrBusy
	// while a volume is made of it.
	DeleteSnapshot(ctx context.Context, id string) error
	// Usage returns the space of the export's file system.
	Usage(ctx context.Context) (nfs.Usage, error)
}

// Mounter is what the node service does to this machine's mounts. Everything
// that may touch the server obeys ctx and never outlives it.
type Mounter interface {
	// Mount mounts the directory dir (relative to the share, may be empty) of
	// the export at target, which exists.
	Mount(ctx context.Context, export nfs.Export, dir, target string, readOnly bool) error
	// Bind makes the mount at source visible at target, which exists. It asks
	// the server behind source first, so that no pod is given a dead mount: it
	// fails with nfs.ErrUnavailable when that does not answer and with
	// nfs.ErrStale when it no longer knows the directory.
	Bind(ctx context.Context, source, target string, readOnly bool) error
	// Unmount takes away every mount at target and never waits for a server:
	// plain, then forced, then detached. No mount there is no error.
	Unmount(ctx context.Context, target string) error
	// List reads this machine's mounts from mountinfo, which touches no server.
	List() ([]mountutils.MountInfo, error)
	// Usage returns the space of the file system at the path.
	Usage(ctx context.Context, path string) (nfs.Usage, error)
}
