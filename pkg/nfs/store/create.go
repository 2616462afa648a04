package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// CreateVolume makes the volume, or returns the existing one when it answers the
// same request. On any definite failure it leaves nothing behind. Errors:
// ErrInvalid; ErrConflict when the name or the directory is another volume's;
// ErrForeign when the directory exists without a record, the record is another
// instance's, or the directory of the recorded volume is missing; ErrBusy when
// the same volume is being made or deleted elsewhere at this moment; ErrFull,
// ErrPermission, ErrUnavailable, ErrStale.
func (s *Store) CreateVolume(ctx context.Context, spec nfs.VolumeSpec) (nfs.Volume, error) {
	defer s.active.begin()()
	if err := checkSpec(spec); err != nil {
		return nfs.Volume{}, err
	}
	l, err := s.ensureLayout(ctx)
	if err != nil {
		return nfs.Volume{}, fmt.Errorf("prepare the directory %q: %w", ownDir, err)
	}
	c := newCreation(s, l, spec)
	defer c.close()
	v, err := c.run(ctx)
	s.reopenAfter(l, err)
	if err = raced(err); err != nil {
		return nfs.Volume{}, fmt.Errorf("directory %q: %w", spec.Dir, err)
	}
	return v, nil
}

// raceTries is how often something is tried again that other processes have made
// impossible by what they did at that moment.
const raceTries = 10

// creation is one run of CreateVolume, and what it has made so far.
type creation struct {
	s    *Store
	l    *layout
	spec nfs.VolumeSpec
	id   string
	base string // last element of spec.Dir
	// created is when the volume is made, or an earlier attempt began to.
	created time.Time

	parent      *dir
	newParents  int    // innermost parents that it made
	claimed     bool   // the claim is of this volume
	adopted     bool   // and another run has made it
	ownsDir     bool   // the directory is this volume's
	reserved    string // the archive that is reserved for it
	restored    restored
	remake      bool // the directory was empty, and is to be made again
	shared      sharing
	record      *record
	recordFound *record // another run's record of this volume
	clone       *clone  // what the volume is made of; nil for an empty one
}

func newCreation(s *Store, l *layout, spec nfs.VolumeSpec) *creation {
	return &creation{s: s, l: l, spec: spec, id: nfs.RecordID(spec.Name), base: path.Base(spec.Dir), created: time.Now().UTC()}
}

func (c *creation) key() string { return volumeKey(c.id, c.created) }

func (c *creation) close() {
	c.parent.close()
	if c.clone != nil {
		c.clone.job.close()
	}
}

func (c *creation) run(ctx context.Context) (nfs.Volume, error) {
	existing, err := c.l.record(ctx, c.id)
	if err != nil {
		return nfs.Volume{}, err
	}
	if existing != nil {
		return c.answer(ctx, existing)
	}
	err = c.build(ctx)
	switch {
	case errors.Is(err, errCopying):
		return nfs.Volume{}, err // The claim stays, for the next call to go on with.
	case err != nil:
		return nfs.Volume{}, c.undo(ctx, err)
	case c.recordFound == nil:
		c.dropClone(ctx)
		return c.record.volume(), nil
	}
	v, err := c.answer(ctx, c.recordFound)
	if err != nil {
		return nfs.Volume{}, c.undo(ctx, err)
	}
	return v, c.forgo(ctx)
}

// holder returns the key of the volume that claims the directory, "" if none
// does, and its record if it has one. A delete that still holds the claim is
// ended before.
func (c *creation) holder(ctx context.Context, dir string) (key string, r *record, err error) {
	last := ""
	for range raceTries {
		if key, err = c.l.claimant(ctx, dir); err != nil || key == "" {
			return "", nil, err
		}
		id := idOf(key)
		if id == "" { // no store wrote that, or it is shared
			if ended, err := c.s.endShared(ctx, c.l, key); err != nil || !ended || key == last {
				return key, nil, err
			}
			last = key
			if err := c.l.dirs.refresh(ctx); err != nil {
				return "", nil, err
			}
			continue
		}
		r, err = c.l.recordForSure(ctx, id)
		switch {
		case err == nil && r != nil && r.key() == key:
			return key, r, nil
		case errors.Is(err, nfs.ErrForeign) || err == nil && key == last:
			return key, nil, nil
		case err != nil:
			return "", nil, err
		}
		found, err := c.s.finish(ctx, c.l, id)
		if err != nil {
			return "", nil, err
		}
		if !found { // it may just have come to its end
			last = key
		}
		if err := c.l.dirs.refresh(ctx); err != nil {
			return "", nil, err
		}
	}
	return "", nil, fmt.Errorf("%w: the directory %q was claimed and given up %d times meanwhile", nfs.ErrBusy, dir, raceTries)
}

