package store

import (
	"context"
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

const (
	claimSuffix  = ".claim"
	hiddenPrefix = ".nfs-csi-trash-"
)

// locate says in whose slot the directory of an entry is; "" if in none.
func (p *purger) locate(ctx context.Context, l *layout, own *dir, name string) (slot string, err error) {
	if _, err := own.lstat(ctx, name); !isAbsent(err) {
		return path.Base(own.path), err
	}
	err = p.otherSlots(ctx, l, func(other *dir) error {
		_, err := other.lstat(ctx, name)
		if err == nil {
			slot = path.Base(other.path)
		}
		return ignoreAbsent(err)
	})
	return slot, err
}

// finish ends the deletes of volumes with that id that were decided and still hold
// a claim, whoever began them, and says whether there was one.
func (s *Store) finish(ctx context.Context, l *layout, id string) (found bool, err error) {
	p := s.purge
	for _, name := range p.entriesFor(id) {
		err := p.complete(ctx, l, name)
		if errors.Is(err, errTakenOver) {
			continue
		}
		if err != nil {
			return true, err
		}
		found = true
	}
	if found {
		return true, nil
	}
	err = p.otherSlots(ctx, l, func(slot *dir) error {
		entries, err := entriesOf(ctx, slot)
		if err != nil {
			return err
		}
		for _, name := range entries {
			if of, _ := parseEntryName(name); of != id {
				continue
			}
			found = true
			err := p.adopt(ctx, l, slot, name)
			if err == nil {
				err = p.complete(ctx, l, name)
			}
			if err != nil && !isAbsent(err) && !errors.Is(err, errTakenOver) {
				return err
			}
		}
		return nil
	})
	return found, ignoreAbsent(err)
}

// errTakenOver says that the record of an entry is no longer in this store's slot.
var errTakenOver = fmt.Errorf("%w: another process has taken over the volume's delete", nfs.ErrBusy)

// complete does what is left of a delete after its decision, but for removing the
// files: the directory is in the trash (or the archive) then, and the claim free.
func (p *purger) complete(ctx context.Context, l *layout, name string) error {
	e, err := p.acquire(ctx, name)
	if err != nil {
		return err
	}
	defer p.release(e)
	if err = p.completeEntry(ctx, l, e); errors.Is(err, errTakenOver) {
		p.forget(e)
	}
	return err
}

func (p *purger) completeEntry(ctx context.Context, l *layout, e *entry) error {
	if e.completed.Load() || isTree(e.name) {
		return nil
	}
	own, err := l.slot(ctx)
	if err != nil {
		return err
	}
	if err = p.completeIn(ctx, l, own, e); err != nil && isTakenOver(ctx, own, e) {
		// Whatever came in the way may be what the other process has done.
		return errTakenOver
	}
	return err
}

// isTakenOver says whether another process has the record of the entry.
func isTakenOver(ctx context.Context, own *dir, e *entry) bool {
	err := own.refresh(ctx)
	if err == nil {
		_, err = own.lstat(ctx, e.name+recordSuffix)
	}
	return isAbsent(err) || errors.Is(err, nfs.ErrStale)
}

func (p *purger) completeIn(ctx context.Context, l *layout, own *dir, e *entry) error {
	r, err := l.entryRecord(ctx, own, e)
	if err != nil {
		return err
	}
	if r == nil {
		return errTakenOver
	}
	if !isOf(e.name, r.key()) {
		if err := p.findMoved(ctx, l, own, e, r); err != nil {
			return err
		}
		if e.place != inSlot && e.place != besideIt {
			return p.returnRecord(ctx, l, own, e, r)
		}
	}
	if r.file.marked() {
		e.changes = r.changes
	}
	last := true
	if r.Shared != "" && e.expired == "" {
		if last, err = p.leave(ctx, l, own, e, r); err != nil {
			return err
		}
	}
	if r.OnDelete != nfs.Retain || e.changes != "" || e.expired != "" {
		if err := p.collect(ctx, l, own, e, r, last); err != nil {
			return err
		}
	}
	if r.Restored.Archive != "" && e.expired == "" {
		if err := p.s.endReservation(ctx, l, e, r); err != nil {
			return err
		}
	}
	if r.OnDelete == nfs.Archive && e.expired == "" {
		if err := p.s.archive(ctx, l, own, e, r); err != nil {
			// If another process had begun this delete and was not dead, but slow, it may
			// have moved the directory since.
			e.place = unknown
			return err
		}
	}
	if last {
		if err := p.s.removeParents(ctx, r.Dir, r.ParentsCreated); err != nil {
			return err
		}
		if err := p.freeClaim(ctx, l, own, e, r); err != nil {
			return err
		}
	}
	if last && r.Shared != "" && e.expired == "" {
		if err := p.s.removeGroup(ctx, r.Shared); err != nil {
			return err
		}
	}
	e.completed.Store(true)
	return nil
}

// returnRecord puts back the record of a volume that was made after the delete had
// read that of an earlier one with its id.
func (p *purger) returnRecord(ctx context.Context, l *layout, own *dir, e *entry, r *record) error {
	if err := own.rename(ctx, e.name+recordSuffix, l.volumes, r.ID+recordSuffix); err != nil {
		return err
	}
	p.forget(e)
	return fmt.Errorf("%w: another process has just deleted the volume and made it anew", nfs.ErrBusy)
}

// entryRecord reads the record of the entry's volume; nil when another process has
// taken that over.
func (l *layout) entryRecord(ctx context.Context, own *dir, e *entry) (*record, error) {
	name := e.name + recordSuffix
	data, file, err := readDocument(ctx, own, name)
	if isAbsent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !isArchive(data) {
		id, _ := parseEntryName(e.name)
		return l.recordOf(ctx, own, name, id, data, file)
	}
	a, err := decodeArchive(path.Join(own.path, name), data)
	if err != nil {
		return nil, err
	}
	e.expired = a.Target
	return &a.Volume, nil
}

// collect sees to it that the directory is where the purge finds it. It was moved
// by the delete itself, unless that was killed or failed. What is shared stays where it
// is, unless it is the last volume of its group.
func (p *purger) collect(ctx context.Context, l *layout, own *dir, e *entry, r *record, last bool) error {
	if err := p.findMoved(ctx, l, own, e, r); err != nil || e.place != unknown {
		return err
	}
	if r.OnDelete == nfs.Retain || !last {
		// If it was changed to that after the delete had read something else, the
		// directory is in the trash, and was found.
		e.place = nowhere
		return nil
	}
	if r.Shared == "" || !e.begun.Load() {
		if err := p.fence(ctx, l, e.name); err != nil {
			return err
		}
	}
	base := e.expired
	if base == "" {
		base = path.Base(r.Dir)
		if err := l.dirs.refresh(ctx); err != nil {
			return err
		}
		key, err := l.claimant(ctx, r.Dir)
		if err != nil {
			return err
		}
		if key != r.claim() { // it is gone, or no longer this volume's
			e.place = nowhere
			return nil
		}
	}
	parent, _, err := p.s.walk(ctx, parentOf(r.Dir), lookForSure)
	if isAbsent(err) {
		e.place = nowhere
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.close()
	e.slot = path.Base(own.path)
	e.place, err = moveAway(ctx, parent, base, own, e.name)
	return err
}

// findMoved finds the directory where an earlier attempt has moved it.
func (p *purger) findMoved(ctx context.Context, l *layout, own *dir, e *entry, r *record) error {
	if e.place != unknown {
		return nil
	}
	parent, _, err := p.s.walk(ctx, parentOf(r.Dir), lookForSure)
	if err != nil && !isAbsent(err) {
		return err
	}
	if parent != nil {
		defer parent.close()
		switch err := parent.rmdir(ctx, hiddenPrefix+e.name); {
		case isNotEmpty(err):
			e.place = besideIt
			return nil
		case err != nil && !isAbsent(err):
			return err
		}
	}
	if e.slot, err = p.locate(ctx, l, own, e.name); err == nil && e.slot != "" {
		e.place = inSlot
	}
	return err
}

// place says where a delete has moved the directory.
type place int

const (
	unknown  place = iota
	nowhere        // it was missing, or is removed already
	inSlot         // as the entry's name
	besideIt       // in a hidden directory beside its old name, on another file system than the trash
)

// moveAway moves the directory to the slot or, from another file system of the
// server, into a hidden directory beside it. ENOENT means that it is the slot
// that is missing.
func moveAway(ctx context.Context, parent *dir, base string, own *dir, name string) (place, error) {
	err := parent.rename(ctx, base, own, name)
	switch {
	case err == nil:
		return inSlot, nil
	case isAbsent(err):
		if gone := own.stat(ctx); gone != nil {
			return unknown, gone
		}
		return nowhere, nil
	case !errors.Is(err, unix.EXDEV):
		return unknown, err
	}
	hidden := hiddenPrefix + name
	if err := parent.mkdir(ctx, hidden, 0o700); err != nil {
		return unknown, err
	}
	to, err := parent.openDir(ctx, hidden)
	if err != nil {
		return unknown, err
	}
	defer to.close()
	// Whoever takes the entry over takes its record away first and then this hidden
	// directory: so either the record is missing here, or the move fails.
	if _, err := own.lstat(ctx, name+recordSuffix); err != nil {
		return unknown, errors.Join(err, parent.rmdir(ctx, hidden))
	}
	err = parent.rename(ctx, base, to, name)
	if isAbsent(err) {
		return nowhere, ignoreAbsent(parent.rmdir(ctx, hidden))
	}
	if err != nil {
		return unknown, err
	}
	return besideIt, nil
}

// freeClaim takes away the claim of the directory, if it is this very volume's.
func (p *purger) freeClaim(ctx context.Context, l *layout, own *dir, e *entry, r *record) error {
	if err := l.dirs.refresh(ctx); err != nil {
		return err
	}
	owner, err := l.claimant(ctx, r.Dir)
	if err != nil || owner != r.claim() {
		return err
	}
	out := e.name + claimSuffix
	e.claim = true
	if err := l.dirs.rename(ctx, claimName(r.Dir), own, out); err != nil {
		if gone := own.stat(ctx); gone != nil { // and not the claim
			return gone
		}
		return ignoreAbsent(err)
	}
	text, err := own.readlink(ctx, out)
	if err != nil {
		return ignoreAbsent(err)
	}
	if text != owner {
		klog.FromContext(ctx).Info("A claim was made at the moment that another was given up, and is put back", "dir", r.Dir, "claim", text)
		if err := p.putBack(ctx, l, r.Dir, text); err != nil {
			return err
		}
	}
	err = ignoreAbsent(own.unlink(ctx, out))
	e.claim = err != nil
	return err
}

// putBack returns its claim to another volume, unless the create of that has failed
// meanwhile, which would leave the claim for good.
func (p *purger) putBack(ctx context.Context, l *layout, dir, key string) error {
	for range raceTries {
		if err := l.dirs.symlink(ctx, key, claimName(dir)); err != nil {
			if isTaken(err) {
				err = nil
			}
			return err
		}
		if needed, err := p.needsClaim(ctx, l, dir, key); err != nil || needed {
			return err
		}
		if err := l.unclaim(ctx, dir, key); err != nil {
			return err
		}
		// A create that was at work has either seen that, or is seen here.
		if needed, err := p.needsClaim(ctx, l, dir, key); err != nil || !needed {
			return err
		}
	}
	return fmt.Errorf("%w: the directory %q was claimed and given up %d times meanwhile", nfs.ErrBusy, dir, raceTries)
}

// needsClaim says whether the volume with the key is there, or a part of it.
func (p *purger) needsClaim(ctx context.Context, l *layout, dir, key string) (bool, error) {
	id := idOf(key)
	if id == "" { // no store wrote that
		return true, nil
	}
	r, err := l.recordForSure(ctx, id)
	if err != nil || r != nil && r.key() == key {
		return err == nil, err
	}
	d, _, err := p.s.walk(ctx, dir, lookForSure)
	if isAbsent(err) {
		return false, nil
	}
	d.close()
	return true, nil // also if it cannot be opened
}

// take removes what a completed delete has put into the trash; its record last,
// since without it nothing in a slot is touched.
func (p *purger) take(ctx context.Context, l *layout, e *entry) error {
	own, err := l.slot(ctx)
	if err != nil {
		return err
	}
	if isTree(e.name) {
		return p.remove(ctx, own, e.name, nil, 0)
	}
	switch e.place {
	case inSlot:
		err = p.takeFrom(ctx, l, own, e)
	case besideIt:
		err = p.takeHidden(ctx, l, own, e)
	}
	if err != nil {
		return err
	}
	if e.claim {
		if err := p.takeClaim(ctx, l, own, e.name+claimSuffix); err != nil {
			return err
		}
	}
	if e.changes != "" {
		if err := p.takeChanges(ctx, l, e.changes); err != nil {
			return err
		}
	}
	return ignoreAbsent(own.unlink(ctx, e.name+recordSuffix))
}

// slotOf opens the slot that the entry's directory is in.
func (p *purger) slotOf(ctx context.Context, l *layout, own *dir, e *entry) (*dir, error) {
	if e.slot == path.Base(own.path) {
		return own, nil
	}
	return l.trash.openDir(ctx, e.slot)
}

func (p *purger) takeFrom(ctx context.Context, l *layout, own *dir, e *entry) error {
	slot, err := p.slotOf(ctx, l, own, e)
	if err != nil {
		return ignoreAbsent(err)
	}
	defer slot.close()
	if err := p.remove(ctx, slot, e.name, nil, 0); err != nil || slot == own {
		return err
	}
	return ignoreAbsent(ignoreNotEmpty(l.trash.rmdir(ctx, e.slot)))
}

func (p *purger) takeHidden(ctx context.Context, l *layout, own *dir, e *entry) error {
	r, err := l.entryRecord(ctx, own, e)
	if err != nil || r == nil {
		return err
	}
	parent, _, err := p.s.walk(ctx, parentOf(r.Dir), lookForSure)
	if err != nil {
		return ignoreAbsent(err)
	}
	err = p.remove(ctx, parent, hiddenPrefix+e.name, nil, 0)
	parent.close()
	if err != nil {
		return err
	}
	// Only now its parents may be empty.
	return p.s.removeParents(ctx, r.Dir, r.ParentsCreated)
}

// takeClaim removes a claim on its way out, from whose slot ever.
func (p *purger) takeClaim(ctx context.Context, l *layout, own *dir, name string) error {
	if err := own.unlink(ctx, name); !isAbsent(err) {
		return err
	}
	return p.otherSlots(ctx, l, func(slot *dir) error { return ignoreAbsent(slot.unlink(ctx, name)) })
}
