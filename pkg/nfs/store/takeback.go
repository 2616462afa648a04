package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// reservedBy stands in the name of an archive's record between the archive's key and
// that of the volume which takes it back. No other name has it.
const reservedBy = "+"

// parseArchiveName understands the names of the records of archives; by is the key of
// the volume that takes the archive back, if one does.
func parseArchiveName(name string) (key, by string, ok bool) {
	name, ok = strings.CutSuffix(name, recordSuffix)
	key, by, reserved := strings.Cut(name, reservedBy)
	return key, by, ok && idOf(key) != "" && (!reserved || idOf(by) != "")
}

func (c *creation) reservedName(key string) string {
	return key + reservedBy + c.key() + recordSuffix
}

// takeBack makes ready what the volume is made of: an archive that no other volume
// takes, reserved for this one, and a place for its directory. It is moved there once
// the volume's record stands (see bringBack).
func (c *creation) takeBack(ctx context.Context) error {
	key, a, err := c.reserve(ctx)
	if err != nil {
		return err
	}
	c.restored = restored{Archive: key, Name: a.Volume.Name}
	from, _, err := c.s.walk(ctx, parentOf(a.Volume.Dir), lookForSure)
	if err != nil {
		return err
	}
	defer from.close()
	c.parent.close()
	if c.parent, c.newParents, err = c.s.walk(ctx, parentOf(c.spec.Dir), makeMissing); err != nil {
		return err
	}
	switch err := c.findDir(ctx, lookForSure); {
	case err == nil:
		if c.recordFound, err = c.l.recordForSure(ctx, c.id); err == nil && c.recordFound == nil {
			err = c.foreign()
		}
		return err
	case !isAbsent(err):
		return err
	}
	same, err := sameFileSystem(ctx, from, c.parent)
	if err == nil && !same {
		err = fmt.Errorf("%w: the archive %q is on another file system of the server: give it a subDir beside it", nfs.ErrInvalid, path.Join(from.path, a.Target))
	}
	if err != nil {
		return err
	}
	return setOwner(ctx, from, a.Target, c.spec)
}

// reserve finds the archive that is asked for, and makes it this volume's by renaming
// its record, which only one can do. An archive whose directory is not there is not
// complete, and is not touched.
func (c *creation) reserve(ctx context.Context) (key string, a *archiveRecord, err error) {
	for range raceTries {
		mine, free, others, err := c.candidates(ctx)
		switch {
		case err != nil:
			return "", nil, err
		case mine != "": // by an earlier attempt
			c.reserved = mine
			a, _, err := c.l.archived(ctx, c.reservedName(mine))
			return mine, a, err
		case len(free) == 0 && len(others) > 0:
			return "", nil, fmt.Errorf("%w: the archive %q is being taken back by the volume with id %q: if nothing finishes that, see %s", nfs.ErrConflict,
				c.spec.RestoreArchive, idOf(others[0]), c.l.archive.path)
		case len(free) == 0:
			return "", nil, fmt.Errorf("%w: there is no archive with the id or original name %q, or it was removed or taken back: the records of those there are lie in %s",
				nfs.ErrNotFound, c.spec.RestoreArchive, c.l.archive.path)
		case len(free) > 1:
			var ids []string
			for key, a := range free {
				ids = append(ids, fmt.Sprintf("%s (%s)", key, a.Archived.Format(time.DateTime)))
			}
			slices.Sort(ids)
			return "", nil, fmt.Errorf("%w: a volume of the name %q was archived %d times: ask for one by its id: %s", nfs.ErrInvalid, c.spec.RestoreArchive, len(ids), strings.Join(ids, ", "))
		}
		for key, a := range free {
			err := c.l.archive.rename(ctx, key+recordSuffix, c.l.archive, c.reservedName(key))
			if err == nil {
				c.reserved = key
				c.s.purge.archives.drop(key)
				return key, a, c.l.archive.sync(ctx)
			}
			if !isAbsent(err) {
				return "", nil, err
			}
		}
	}
	return "", nil, fmt.Errorf("%w: the archive %q has changed %d times meanwhile", nfs.ErrBusy, c.spec.RestoreArchive, raceTries)
}

