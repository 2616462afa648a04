package store

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func (c *treeCopy) openSource(ctx context.Context, d *dir, name string) (*file, attr, error) {
	// Of a file that is not ours only a privileged process may hide that it is read.
	flags := unix.O_NOATIME
	if c.touchAtime.Load() {
		flags = 0
	}
	f, err := d.openSource(ctx, name, flags, c.fromNFS)
	if errors.Is(err, unix.EPERM) && flags != 0 {
		if f, err = d.openSource(ctx, name, 0, c.fromNFS); err == nil {
			c.touchAtime.Store(true)
		}
	}
	if err != nil {
		return nil, attr{}, err
	}
	a, err := f.attr(ctx)
	if err != nil {
		_ = f.close(ctx) // It was only opened.
		return nil, attr{}, err
	}
	return f, a, nil
}

// fileTo copies the content of a file and all that is kept of it to a new file,
// which fails with EEXIST when the name is taken. It returns what it has copied.
func (c *treeCopy) fileTo(ctx context.Context, src *file, want attr, dst *dir, name, rel string) (got attr, err error) {
	out, err := dst.createFile(ctx, name, want.perm()&0o777, !c.onNFS)
	if err != nil {
		return want, err
	}
	defer func() {
		if closeErr := out.close(ctx); err == nil {
			err = closeErr
		}
		if errors.Is(err, errGone) {
			err = errors.Join(err, ignoreAbsent(dst.unlink(ctx, name)))
		}
	}()
	have, err := out.attr(ctx)
	if err != nil {
		return want, err
	}
	if have.kind() != unix.S_IFREG || have.size != 0 || have.nlink != 1 {
		return want, opError("create", out.path, unix.EEXIST)
	}
	if want, err = c.stableContent(ctx, src, out, want, rel); err != nil {
		return want, err
	}
	if c.onNFS {
		if err := out.sync(ctx); err != nil {
			return want, err
		}
	}
	if err := restoreOwner(have, want, out.chowner(ctx), out.chmoder(ctx)); err != nil {
		return want, err
	}
	if err := c.copyXattrs(ctx, src.xattrs(ctx), out.xattrs(ctx), want); err != nil {
		return want, err
	}
	return want, dst.setTimes(ctx, name, c.times.fitTimes(want))
}

// stableContent copies the content until the file has not changed meanwhile, or
// has changed too often. It returns what the file was before it was read last.
func (c *treeCopy) stableContent(ctx context.Context, src, out *file, want attr, rel string) (attr, error) {
	for try := 1; ; try++ {
		moved, err := c.content(ctx, src, out, want)
		c.bytes.Add(want.size - moved)
		if err != nil {
			return want, c.blame(ctx, src, err)
		}
		if c.still {
			return want, nil
		}
		now, err := src.fresh(ctx)
		if err != nil {
			return want, c.sourceError(ctx, err)
		}
		if now.sameContent(want) {
			return want, nil
		}
		if try == copyTries {
			c.notes.changed(rel)
			have, err := out.fresh(ctx)
			if err != nil {
				return want, err
			}
			c.bytes.Add(have.size - want.size)
			want.size = have.size // It may have been cut off, or cloned when it was longer.
			return want, nil
		}
		c.bytes.Add(-want.size)
		if err := out.truncate(ctx, 0); err != nil {
			return want, err
		}
		want = now
	}
}

// blame finds out whether an error that either file can cause is the source's.
func (c *treeCopy) blame(ctx context.Context, src *file, err error) error {
	if errors.Is(err, unix.ESTALE) {
		if _, srcErr := src.fresh(ctx); srcErr != nil {
			return c.sourceError(ctx, srcErr)
		}
	}
	return err
}

// restoreOwner gives what was just made the owner and mode of its source, where
// it has not got them already. An entry without a mode of its own has no chmod.
func restoreOwner(have, want attr, chown func(uid, gid int) error, chmod func(mode uint32) error) error {
	uid, gid := -1, -1
	if have.uid != want.uid {
		uid = int(want.uid)
	}
	if have.gid != want.gid {
		gid = int(want.gid)
	}
	chowned := uid != -1 || gid != -1
	if chowned {
		if err := chown(uid, gid); err != nil {
			return refusedCopy(err, fmt.Sprintf("owner %d:%d", want.uid, want.gid))
		}
	}
	// chown(2) may clear the set-id bits, and writing to a file clears them too.
	if chmod == nil || have.perm() == want.perm() && (!chowned || want.perm()&0o7000 == 0) {
		return nil
	}
	return refusedCopy(chmod(want.perm()), "mode "+formatMode(want.perm()))
}

func refusedCopy(err error, what string) error {
	if !errors.Is(err, nfs.ErrPermission) {
		return err
	}
	return fmt.Errorf("the export does not let this client keep the %s of a file that it copies, most likely because it is exported with root_squash: export it with no_root_squash: %w", what, err)
}
