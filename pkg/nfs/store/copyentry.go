package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// copyTries is how often a file that changes is read before it is taken as it is.
const copyTries = 3

// alone says whether an entry is being copied at this moment: a name can come up
// twice when a directory changes while it is read.
func (c *treeCopy) alone(rel string) (done func(), twice bool) {
	_, twice = c.busy.LoadOrStore(rel, nil)
	return func() { c.busy.Delete(rel) }, twice
}

// directory copies what is in a directory, and then what is to be kept of the
// directory itself. Directories in it are copied beside it, or later.
func (c *treeCopy) directory(ctx context.Context, w *treeWalk, p *pair) error {
	done, twice := c.alone(p.rel)
	if twice {
		return nil
	}
	defer done()
	c.total.dirs.Add(1)
	if !p.isNew {
		if err := c.takeUp(ctx, p); err != nil {
			return err
		}
	}
	var entryErr error
	err := p.src.entries(ctx, func(name string, kind uint32) error {
		entryErr = c.entry(ctx, w, p, name, kind)
		return entryErr
	})
	p.files.Wait()
	if entryErr != nil {
		return entryErr
	}
	after := p.attr
	if err == nil && !c.still {
		after, err = p.src.fresh(ctx)
	}
	switch {
	case err == nil && !after.sameContent(p.attr):
		c.notes.changed(p.rel)
	case err != nil:
		// It keeps what was copied of it.
		if err = c.sourceError(ctx, err); !errors.Is(err, errGone) {
			return err
		}
		c.notes.vanished(p.rel)
	}
	return c.finishDir(ctx, p)
}