// candidates returns the archive that is reserved for this volume, those that could
// be, and who has reserved others.
func (c *creation) candidates(ctx context.Context) (mine string, free map[string]*archiveRecord, others []string, err error) {
	want := c.spec.RestoreArchive
	byName := map[string]bool{}
	if err := c.l.archive.refresh(ctx); err != nil {
		return "", nil, nil, err
	}
	err = c.l.archive.list(ctx, func(names []string) error {
		for _, name := range names {
			key, by, ok := parseArchiveName(name)
			switch {
			case !ok || key != want && idOf(key) != nfs.RecordID(want):
			case by == c.key():
				mine = key
			case by != "":
				others = append(others, by)
			default:
				byName[key] = true
			}
		}
		return nil
	})
	if err != nil || mine != "" {
		return mine, nil, nil, err
	}
	free = map[string]*archiveRecord{}
	for key := range byName {
		a, err := c.takeable(ctx, key)
		if err != nil {
			return "", nil, nil, err
		}
		if a == nil {
			continue
		}
		if key == want {
			return "", map[string]*archiveRecord{key: a}, nil, nil
		}
		if a.Volume.Name == want {
			free[key] = a
		}
	}
	return "", free, others, nil
}

// takeable returns the archive's record if it is this driver's and its directory is
// in place.
func (c *creation) takeable(ctx context.Context, key string) (*archiveRecord, error) {
	a, _, err := c.l.archived(ctx, key+recordSuffix)
	if isAbsent(err) {
		return nil, nil
	}
	if err == nil {
		err = c.s.opts.checkOwner(&a.Volume)
	}
	if err != nil {
		return nil, err
	}
	there, err := c.s.holdsArchive(ctx, a)
	if err == nil && !there {
		klog.FromContext(ctx).Info("An archive is not where its record says", "archive", key, "dir", path.Join(parentOf(a.Volume.Dir), a.Target))
		a = nil
	}
	return a, err
}

// holdsArchive says whether the archive's directory is in its place.
func (s *Store) holdsArchive(ctx context.Context, a *archiveRecord) (bool, error) {
	parent, _, err := s.walk(ctx, parentOf(a.Volume.Dir), lookForSure)
	if err != nil {
		return false, ignoreAbsent(err)
	}
	defer parent.close()
	if err := parent.refresh(ctx); err != nil {
		return false, err
	}
	held, err := parent.hold(ctx, a.Target)
	switch {
	case err == nil:
		held.close()
		return true, nil
	case isAbsent(err):
		return false, nil
	}
	return false, notDirectory(err, path.Join(parent.path, a.Target))
}

// release gives up what was reserved for a volume that does not come to be.
func (c *creation) release(ctx context.Context) error {
	if c.reserved == "" {
		return nil
	}
	return ignoreAbsent(c.l.archive.rename(ctx, c.reservedName(c.reserved), c.l.archive, c.reserved+recordSuffix))
}

