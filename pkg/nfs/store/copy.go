package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// defaultCopyConcurrency hides the time that an NFS server takes to answer; more
// than this many calls only wait for each other.
const defaultCopyConcurrency = 16

// copyOptions say how a tree is copied. The zero value is fine.
type copyOptions struct {
	// concurrency is how many files are copied at once; 0 means defaultCopyConcurrency.
	concurrency int
	// still promises that nobody changes the source, which spares looking at each
	// file a second time. Snapshots keep still.
	still bool
	// expected is what the source is known to hold, for whoever watches the progress.
	expected treeCounts
	// limits are the times that the target can hold, for the first copy to find out
	// and the others to know.
	limits *atomic.Pointer[timeLimits]
}

// treeCopy copies one directory, with everything in it, to a directory in work/
// named by an id:
//
//	work/<id>/
//	  began.json      what the copy needs to know of the run that began it
//	  data/           the copy
//	  links/<inode>   one more name for each file of the source that has several, if any
//	  junk/           what was in data/ and does not belong there, if anything
//	  deep.<n>        directories that wait (see treeWalk)
//	  manifest.json   what was copied, in place only when data/ is whole
//
// When run has returned a manifest, data/ is whole, on disk and compared with it,
// and is for the caller to rename into place; toTrash removes the rest, or all of a
// copy that nobody wants any more. One process at a time may work on one
// id. That is for the caller to see to.
//
// # Killed and resumed
//
// run goes on with what it finds. There is no journal, since each file says
// itself whether it is complete: its times are set last, after everything else of
// it, and those of a file in progress are later than the moment at which the copy
// began, by the clock of the server that keeps both. So a file that is older than
// began.json was completed. If it also has the size, times, owner and mode of the
// source it is kept, and otherwise made anew, beside the old one, never over it.
// What the source has changed or made since the copy began is therefore copied
// again, and may be: a copy takes each file as it is at some moment of the run.
// The same goes for directories, but that those are always looked into, and their
// owner, mode and times set again.
//
// "Complete" must outlive the machine too. NFS: the data of a file is stable on
// the server before the call that sets the times is sent, be it by COMMIT after
// COPY and WRITE, by the server itself after CLONE (RFC 7862, section 15), or by
// fsync(2), whose failure ends the copy. A server that is told to lie (exports(5),
// async) is not helped. Local file systems: nothing is synced file by file. All is
// synced once, by syncfs(2), before it is compared and the manifest is written. If
// that fails the next run starts over, and so it does if the machine was restarted,
// which it knows by the boot id in began.json.
//
// # Hard links
//
// A file with several names is copied to links/ under the number of its inode,
// once, and each of its names is a link to that: the table is on disk, and what
// is in memory is only which inodes are being copied at this moment. The names in
// links/ go when the manifest is there. A file that is written to between two of
// its names is copied twice and counted as changed.
//
// # Changed meanwhile
//
// A file whose size, mtime or ctime differ after it was read is read again, at
// most copyTries times; then it stays as it was read last, and is counted. A
// write in the same tick of the server's clock as the last one before the copy
// is not seen. A file that vanishes is not there. A directory that changes while
// it is read may lack what was renamed in it, and is counted.
type treeCopy struct {
	copyOptions
	src, work *dir
	id        string
	held      *dir // work/<id>, where the caller has it open

	job, data      *dir
	links          atomic.Pointer[dir] // see linksDir
	dev            uint64              // of the source
	self           uint64              // inode number of work/<id>
	isNew          bool                // no earlier run has left anything
	began          unix.Timespec       // by the clock of the target's server
	fromNFS, onNFS bool                // where the source is, and the target
	times          timeLimits          // that the target can hold
	how            methods
	acls           sync.Map // see setNFS4ACL
	noXattrs       atomic.Bool
	touchAtime     atomic.Bool
	buffers        sync.Pool
	busy           sync.Map // see alone

	total tally
	notes notes
	bytes atomic.Int64 // moved by now, in files of which not all are complete

	mu     sync.Mutex
	inodes map[uint64]chan struct{} // linked files in progress; closed at the end
}