// takeUp prepares a directory of the copy that an earlier run has made: whatever
// the source does not have, or has of another type, is taken out of it.
func (c *treeCopy) takeUp(ctx context.Context, p *pair) error {
	st, err := p.dst.attr(ctx, "")
	if err != nil {
		return err
	}
	if st.mode&0o700 != 0o700 {
		if err := p.dst.chmod(ctx, st.perm()|0o700); err != nil {
			return err
		}
	}
	for removed := true; removed; { // Names may be skipped, see purger.empty.
		removed = false
		err := p.dst.list(ctx, func(names []string) error {
			for _, name := range names {
				fits, err := c.fits(ctx, p, name)
				if err != nil {
					return err
				}
				if fits {
					continue
				}
				removed = true
				if err := c.discard(ctx, p.dst, name); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *treeCopy) fits(ctx context.Context, p *pair, name string) (bool, error) {
	have, err := p.dst.attr(ctx, name)
	if err != nil {
		return isAbsent(err), ignoreAbsent(err)
	}
	want, err := p.src.attr(ctx, name)
	if err != nil {
		if err = c.sourceError(ctx, err); errors.Is(err, errGone) || errors.Is(err, errChanged) {
			return false, nil
		}
		return false, err
	}
	return have.kind() == want.kind() && want.dev == c.dev, nil
}

// entry has an entry of a directory copied. The kind may not be known yet (0).
func (c *treeCopy) entry(ctx context.Context, w *treeWalk, p *pair, name string, kind uint32) error {
	if kind == 0 {
		a, err := p.src.attr(ctx, name)
		if err != nil {
			return c.settle(p, name, c.sourceError(ctx, err))
		}
		kind = a.kind()
	}
	switch kind {
	case unix.S_IFDIR:
		err := c.subdirectory(ctx, w, p, name)
		if !errors.Is(err, errChanged) {
			return c.settle(p, name, err)
		}
		kind = 0
	case unix.S_IFSOCK:
		c.notes.socket(path.Join(p.rel, name))
		return nil
	case unix.S_IFCHR, unix.S_IFBLK:
		c.notes.device(path.Join(p.rel, name))
		return nil
	}
	return w.work(ctx, p, func() error { return c.leaf(ctx, p, name, kind) })
}

// settle takes note of an entry that could not be copied for no fault of ours.
func (c *treeCopy) settle(p *pair, name string, err error) error {
	switch {
	case errors.Is(err, errGone):
		c.notes.vanished(path.Join(p.rel, name))
		return nil
	case errors.Is(err, errChanged):
		c.notes.changed(path.Join(p.rel, name))
		return nil
	}
	return err
}

// subdirectory makes a directory and has it visited.
func (c *treeCopy) subdirectory(ctx context.Context, w *treeWalk, p *pair, name string) error {
	src, err := p.src.openDir(ctx, name)
	if err != nil {
		return c.sourceError(ctx, err)
	}
	a, err := src.fresh(ctx)
	if err != nil {
		src.close()
		return c.sourceError(ctx, err)
	}
	next := &pair{src: src, rel: path.Join(p.rel, name), depth: p.depth + 1, attr: a}
	if a.dev != c.dev {
		c.notes.mount(next.rel)
		src.close()
		return nil
	}
	if a.ino == c.self && name == path.Base(c.job.path) {
		// It would never end.
		src.close()
		return fmt.Errorf("%w: the export of the copy is a directory within its source: choose another export", nfs.ErrInvalid)
	}
	err = p.dst.mkdir(ctx, name, a.perm()&0o777|0o700)
	next.isNew = err == nil
	if p.isNew && isTaken(err) {
		// The name came up twice, as it may when a directory changes while it is read.
		src.close()
		return nil
	}
	if err == nil || isTaken(err) {
		next.dst, err = p.dst.openDir(ctx, name)
	}
	if err != nil {
		src.close()
		return notDirectory(err, path.Join(p.dst.path, name))
	}
	w.descend(ctx, next)
	return nil
}

// leaf copies an entry that is no directory. The kind may be unknown (0), or not
// be what it was.
func (c *treeCopy) leaf(ctx context.Context, p *pair, name string, kind uint32) error {
	done, twice := c.alone(path.Join(p.rel, name))
	if twice {
		return nil
	}
	defer done()
	for range copyTries {
		err := c.leafOnce(ctx, p, name, kind)
		if !errors.Is(err, errChanged) {
			return c.settle(p, name, err)
		}
		kind = 0
	}
	return c.settle(p, name, errChanged)
}

func (c *treeCopy) leafOnce(ctx context.Context, p *pair, name string, kind uint32) error {
	var want attr
	// In a new directory, opening a file tells all there is to know of it.
	if !p.isNew || kind != unix.S_IFREG {
		var err error
		if want, err = p.src.attr(ctx, name); err != nil {
			return c.sourceError(ctx, err)
		}
		if want.dev != c.dev {
			c.notes.mount(path.Join(p.rel, name))
			return nil
		}
		kind = want.kind()
	}
	if !p.isNew {
		done, err := c.isDone(ctx, p, name, want)
		if err != nil || done {
			return err
		}
	}
	copyTo, closeSource, err := c.maker(ctx, p, name, kind, &want)
	if err != nil {
		return err
	}
	defer closeSource()
	switch {
	case want.dev != c.dev:
		c.notes.mount(path.Join(p.rel, name))
		return nil
	case want.nlink > 1:
		return c.linked(ctx, p, name, want, copyTo)
	}
	got, err := copyTo(p.dst, name)
	switch {
	case isTaken(err):
		return nil // the name came up twice
	case err != nil:
		return err
	}
	c.total.count(got)
	return nil
}

// maker returns what makes a copy of the entry, under any name, and returns what
// the source was that it has copied. It completes what is known of the source.
func (c *treeCopy) maker(ctx context.Context, p *pair, name string, kind uint32, want *attr) (copyTo copyFunc, closeSource func(), err error) {
	switch kind {
	case unix.S_IFREG:
		src, a, err := c.openSource(ctx, p.src, name)
		if err != nil {
			return nil, nil, c.sourceError(ctx, err)
		}
		closeSource = func() { _ = src.close(ctx) } // It was only read.
		if *want = a; a.kind() != unix.S_IFREG {
			closeSource()
			return nil, nil, errChanged
		}
		return func(dst *dir, dstName string) (attr, error) {
			return c.fileTo(ctx, src, a, dst, dstName, path.Join(p.rel, name))
		}, closeSource, nil
	case unix.S_IFLNK, unix.S_IFIFO:
		a := *want
		return func(dst *dir, dstName string) (attr, error) {
			err := c.specialTo(ctx, p.src, name, a, dst, dstName)
			if errors.Is(err, errGone) {
				err = errors.Join(err, ignoreAbsent(dst.unlink(ctx, dstName)))
			}
			return a, err
		}, func() {}, nil
	}
	return nil, nil, errChanged // By now it is a directory, say: too late to visit it.
}

// copyFunc makes a copy; EEXIST when the name is taken.
type copyFunc func(dst *dir, name string) (attr, error)

// specialTo copies a symbolic link or a named pipe.
func (c *treeCopy) specialTo(ctx context.Context, src *dir, name string, want attr, dst *dir, dstName string) error {
	if want.kind() == unix.S_IFIFO {
		if err := dst.mkfifo(ctx, dstName, want.perm()&0o777); err != nil {
			return err
		}
		return c.finishSpecial(ctx, src, name, want, dst, dstName)
	}
	text, err := src.readlink(ctx, name)
	if err != nil {
		if errors.Is(err, unix.EINVAL) {
			return errChanged
		}
		return c.sourceError(ctx, err)
	}
	if err := dst.symlink(ctx, text, dstName); err != nil {
		return err
	}
	return c.finishSpecial(ctx, src, name, want, dst, dstName)
}

// isDone says whether an earlier run has completed the entry. If it has not, the
// name is free when this returns.
func (c *treeCopy) isDone(ctx context.Context, p *pair, name string, want attr) (bool, error) {
	have, err := p.dst.attr(ctx, name)
	if err != nil {
		return false, ignoreAbsent(err)
	}
	var done bool
	if want.nlink > 1 && want.kind() != unix.S_IFDIR {
		links, err := c.linksDir(ctx)
		if err != nil {
			return false, err
		}
		first, err := links.attr(ctx, linkName(want))
		if ignoreAbsent(err) != nil {
			return false, err
		}
		done = err == nil && first.ino == have.ino && c.unchanged(first, want)
	} else {
		done = before(have.mtime, c.began) && have.mode == want.mode && have.uid == want.uid && have.gid == want.gid &&
			c.unchanged(have, want)
	}
	if !done {
		return false, c.discard(ctx, p.dst, name)
	}
	c.total.count(want)
	c.bytes.Add(want.size)
	return true, nil
}

// unchanged says that a copy has the size and mtime of its source.
func (c *treeCopy) unchanged(have, want attr) bool {
	return have.size == want.size && have.mtime == c.times.fit(want.mtime)
}

func linkName(a attr) string { return strconv.FormatUint(a.ino, 10) }

// linked makes a name for a file of which the copy has, or gets, others.
func (c *treeCopy) linked(ctx context.Context, p *pair, name string, want attr, copyTo copyFunc) error {
	release, err := c.lockInode(ctx, want.ino)
	if err != nil {
		return err
	}
	defer release()
	links, err := c.linksDir(ctx)
	if err != nil {
		return err
	}
	key := linkName(want)
	first, err := links.attr(ctx, key)
	switch {
	case err == nil && c.unchanged(first, want):
		c.bytes.Add(want.size)
	case err == nil:
		// Or it was removed, and its number belongs to another file now.
		c.notes.changed(path.Join(p.rel, name))
		if err := links.unlink(ctx, key); err != nil {
			return err
		}
		fallthrough
	case isAbsent(err):
		temp := key + ".new"
		if !c.isNew {
			if err := ignoreAbsent(links.unlink(ctx, temp)); err != nil {
				return err
			}
		}
		if want, err = copyTo(links, temp); err != nil {
			return err
		}
		if err := links.rename(ctx, temp, links, key); err != nil {
			return err
		}
	default:
		return err
	}
	err = links.link(ctx, key, p.dst, name)
	switch {
	case isTaken(err):
		return nil // the name came up twice
	case hasNoLinks(err):
		c.notes.unlinked(path.Join(p.rel, name))
		if want, err = copyTo(p.dst, name); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	c.total.count(want)
	return nil
}

// lockInode waits until nobody else copies the file of that inode number.
func (c *treeCopy) lockInode(ctx context.Context, ino uint64) (release func(), err error) {
	for {
		c.mu.Lock()
		busy, ok := c.inodes[ino]
		if !ok {
			mine := make(chan struct{})
			c.inodes[ino] = mine
			c.mu.Unlock()
			return func() {
				c.mu.Lock()
				delete(c.inodes, ino)
				c.mu.Unlock()
				close(mine)
			}, nil
		}
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-busy:
		}
	}
}