// bringBack moves the archive to the volume's place, once the volume's record stands,
// and ends the reservation. From the record on, every run goes forward only: it is
// repeated until the archive is in place, by whomever.
func (c *creation) bringBack(ctx context.Context) error {
	r, err := c.l.recordForSure(ctx, c.id)
	if err == nil && (r == nil || r.key() != c.key() || r.Restored.Archive == "") {
		err = fmt.Errorf("%w: the volume was deleted as soon as it was made", nfs.ErrBusy)
	}
	if err != nil {
		return err
	}
	key := r.Restored.Archive
	name := c.reservedName(key)
	for range raceTries {
		a, _, err := c.l.archived(ctx, name)
		if isAbsent(err) {
			// Ended by another run; or given up by one that failed before the record stood.
			if err := c.l.archive.refresh(ctx); err != nil {
				return err
			}
			err = c.l.archive.rename(ctx, key+recordSuffix, c.l.archive, name)
			if isAbsent(err) {
				return c.broughtBack(ctx)
			}
			if err == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
		err = c.moveBack(ctx, a)
		if isAbsent(err) {
			continue
		}
		if err != nil {
			return err
		}
		c.s.purge.archives.drop(key)
		return ignoreAbsent(c.l.archive.unlink(ctx, name))
	}
	return fmt.Errorf("%w: the archive %q is not where its record says", nfs.ErrForeign, key)
}

// moveBack moves the archive's directory, unless that has been done. ENOENT means
// that something has changed meanwhile.
func (c *creation) moveBack(ctx context.Context, a *archiveRecord) error {
	there, err := c.s.holdsArchive(ctx, a)
	if err != nil {
		return err
	}
	if !there {
		return c.findDir(ctx, lookForSure)
	}
	from, _, err := c.s.walk(ctx, parentOf(a.Volume.Dir), lookForSure)
	if err != nil {
		return err
	}
	defer from.close()
	to, _, err := c.s.walk(ctx, parentOf(c.spec.Dir), makeMissing)
	if err != nil {
		return err
	}
	defer to.close()
	// rename(2) would put it in the place of an empty directory.
	if _, err := to.lstat(ctx, c.base); err == nil {
		if there, err = c.s.holdsArchive(ctx, a); err == nil && there {
			err = c.foreign()
		} else if err == nil { // another run was faster
			err = opError("move", path.Join(from.path, a.Target), unix.ENOENT)
		}
		return err
	}
	if err := from.rename(ctx, a.Target, to, c.base); err != nil {
		return err
	}
	if err := errors.Join(from.sync(ctx), to.sync(ctx)); err != nil {
		return err
	}
	err = c.stillRecorded(ctx)
	if errors.Is(err, nfs.ErrBusy) {
		// Its delete has found no directory, and left the archive to be one again.
		if undo := to.rename(ctx, c.base, from, a.Target); undo != nil && !isAbsent(undo) {
			return fmt.Errorf("%w; and its archive could not be put back: %v", err, undo)
		}
	}
	return err
}

// broughtBack ends a run that has found the archive neither free nor reserved.
func (c *creation) broughtBack(ctx context.Context) error {
	err := c.findDir(ctx, lookForSure)
	if !isAbsent(err) || c.record == nil {
		return ignoreAbsent(err) // which the caller looks for
	}
	// Another volume has it, so this one is none. Nobody was told that it is.
	if err := c.s.deleteRecorded(ctx, c.l, c.record); err != nil {
		return err
	}
	return fmt.Errorf("%w: the archive %q was taken by another volume, or has expired", nfs.ErrNotFound, c.restored.Archive)
}

// endReservation does, for a deleted volume, what a create that was killed has left
// to do: the archive becomes free again if its directory had not become the volume's.
func (s *Store) endReservation(ctx context.Context, l *layout, e *entry, r *record) error {
	name := r.Restored.Archive + reservedBy + r.key() + recordSuffix
	if _, err := l.archive.lstat(ctx, name); err != nil {
		return ignoreAbsent(err)
	}
	had := e.place == inSlot || e.place == besideIt
	if r.OnDelete == nfs.Retain {
		c := newCreation(s, l, r.spec())
		err := c.findDir(ctx, lookForSure)
		if err != nil && !isAbsent(err) {
			return err
		}
		had = err == nil
	}
	if had {
		return ignoreAbsent(l.archive.unlink(ctx, name))
	}
	return ignoreAbsent(l.archive.rename(ctx, name, l.archive, r.Restored.Archive+recordSuffix))
}

// sameFileSystem says whether a rename from one to the other can succeed.
func sameFileSystem(ctx context.Context, a, b *dir) (bool, error) {
	var devices [2]uint64
	for i, d := range []*dir{a, b} {
		err := d.do(ctx, "stat", "", func(fd int) error {
			var st unix.Stat_t
			err := unix.Fstat(fd, &st)
			devices[i] = st.Dev
			return err
		})
		if err != nil {
			return false, err
		}
	}
	return devices[0] == devices[1], nil
}