// tally counts the entries of a tree and the bytes in them. A file with several
// names counts with each.
type tally struct {
	dirs, files, symlinks, fifos, bytes atomic.Int64
}

func (t *tally) count(a attr) {
	switch a.kind() {
	case unix.S_IFREG:
		t.files.Add(1)
		t.bytes.Add(a.size)
	case unix.S_IFLNK:
		t.symlinks.Add(1)
	case unix.S_IFIFO:
		t.fifos.Add(1)
	}
}

func (t *tally) counts() treeCounts {
	return treeCounts{
		Dirs: t.dirs.Load(), Files: t.files.Load(), Symlinks: t.symlinks.Load(),
		FIFOs: t.fifos.Load(), Bytes: t.bytes.Load(),
	}
}

// copyProgress is how far a copy has come. Entries that an earlier run has copied
// count when they were looked at.
type copyProgress struct {
	Entries, Bytes           int64
	TotalEntries, TotalBytes int64 // 0 when that is not known
}

// copyIn prepares the copy of src into a directory that is there and stays open, as
// src does, while it runs.
func copyIn(src, job *dir, id string, opts copyOptions) *treeCopy {
	c := newTreeCopy(src, nil, id, opts)
	c.held = job
	return c
}

// newTreeCopy prepares the copy of src, which stays open as long as it runs.
func newTreeCopy(src, work *dir, id string, opts copyOptions) *treeCopy {
	if opts.concurrency <= 0 {
		opts.concurrency = defaultCopyConcurrency
	}
	if opts.limits == nil {
		opts.limits = new(atomic.Pointer[timeLimits])
	}
	return &treeCopy{copyOptions: opts, src: src, work: work, id: id, inodes: map[uint64]chan struct{}{}}
}

// progress may be called at any time.
func (c *treeCopy) progress() copyProgress {
	t := c.total.counts()
	return copyProgress{
		Entries: t.entries(), Bytes: c.bytes.Load(),
		TotalEntries: c.expected.entries(), TotalBytes: c.expected.Bytes,
	}
}

// run copies the tree, or goes on with what an earlier run has left. It returns
// when the copy is whole and on disk; after an error it can be tried again.
// Errors: ErrFull; ErrPermission, which names the first file that the export does
// not let this client read or make; ErrUnavailable, ErrStale; ErrForeign when
// something is in work/ under this id that is not a copy's.
func (c *treeCopy) run(ctx context.Context) (m *copyManifest, err error) {
	defer func() {
		for _, d := range []*dir{c.job, c.data, c.links.Load()} {
			d.close()
		}
	}()
	if c.held != nil {
		c.job, err = c.held.again(ctx)
	} else {
		c.job, err = makeDir(ctx, c.work, c.id)
	}
	if err != nil {
		return nil, err
	}
	if m, err = readManifest(ctx, c.job); err != nil {
		return nil, err
	}
	if m == nil {
		if m, err = c.copy(ctx); err != nil {
			return nil, err
		}
	}
	return m, c.removeLinks(ctx)
}

func (c *treeCopy) copy(ctx context.Context) (*copyManifest, error) {
	if err := c.begin(ctx); err != nil {
		return nil, err
	}
	root, err := c.rootPair(ctx)
	if err != nil {
		return nil, err
	}
	w := newTreeWalk(c.concurrency, c.job)
	w.visit = func(ctx context.Context, p *pair) error { return c.directory(ctx, w, p) }
	w.reopen = c.reopen
	if err := w.run(ctx, root); err != nil {
		return nil, err
	}
	if err := c.sync(ctx); err != nil {
		return nil, err
	}
	if err := c.verify(ctx); err != nil {
		return nil, err
	}
	return c.writeManifest(ctx)
}

