package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// Defaults of the Options.
const (
	DefaultPurgeConcurrency = 4
	DefaultPurgeRate        = 2000
)

// defaultGrace is how long the slot of another process must have lain untouched
// in the trash to be taken over, while nobody asks for what is in it.
const defaultGrace = 20 * time.Second

// Options say whose volumes a store keeps and how hard its purge works.
type Options struct {
	// DriverName and InstanceID (of the cluster) are written to every record;
	// volumes of others are refused. The instance id may be empty.
	DriverName, InstanceID string
	// PurgeConcurrency is how many files are unlinked at once; 0 means
	// DefaultPurgeConcurrency.
	PurgeConcurrency int
	// PurgeRate is how many files and directories are unlinked per second at
	// most; 0 means without a limit.
	PurgeRate int
	// Passive stores purge nothing unasked: they are to look at.
	Passive bool
	// CopyWait is how long CreateVolume waits for a copy before it fails with
	// ErrBusy, while the copy goes on; 0 means 5 s.
	CopyWait time.Duration
	// Origin is another export that volumes can be made from, if any.
	Origin Origin
	// Copying, if set, is called with true when copies begin and with false when none
	// runs any more: many calls that wait for the server are made meanwhile.
	Copying func(bool)

	hook       hook
	lease      time.Duration // 0 means defaultLease
	purgeGrace time.Duration // 0 means defaultGrace, less than 0 none
	noYield    bool          // the purge gives way to nothing
}

// Validate fails with ErrInvalid and says what is wrong with the options.
func (o Options) Validate() error {
	switch {
	case o.DriverName == "":
		return fmt.Errorf("%w: the store's options have no driver name", nfs.ErrInvalid)
	case o.PurgeConcurrency < 0 || o.PurgeConcurrency > 1024:
		return fmt.Errorf("%w: purge concurrency %d is not within 0 and 1024", nfs.ErrInvalid, o.PurgeConcurrency)
	case o.PurgeRate < 0:
		return fmt.Errorf("%w: purge rate %d is negative", nfs.ErrInvalid, o.PurgeRate)
	case o.CopyWait < 0:
		return fmt.Errorf("%w: the wait for copies, %s, is negative", nfs.ErrInvalid, o.CopyWait)
	}
	return nil
}

// Features says what the file system behind a store adds to the bare operations.
type Features struct {
	// Quota: a volume cannot grow beyond its capacity.
	Quota bool
}

// Backlog is what the trash of an export holds, and what became of it.
type Backlog struct {
	// Entries is how many deleted volumes wait to be removed from the disk.
	Entries int
	// Failing is how many of them could not be removed so far and are tried
	// again from time to time.
	Failing int
	// Settled is set when the trash and the jobs have been read and nothing waits.
	Settled bool
	// Oldest is when the first of the entries was deleted; zero without any.
	Oldest time.Time
	// RemovedFiles counts the files and directories unlinked since the store opened.
	RemovedFiles uint64
	// SkippedRecords counts the times that a listing left out a record that cannot
	// be read.
	SkippedRecords uint64
	// Archives is how many archives there are, as last seen, ArchivesExpired counts
	// those that this store has found expired, and NextExpiry is when the next of
	// them expires; zero for none.
	Archives        int
	ArchivesExpired uint64
	NextExpiry      time.Time
	// Jobs is how many snapshots and clones are being copied, or wait for it, here.
	Jobs int
	// JobsFailed counts those that were given up since the store opened.
	JobsFailed uint64
	// CopiedFiles and CopiedBytes count what was copied since the store opened; names
	// of one file count each.
	CopiedFiles, CopiedBytes int64
}

// Store is the volumes of one export. All its methods may be called at once.
type Store struct {
	opts    Options
	root    *dir
	purge   *purger
	jobs    *jobs
	skipped atomic.Uint64
	active  activity
	tasks   tasks

	mu     sync.Mutex
	opened *layout // nil until there is one on the export
}

// Open returns the store on the directory that root is. In the background it begins to
// purge the trash, and to continue the copies that no process works on. The root
// remains the caller's, to be closed after the store. Nothing is written before the
// first volume is created. Errors: ErrInvalid, ErrForeign when something else has the
// name of the store's own directory, and those of the file system.
func Open(ctx context.Context, root *os.Root, opts Options) (*Store, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	if opts.PurgeConcurrency == 0 {
		opts.PurgeConcurrency = DefaultPurgeConcurrency
	}
	share, err := openShare(root, opts.hook)
	if err != nil {
		return nil, err
	}
	s := &Store{opts: opts, root: share}
	if _, err := s.layout(ctx); err != nil {
		return nil, errors.Join(err, s.closeDirs())
	}
	startPurger(ctx, s)
	s.jobs = newJobs(ctx, s)
	s.jobs.group.Go(s.jobs.watch)
	return s, nil
}

// Close ends the purge and the copies, which a later store resumes, and releases
// the export.
func (s *Store) Close() error {
	s.tasks.stop()
	s.jobs.stop()
	s.purge.stop()
	if l := s.current(); l != nil && s.purge.backlog().Settled {
		if own := l.own.Load(); own != nil {
			// Where it fails, another process removes it in time.
			_ = l.trash.rmdir(context.Background(), path.Base(own.path))
		}
	}
	return s.closeDirs()
}

func (s *Store) closeDirs() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.root.f.Close()
	if s.opened != nil {
		err = errors.Join(err, s.opened.close())
	}
	s.opened = nil
	return err
}

// Features says what this store can do beyond the bare operations.
func (s *Store) Features() Features { return Features{} }

// Backlog says what is left to purge. It touches no file.
func (s *Store) Backlog() Backlog {
	b := s.purge.backlog()
	b.SkippedRecords = s.skipped.Load()
	s.jobs.backlog(&b)
	return b
}

// Usage returns the space of the export's file system.
func (s *Store) Usage(ctx context.Context) (nfs.Usage, error) {
	st, err := s.root.statfs(ctx)
	if err != nil {
		return nfs.Usage{}, err
	}
	return usageOf(st), nil
}

// usageOf counts in f_frsize, the unit of statvfs(3)'s block counts; kernels
// put f_bsize there for file systems that have none of it.
func usageOf(st unix.Statfs_t) nfs.Usage {
	unit := st.Frsize
	if unit <= 0 {
		unit = st.Bsize
	}
	return nfs.Usage{
		TotalBytes:      times(st.Blocks, unit),
		AvailableBytes:  times(st.Bavail, unit),
		UsedBytes:       times(st.Blocks-min(st.Bfree, st.Blocks), unit),
		TotalInodes:     times(st.Files, 1),
		AvailableInodes: times(st.Ffree, 1),
		UsedInodes:      times(st.Files-min(st.Ffree, st.Files), 1),
	}
}

// times multiplies, and stops at the largest int64: some servers say "all ones"
// for "without a limit".
func times(n uint64, unit int64) int64 {
	if unit <= 0 || n > math.MaxInt64/uint64(unit) {
		return math.MaxInt64
	}
	return int64(n) * unit
}
