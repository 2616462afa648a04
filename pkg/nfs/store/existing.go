package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// How long a directory may be away (see waitForDir).
const (
	waitTick  = 20 * time.Millisecond
	waitTicks = 25
)

// answer returns the volume of an existing record if it is what is asked for and
// its directory is where it should be.
func (c *creation) answer(ctx context.Context, r *record) (nfs.Volume, error) {
	if err := c.s.opts.checkOwner(r); err != nil {
		return nfs.Volume{}, err
	}
	if why := r.volume().Incompatible(c.spec); why != "" {
		return nfs.Volume{}, fmt.Errorf("%w: a volume of that name exists, but %s", nfs.ErrConflict, why)
	}
	c.created = r.Created
	if c.spec.Shared {
		if err := c.settleShared(ctx); err != nil && !isAbsent(err) {
			return nfs.Volume{}, err
		}
	} else if err := c.reclaim(ctx); err != nil {
		return nfs.Volume{}, err
	}
	if r.Restored.Archive != "" {
		if err := c.bringBack(ctx); err != nil {
			return nfs.Volume{}, err
		}
	}
	err := c.findDir(ctx, lookForSure)
	if isAbsent(err) {
		err = c.waitForDir(ctx, r)
	}
	if err != nil {
		return nfs.Volume{}, err
	}
	return r.volume(), nil
}

// waitForDir gives the missing directory of a recorded volume half a second: a
// delete takes the directory before the record, and a delete that came too late
// may have moved a directory by mistake, and is about to move it back.
func (c *creation) waitForDir(ctx context.Context, r *record) error {
	tick := time.NewTicker(waitTick)
	defer tick.Stop()
	for range waitTicks {
		now, err := c.l.recordForSure(ctx, c.id)
		switch {
		case err != nil:
			return err
		case now == nil || !now.file.sameFile(r.file):
			return fmt.Errorf("%w: the volume is being deleted", nfs.ErrBusy)
		}
		if err := c.findDir(ctx, lookForSure); !isAbsent(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return fmt.Errorf("%w: the directory is missing though the volume has a record, so its data may be lost: bring the directory back, or delete the volume", nfs.ErrForeign)
}

// reclaim puts back the claim of a recorded volume, should it be missing, or be
// that of an attempt to make it which came to nothing.
func (c *creation) reclaim(ctx context.Context) error {
	name := claimName(c.spec.Dir)
	for range raceTries {
		owner, err := c.l.claimant(ctx, c.spec.Dir)
		switch {
		case err != nil || owner == c.key():
			return err
		case owner == "":
		case idOf(owner) == c.id:
			if err := c.l.dirs.unlink(ctx, name); err != nil && !isAbsent(err) {
				return err
			}
		default:
			return c.taken(ctx, c.spec.Dir, owner)
		}
		if err = c.l.dirs.symlink(ctx, c.key(), name); err == nil {
			return c.keepClaim(ctx)
		}
		if !isTaken(err) {
			return err
		}
	}
	return fmt.Errorf("%w: the directory was claimed and given up %d times meanwhile", nfs.ErrBusy, raceTries)
}

// keepClaim takes the claim away again if the volume was deleted meanwhile: a
// delete removes the record first, so it has either seen the claim, or is seen here.
func (c *creation) keepClaim(ctx context.Context) error {
	err := c.stillRecorded(ctx)
	if errors.Is(err, nfs.ErrBusy) {
		if undo := c.l.unclaim(ctx, c.spec.Dir, c.key()); undo != nil {
			return fmt.Errorf("%w; and its claim could not be removed: %v", err, undo)
		}
	}
	return err
}

// restore is settle for the volume of another run, whose directory was empty, with
// what it makes removed again if the volume is deleted meanwhile.
func (c *creation) restore(ctx context.Context) error {
	defer c.close()
	c.remake = true
	if err := c.settle(ctx); err != nil {
		return c.undo(ctx, err)
	}
	return nil
}

func (c *creation) stillRecorded(ctx context.Context) error {
	r, err := c.l.recordForSure(ctx, c.id)
	if err == nil && (r == nil || r.key() != c.key()) {
		err = fmt.Errorf("%w: the volume was deleted as soon as it was made", nfs.ErrBusy)
	}
	return err
}

// checkAncestors refuses a volume inside a volume.
func (c *creation) checkAncestors(ctx context.Context) error {
	for p := parentOf(c.spec.Dir); p != ""; p = parentOf(p) {
		key, _, err := c.holder(ctx, p)
		if err != nil {
			return err
		}
		if key != "" {
			return fmt.Errorf("a volume cannot lie inside another: %w", c.taken(ctx, p, key))
		}
	}
	return nil
}

// findDir fails with ENOENT when the directory is not there. It needs no right to
// read the directory, which the mode may give to nobody.
func (c *creation) findDir(ctx context.Context, how walkMode) error {
	parent, _, err := c.s.walk(ctx, parentOf(c.spec.Dir), how)
	if err != nil {
		return err
	}
	defer parent.close()
	err = c.findIn(ctx, parent)
	if isAbsent(err) && how == lookForSure {
		if err := parent.refresh(ctx); err != nil {
			return err
		}
		err = c.findIn(ctx, parent)
	}
	return err
}

func (c *creation) findIn(ctx context.Context, parent *dir) error {
	d, err := parent.hold(ctx, c.base)
	if err != nil {
		return notDirectory(err, c.spec.Dir)
	}
	defer d.close()
	// The client's cache may know a directory that another client has removed.
	if err = d.stat(ctx); errors.Is(err, nfs.ErrStale) {
		err = opError("open", c.spec.Dir, unix.ENOENT)
	}
	return err
}