// taken is the error for a directory that another volume claims.
func (c *creation) taken(ctx context.Context, dir, key string) error {
	owner := idOf(key)
	what := fmt.Sprintf("the directory %q belongs to the volume with id %q", dir, owner)
	if _, shared := groupOf(key); shared {
		what = fmt.Sprintf("the directory %q is shared by volumes: a class with the parameter shared can have it too, others need another subDir", dir)
	} else if owner == "" {
		what = fmt.Sprintf("the directory %q is claimed by %q, which is no volume's id: see %s", dir, key, path.Join(c.l.dirs.path, claimName(dir)))
	} else {
		if r, err := c.l.recordForSure(ctx, owner); err == nil && r != nil && r.Name != owner {
			what = fmt.Sprintf("the directory %q belongs to the volume %q with id %q", dir, r.Name, owner)
		} else if err == nil && r == nil {
			what += fmt.Sprintf(", whose creation has not finished: if nothing finishes it, remove %s", path.Join(c.l.dirs.path, claimName(dir)))
		}
	}
	return fmt.Errorf("%w: %s", nfs.ErrConflict, what)
}

// build makes the volume, step by step. It ends without an error with either its
// own record in place, or another's in recordFound.
func (c *creation) build(ctx context.Context) error {
	if err := c.checkAncestors(ctx); err != nil {
		return err
	}
	claim, take, owner := c.claim, c.makeDir, true
	switch {
	case c.spec.RestoreArchive != "":
		take, owner = c.takeBack, false
	case c.spec.Shared:
		claim, take = c.join, c.makeShared
	}
	if err := claim(ctx); err != nil || c.recordFound != nil {
		return err
	}
	if !c.spec.Source.IsZero() {
		if err := c.fetch(ctx); err != nil || c.recordFound != nil {
			return err
		}
	}
	if err := take(ctx); err != nil || c.recordFound != nil {
		return err
	}
	if nested := parentOf(c.spec.Dir) != ""; nested {
		// An ancestor may have become a volume since: its claim came before its
		// directory, and that before ours, so it is there to be seen by now.
		if err := c.l.dirs.refresh(ctx); err != nil {
			return err
		}
		if err := c.checkAncestors(ctx); err != nil {
			return err
		}
	}
	if owner && c.shared.fellow == nil {
		if err := setOwner(ctx, c.parent, c.base, c.spec); err != nil {
			return err
		}
	}
	r := newRecord(c.s.opts, c.spec, c.newParents, c.created)
	r.Restored = c.restored
	c.shared.record(r)
	return c.publish(ctx, r)
}

// publish ends the build with the record in place, this one or another's, and with all
// that it tells of.
func (c *creation) publish(ctx context.Context, r *record) error {
	data, err := encode(r)
	if err != nil {
		return err
	}
	err = c.l.publish(ctx, c.l.volumes, c.id+recordSuffix, data)
	if isTaken(err) {
		if c.recordFound, err = c.l.recordForSure(ctx, c.id); err == nil && c.recordFound == nil {
			err = fmt.Errorf("%w: the volume was made and deleted meanwhile", nfs.ErrBusy)
		}
		return err
	}
	if err != nil {
		return err
	}
	c.record = r
	if c.adopted {
		err = c.notDeleted(ctx)
	}
	if err == nil {
		err = c.settle(ctx)
	}
	if errors.Is(err, nfs.ErrConflict) {
		c.ownsDir = false
		if undo := c.l.volumes.unlink(ctx, c.id+recordSuffix); undo != nil {
			return fmt.Errorf("%w; and its record could not be removed: %v", err, undo)
		}
	}
	return err
}