// sync makes the copy durable where that was not done file by file.
func (c *treeCopy) sync(ctx context.Context) error {
	if c.onNFS {
		return nil
	}
	err := c.job.syncfs(ctx)
	if err == nil || ctx.Err() != nil {
		return err
	}
	// Nobody knows what is lost, and the kernel tells only once.
	if undo := c.job.unlink(ctx, beganName); undo != nil {
		return fmt.Errorf("%w; and the copy could not be marked as lost: %v", err, undo)
	}
	return err
}

// beginning is the content of began.json.
type beginning struct {
	Version int    `json:"version"`
	Boot    string `json:"boot"` // "" on NFS, where the client's end loses nothing
	ID      string `json:"id"`
}

const (
	copyVersion   = 1
	beganName     = "began.json"
	manifestName  = "manifest.json"
	manifestLimit = 1 << 20
	dataName      = "data"
	linksName     = "links"
	junkName      = "junk"
)

// begin finds out where the target is and makes or opens what belongs to the copy.
func (c *treeCopy) begin(ctx context.Context) error {
	fs, err := c.job.statfs(ctx)
	if err != nil {
		return err
	}
	c.onNFS = fs.Type == unix.NFS_SUPER_MAGIC
	if fs, err = c.src.statfs(ctx); err != nil {
		return err
	}
	c.fromNFS = fs.Type == unix.NFS_SUPER_MAGIC
	want := beginning{Version: copyVersion, ID: c.id}
	if !c.onNFS {
		boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return fmt.Errorf("find out whether the machine was restarted: %w", err)
		}
		want.Boot = strings.TrimSpace(string(boot))
	}
	here, err := c.job.attr(ctx, "")
	if err != nil {
		return err
	}
	c.self = here.ino
	inherits, err := c.job.dropInheritance(ctx)
	if err != nil {
		return err
	}
	if inherits {
		c.notes.inherits()
	}
	var found beginning
	data, _, err := c.job.readFile(ctx, beganName, manifestLimit)
	switch {
	case err == nil:
		err = json.Unmarshal(data, &found)
		if err != nil {
			return fmt.Errorf("%w: %q is not what this driver writes: %w", nfs.ErrForeign, path.Join(c.job.path, beganName), err)
		}
	case !isAbsent(err):
		return err
	}
	if found != want {
		c.isNew = true
		if err := c.startOver(ctx, want); err != nil {
			return err
		}
	}
	st, err := c.job.attr(ctx, beganName)
	if err != nil {
		return err
	}
	c.began = st.mtime
	if c.data, err = makeDir(ctx, c.job, dataName); err != nil {
		return err
	}
	if !c.isNew {
		if _, err = c.linksDir(ctx); err != nil {
			return err
		}
	}
	if known := c.limits.Load(); known != nil {
		c.times = *known
		return nil
	}
	if c.times, err = findTimeLimits(ctx, c.job); err == nil {
		c.limits.Store(&c.times)
	}
	return err
}

// startOver puts away what an earlier run has left and says when this one begins.
func (c *treeCopy) startOver(ctx context.Context, b beginning) error {
	for _, name := range []string{dataName, linksName} {
		if err := c.discard(ctx, c.job, name); err != nil {
			return err
		}
	}
	data, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return c.replace(ctx, beganName, data)
}

// replace writes a document of the copy, all of it or nothing.
func (c *treeCopy) replace(ctx context.Context, name string, data []byte) error {
	return replaceFile(ctx, c.job, name, data)
}

// replaceFile writes a file of the directory, all of it or nothing.
func replaceFile(ctx context.Context, d *dir, name string, data []byte) error {
	temp := name + "." + randomName()
	if err := d.writeFile(ctx, temp, data); err != nil {
		return errors.Join(err, ignoreAbsent(d.unlink(context.WithoutCancel(ctx), temp)))
	}
	if err := d.rename(ctx, temp, d, name); err != nil {
		return err
	}
	return d.sync(ctx)
}

