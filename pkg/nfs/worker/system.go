package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/mount"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/store"
)

// System returns what workers serve in production: a store on the mounted
// export, and the mounts of this machine.
func System() Backends {
	mounter := mount.New(mount.Options{})
	return Backends{
		Prepare: confine,
		OpenStore: func(ctx context.Context, config StoreConfig) (Backend, error) {
			return openExport(ctx, mounter, config)
		},
		Mounter: mounter,
	}
}

// exportStore is a store on an export that this process has mounted.
type exportStore struct {
	*store.Store
	// mounted keeps the mounts whole; see mount.Detached.
	mounted []*os.File
}

// Status implements Backend.
func (s *exportStore) Status() Status {
	b := s.Backlog()
	return Status{
		TrashBacklog:    int64(b.Entries),
		TrashFailing:    int64(b.Failing),
		TrashSettled:    b.Settled,
		Purged:          int64(b.RemovedFiles),
		SkippedRecords:  int64(b.SkippedRecords),
		Archives:        int64(b.Archives),
		ArchivesExpired: int64(b.ArchivesExpired),
		NextExpiry:      b.NextExpiry,
		Quota:           s.Features().Quota,

		TrashOldest:  b.Oldest,
		Copies:       int64(b.Jobs),
		CopiesFailed: int64(b.JobsFailed),
		CopiedFiles:  b.CopiedFiles,
		CopiedBytes:  b.CopiedBytes,
	}
}

// openExport mounts the export, and the origin if there is one, where no path leads
// to it, gives up what the process does not need any more, and opens the store. It is
// for a process that does nothing else; after an error the process is of no use.
func openExport(ctx context.Context, mounter *mount.Mounter, config StoreConfig) (_ Backend, err error) {
	s := &exportStore{}
	root, err := s.mount(ctx, mounter, config.Export, false)
	if err != nil {
		return nil, err
	}
	var originRoot *os.Root
	if config.Origin.Server != "" {
		if originRoot, err = s.mount(ctx, mounter, config.Origin, true); err != nil {
			return nil, fmt.Errorf("the export of the source: %w", err)
		}
	}
	if err := dropCapabilities(); err != nil {
		return nil, fmt.Errorf("give up the capabilities that work on %s does not need: %w", config.Export, err)
	}
	// The modes of what the store makes are the ones it says.
	unix.Umask(0)
	// What the store does by itself says in the log on which export.
	ctx = klog.NewContext(ctx, klog.FromContext(ctx).WithValues("export", config.Export.String()))
	if s.Store, err = openStore(ctx, config, root, originRoot); err != nil {
		return nil, err
	}
	return s, nil
}

// openStore opens the store of an export whose root is given, with that of its origin
// if there is one.
func openStore(ctx context.Context, config StoreConfig, root, originRoot *os.Root) (*store.Store, error) {
	options := store.Options{
		DriverName:       config.DriverName,
		InstanceID:       config.InstanceID,
		PurgeConcurrency: config.PurgeConcurrency,
		PurgeRate:        config.PurgeRate,
		CopyWait:         config.CopyWait,
		Copying:          whileCopying,
	}
	if originRoot != nil {
		look := options
		look.Passive = true
		at, err := store.Open(ctx, originRoot, look)
		if err != nil {
			return nil, fmt.Errorf("open the store on %s: %w", config.Origin, err)
		}
		options.Origin = store.Origin{Export: config.Origin, Store: at}
	}
	s, err := store.Open(ctx, root, options)
	if err != nil {
		return nil, fmt.Errorf("open the store on %s: %w", config.Export, err)
	}
	return s, nil
}

// mount mounts an export and opens its root.
func (s *exportStore) mount(ctx context.Context, mounter *mount.Mounter, export nfs.Export, readOnly bool) (*os.Root, error) {
	mounted, err := mounter.Detached(ctx, storeMount(export), "", readOnly)
	if err != nil {
		return nil, err
	}
	s.mounted = append(s.mounted, mounted)
	root, err := os.OpenRoot(mount.RootPath(mounted))
	if err != nil {
		return nil, fmt.Errorf("open the root of %s: %w", export, rootError(err))
	}
	return root, nil
}

// What a worker takes for itself once it copies, in place of what it begins with (see
// Self): threads that may run at once, and bytes of memory.
const (
	copyProcs  = 24
	copyMemory = 64 << 20
)

// whileCopying is what a store calls when copies begin and end. A thread that waits for
// the server keeps one of the runtime's processors until the runtime notices, which
// takes long in a process that hardly looks: with one, files are copied one by one. The
// limit of memory stays as it is then, since the threads stay too. They do not fill it,
// but near its limit the runtime would collect garbage all the time.
func whileCopying(copies bool) {
	if !copies {
		runtime.GOMAXPROCS(1)
		return
	}
	debug.SetMemoryLimit(copyMemory)
	runtime.GOMAXPROCS(copyProcs)
}

// storeMount returns the export as a store needs it mounted. Another controller
// may make at any time what this client has just looked for in vain, so names
// that did not exist are asked for again: lookupcache=positive in nfs(5).
func storeMount(export nfs.Export) nfs.Export {
	for _, option := range export.Options {
		if strings.HasPrefix(option, "lookupcache=") {
			return export
		}
	}
	export.Options = append(slices.Clone(export.Options), "lookupcache=positive")
	return export
}

func rootError(err error) error {
	switch {
	case errors.Is(err, unix.ESTALE):
		return fmt.Errorf("%w: %w", nfs.ErrStale, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: %w", nfs.ErrPermission, err)
	case errors.Is(err, unix.EIO), errors.Is(err, unix.ETIMEDOUT):
		return fmt.Errorf("%w: %w", nfs.ErrUnavailable, err)
	}
	return err
}