// notDeleted ends a delete of what another run has made with the same claim, and
// which this run has just made again.
func (c *creation) notDeleted(ctx context.Context) error {
	_, err := c.s.finish(ctx, c.l, c.id)
	return err
}

// claim makes sure that the directory is claimed for this volume and, unless it
// was claimed before, that it does not exist.
func (c *creation) claim(ctx context.Context) error {
	for range raceTries {
		// That it is missing need not be asked of the server: mkdir proves it.
		err := c.findDir(ctx, look)
		exists := err == nil
		if isAbsent(err) {
			if err = c.l.dirs.symlink(ctx, c.key(), claimName(c.spec.Dir)); err == nil {
				c.claimed = true
				return nil
			}
			if isTaken(err) {
				err = nil
			}
		}
		if err != nil {
			return err
		}
		key, r, err := c.holder(ctx, c.spec.Dir)
		switch {
		case err != nil:
			return err
		case idOf(key) == c.id:
			c.recordFound = r // else an earlier attempt was killed, or is at work
			_, c.created = parseKey(key)
			c.adopted, c.claimed = true, true
			return nil
		case key != "":
			return c.taken(ctx, c.spec.Dir, key)
		case !exists:
			continue // the claim has come and gone
		}
		if err := c.findDir(ctx, lookForSure); isAbsent(err) {
			continue // and so has the directory
		}
		if c.recordFound, err = c.l.recordForSure(ctx, c.id); err != nil || c.recordFound != nil {
			return err
		}
		if !c.spec.Source.IsZero() {
			return c.claimCopy(ctx)
		}
		return c.foreign()
	}
	return fmt.Errorf("%w: the directory was claimed and given up %d times meanwhile", nfs.ErrBusy, raceTries)
}

func (c *creation) foreign() error {
	return fmt.Errorf("%w: the directory exists, and no record says that the driver made it: move it away, remove it, or choose another subDir", nfs.ErrForeign)
}

// makeDir makes the directory of the volume, with what is to be in it.
func (c *creation) makeDir(ctx context.Context) error {
	if c.clone != nil {
		return c.moveIn(ctx)
	}
	return c.takeDir(ctx)
}

// takeDir makes the parents and the directory, or takes on the empty directory
// of another run with the same claim, which was killed or is at work just now.
func (c *creation) takeDir(ctx context.Context) error {
	err := c.mkdir(ctx)
	if err == nil {
		c.ownsDir = true
		return nil
	}
	if !isTaken(err) {
		return err
	}
	if c.recordFound, err = c.l.recordForSure(ctx, c.id); err != nil || c.recordFound != nil {
		return err
	}
	d, err := c.parent.openDir(ctx, c.base)
	if isAbsent(err) {
		return fmt.Errorf("%w: another create of the same volume is being undone", nfs.ErrBusy)
	}
	if err != nil {
		return notDirectory(err, c.spec.Dir)
	}
	defer d.close()
	empty, err := d.isEmpty(ctx)
	if err != nil {
		return err
	}
	if !empty {
		// The other run may have ended, and its volume be in use already.
		if c.recordFound, err = c.l.recordForSure(ctx, c.id); err == nil && c.recordFound == nil {
			err = c.foreign()
		}
		return err
	}
	// Only now, with the directory seen, does the claim say whose it is.
	err = c.checkClaim(ctx)
	c.ownsDir = err == nil
	return err
}

// checkClaim asks the server whether the directory is claimed for this volume.
func (c *creation) checkClaim(ctx context.Context) error {
	if err := c.l.dirs.refresh(ctx); err != nil {
		return err
	}
	owner, err := c.l.claimant(ctx, c.spec.Dir)
	if err == nil && owner != c.key() {
		c.claimed = false
		err = fmt.Errorf("%w: the directory is no longer claimed for this volume", nfs.ErrBusy)
	}
	return err
}