// discard takes an entry out of the copy, whatever it is.
func (c *treeCopy) discard(ctx context.Context, d *dir, name string) error {
	// Unlinked, a name is no longer counted as a link to its file.
	err := d.unlink(ctx, name)
	if errors.Is(err, unix.EISDIR) {
		junk, makeErr := makeDir(ctx, c.job, junkName)
		if makeErr != nil {
			return makeErr
		}
		defer junk.close()
		err = d.rename(ctx, name, junk, randomName())
	}
	return ignoreAbsent(err)
}

// linksDir opens links/, which a new copy makes with the first file that has several
// names.
func (c *treeCopy) linksDir(ctx context.Context) (*dir, error) {
	if links := c.links.Load(); links != nil {
		return links, nil
	}
	links, err := makeDir(ctx, c.job, linksName)
	if err != nil {
		return nil, err
	}
	if !c.links.CompareAndSwap(nil, links) { // another goroutine was faster
		links.close()
	}
	return c.links.Load(), nil
}

func (c *treeCopy) rootPair(ctx context.Context) (*pair, error) {
	a, err := c.src.fresh(ctx)
	if err != nil {
		return nil, err
	}
	c.dev = a.dev
	// Descriptors of its own, since the pair closes them.
	src, err := c.src.again(ctx)
	if err != nil {
		return nil, err
	}
	dst, err := c.data.again(ctx)
	if err != nil {
		src.close()
		return nil, err
	}
	return &pair{src: src, dst: dst, attr: a, isNew: c.isNew}, nil
}

// reopen opens a directory that had to wait.
func (c *treeCopy) reopen(ctx context.Context, rel string) (*pair, error) {
	src, err := c.src.below(ctx, rel)
	if err != nil {
		if err = c.sourceError(ctx, err); errors.Is(err, errGone) {
			c.notes.vanished(rel)
			return nil, nil
		}
		return nil, err
	}
	a, err := src.fresh(ctx)
	if err != nil {
		src.close()
		return nil, err
	}
	dst, err := c.data.below(ctx, rel)
	if err != nil {
		src.close()
		return nil, err
	}
	return &pair{src: src, dst: dst, rel: rel, attr: a}, nil
}

// Internal outcomes of looking at an entry of the source.
var (
	errGone    = errors.New("it is not there any more")
	errChanged = errors.New("it is something else now")
)

// sourceError tells a failure that is the end of one entry from one that is the
// end of the source.
func (c *treeCopy) sourceError(ctx context.Context, err error) error {
	switch {
	case isAbsent(err), errors.Is(err, unix.ESTALE):
		if _, rootErr := c.src.fresh(ctx); rootErr != nil {
			return rootErr
		}
		return fmt.Errorf("%w: %w", errGone, err)
	case isNotDir(err), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: %w", errChanged, err)
	}
	return err
}

// removeLinks removes the names that only the copy itself needed.
func (c *treeCopy) removeLinks(ctx context.Context) error {
	links, err := c.job.openDir(ctx, linksName)
	if err != nil {
		return ignoreAbsent(err)
	}
	w := newTreeWalk(c.concurrency, c.job)
	w.visit = func(ctx context.Context, p *pair) error {
		return p.src.list(ctx, func(names []string) error {
			for _, name := range names {
				err := w.work(ctx, p, func() error { return ignoreAbsent(p.src.unlink(ctx, name)) })
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	for range copyTries { // Names may be skipped, see purger.empty.
		again, err := links.again(ctx)
		if err == nil {
			err = w.run(ctx, &pair{src: again})
		}
		if err == nil {
			err = ignoreAbsent(c.job.rmdir(ctx, linksName))
		}
		if !isNotEmpty(err) {
			links.close()
			return err
		}
	}
	links.close()
	return fmt.Errorf("%w: %q does not become empty", nfs.ErrBusy, path.Join(c.job.path, linksName))
}