func (c *creation) mkdir(ctx context.Context) (err error) {
	mode := nfs.UnixMode(c.spec.Mode) & 0o777
	// Opened for chown and chmod, it must be readable to us first.
	mode |= 0o700
	for range raceTries {
		c.parent.close()
		if c.parent, c.newParents, err = c.s.walk(ctx, parentOf(c.spec.Dir), makeMissing); err == nil {
			err = c.parent.mkdir(ctx, c.base, mode)
		}
		if !isAbsent(err) {
			return err
		}
		// Another volume's delete has removed the parent, empty as it was.
	}
	return fmt.Errorf("%w: the parent directory was removed %d times while the volume was made: %v", nfs.ErrBusy, raceTries, err)
}

// settle makes good what another run for the same volume may have undone beneath
// this one by failing: the claim, and the directory while it was empty. If it
// was undone by a delete, the record is gone too, and nothing is to be made good.
func (c *creation) settle(ctx context.Context) error {
	if c.spec.Shared {
		return c.settleShared(ctx)
	}
	if err := c.l.dirs.refresh(ctx); err != nil {
		return err
	}
	if c.spec.RestoreArchive != "" && !c.remake {
		if err := c.reclaim(ctx); err != nil {
			return err
		}
		return c.bringBack(ctx)
	}
	owner, err := c.l.claimant(ctx, c.spec.Dir)
	if err != nil {
		return err
	}
	missing := c.findDir(ctx, lookForSure)
	if owner == c.key() && missing == nil {
		return nil
	}
	if missing != nil && !isAbsent(missing) {
		return missing
	}
	if missing != nil && !c.spec.Source.IsZero() && !c.remake {
		return c.withdraw(ctx)
	}
	if err := c.stillRecorded(ctx); err != nil {
		return err
	}
	if err := c.reclaim(ctx); err != nil {
		return err
	}
	c.claimed = true
	if missing != nil {
		if err := c.mkdir(ctx); err == nil {
			c.ownsDir = true
		} else if !isTaken(err) {
			return err
		}
		if err := setOwner(ctx, c.parent, c.base, c.spec); err != nil {
			return err
		}
	}
	return c.stillRecorded(ctx)
}

// undo removes what the run has made after it failed for good, in reverse order.
// After a failure that may be of the server or of time, everything stays for the
// retry to go on with, since another run may be at work on the same volume.
func (c *creation) undo(ctx context.Context, cause error) error {
	if ctx.Err() != nil || errors.Is(cause, nfs.ErrUnavailable) || errors.Is(cause, nfs.ErrStale) {
		return cause
	}
	if err := c.remove(ctx); err != nil {
		return fmt.Errorf("%w; and what was made so far could not be removed: %v", cause, err)
	}
	return cause
}

func (c *creation) remove(ctx context.Context) error {
	if !c.claimed {
		return nil
	}
	if c.spec.Shared {
		return c.retract(ctx)
	}
	r, err := c.l.recordForSure(ctx, c.id)
	if err != nil || r != nil && r.Dir == c.spec.Dir {
		return err
	}
	if err := c.l.dirs.refresh(ctx); err != nil {
		return err
	}
	if c.ownsDir {
		gone, err := c.s.removeEmpty(ctx, c.l, c.parent, c.spec.Dir, c.id)
		if err != nil {
			return err
		}
		if !gone {
			// The claim stays too, if it is ours: it is what says whose the directory is.
			klog.FromContext(ctx).Info("The directory of a volume that could not be made is in use and stays", "volume", c.spec.Name, "dir", c.spec.Dir)
			return nil
		}
	}
	if err := c.s.removeParents(ctx, c.spec.Dir, c.newParents); err != nil {
		return err
	}
	if err := c.release(ctx); err != nil {
		return err
	}
	if err := c.l.unclaim(ctx, c.spec.Dir, c.key()); err != nil {
		return err
	}
	if c.ownsDir {
		// A delete that moved it away by mistake may have brought it back since, and
		// left it to its claim.
		if _, err := c.s.removeEmpty(ctx, c.l, c.parent, c.spec.Dir, ""); err != nil {
			return err
		}
	}
	// A run that succeeded at the very same time must not lose what it relied on.
	r, err = c.l.recordForSure(ctx, c.id)
	if err != nil || r == nil || r.Dir != c.spec.Dir {
		return err
	}
	c.created = r.Created
	return c.settle(ctx)
}
