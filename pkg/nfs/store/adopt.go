package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// adoption gives an existing directory a record. It is a creation of which the
// directory was there before, so it takes the same steps in the same order, with
// the same exclusive operations: claim, record. What only a directory with a
// content needs is that no other volume lies in it (see checkInside).
type adoption struct {
	*creation
	task *task
}

// adopt makes the existing directory a volume or, without Commit, says what that
// would be. The directory itself is not changed. Adopting it again gives the same
// volume. Errors: ErrInvalid; ErrNotFound without the directory; ErrConflict when the
// name or the directory is another volume's, or one lies in the other; ErrForeign
// when it is no directory or the record is another instance's; ErrBusy.
func (s *Store) adopt(ctx context.Context, t *task, which nfs.Task) ([]nfs.Item, error) {
	spec := nfs.VolumeSpec{Name: which.Name, Dir: which.Dir, MinBytes: which.CapacityBytes, OnDelete: which.OnDelete, Claim: which.Claim}
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	l, err := s.layout(ctx)
	if err == nil && l == nil && which.Commit {
		l, err = s.ensureLayout(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("prepare the directory %q: %w", ownDir, err)
	}
	a := &adoption{creation: newCreation(s, l, spec), task: t}
	defer a.close()
	item := nfs.Item{Kind: nfs.ItemVolume, Key: a.id, Path: spec.Dir, Driver: s.opts.DriverName, Instance: s.opts.InstanceID}
	if item.Volume, err = a.run(ctx, which.Commit); err != nil {
		s.reopenAfter(l, err)
		return nil, fmt.Errorf("directory %q: %w", spec.Dir, raced(err))
	}
	item.Since = item.Volume.Created
	return []nfs.Item{item}, nil
}

func (a *adoption) run(ctx context.Context, commit bool) (nfs.Volume, error) {
	if err := a.findMode(ctx); err != nil {
		return nfs.Volume{}, err
	}
	if a.l == nil { // nothing was ever made here, so nothing is in the way
		return newRecord(a.s.opts, a.spec, 0, a.created).volume(), nil
	}
	existing, err := a.l.recordForSure(ctx, a.id)
	if err != nil {
		return nfs.Volume{}, err
	}
	if existing != nil {
		return a.same(ctx, existing)
	}
	if err := a.checkAncestors(ctx); err != nil {
		return nfs.Volume{}, err
	}
	key, _, err := a.holder(ctx, a.spec.Dir)
	if err != nil {
		return nfs.Volume{}, err
	}
	if key != "" && idOf(key) != a.id {
		return nfs.Volume{}, a.taken(ctx, a.spec.Dir, key)
	}
	if err := a.checkInside(ctx); err != nil {
		return nfs.Volume{}, err
	}
	if !commit {
		return newRecord(a.s.opts, a.spec, 0, a.created).volume(), nil
	}
	if err := a.build(ctx); err != nil {
		return nfs.Volume{}, a.undo(ctx, err)
	}
	if a.recordFound != nil {
		v, err := a.same(ctx, a.recordFound)
		if err != nil {
			return nfs.Volume{}, a.undo(ctx, err)
		}
		return v, nil
	}
	klog.FromContext(ctx).V(2).Info("A directory was adopted as a volume", "dir", a.spec.Dir, "volume", a.spec.Name, "onDelete", a.spec.OnDelete)
	return a.record.volume(), nil
}

// findMode takes the mode of the directory for that of the volume.
func (a *adoption) findMode(ctx context.Context) error {
	parent, _, err := a.s.walk(ctx, parentOf(a.spec.Dir), lookForSure)
	if isAbsent(err) {
		return fmt.Errorf("%w: there is no such directory on the export", nfs.ErrNotFound)
	}
	if err != nil {
		return err
	}
	defer parent.close()
	if err := parent.refresh(ctx); err != nil {
		return err
	}
	st, err := parent.lstat(ctx, a.base)
	switch {
	case isAbsent(err):
		return fmt.Errorf("%w: there is no such directory on the export", nfs.ErrNotFound)
	case err != nil:
		return err
	case !st.isDir():
		return fmt.Errorf("%w: it is a file or a symbolic link", nfs.ErrForeign)
	}
	a.spec.Mode = nfs.FileMode(st.mode & 0o7777)
	return nil
}

// same returns the volume of a record that is there already, if it is the one
// asked for.
func (a *adoption) same(ctx context.Context, r *record) (nfs.Volume, error) {
	if r.Dir != a.spec.Dir {
		return nfs.Volume{}, fmt.Errorf("%w: the name %q is taken by the volume in directory %q", nfs.ErrConflict, a.spec.Name, r.Dir)
	}
	a.spec.Mode, a.spec.UID, a.spec.GID = r.spec().Mode, r.UID, r.GID
	return a.answer(ctx, r)
}

func (a *adoption) build(ctx context.Context) error {
	if err := a.claimExisting(ctx); err != nil || a.recordFound != nil {
		return err
	}
	// Whoever makes a volume above or within looks at the claims after making its
	// own, and so does this: one of the two sees the other's.
	if err := a.l.dirs.refresh(ctx); err != nil {
		return err
	}
	if err := a.checkAncestors(ctx); err != nil {
		return err
	}
	if err := a.checkInside(ctx); err != nil {
		return err
	}
	if err := a.findMode(ctx); err != nil {
		return err
	}
	return a.publish(ctx, newRecord(a.s.opts, a.spec, 0, a.created))
}

// claimExisting claims the directory, or finds that it is claimed for this volume.
func (a *adoption) claimExisting(ctx context.Context) error {
	for range raceTries {
		err := a.l.dirs.symlink(ctx, a.key(), claimName(a.spec.Dir))
		if err == nil {
			a.claimed = true
			return nil
		}
		if !isTaken(err) {
			return err
		}
		key, r, err := a.holder(ctx, a.spec.Dir)
		switch {
		case err != nil:
			return err
		case key == "": // it has come and gone
		case idOf(key) == a.id:
			a.recordFound = r
			_, a.created = parseKey(key)
			a.adopted, a.claimed = true, true
			return nil
		default:
			return a.taken(ctx, a.spec.Dir, key)
		}
	}
	return fmt.Errorf("%w: the directory was claimed and given up %d times meanwhile", nfs.ErrBusy, raceTries)
}

// checkInside refuses a directory in which a volume or an archive lies. Records say
// where those are. A volume that is being made has a claim already, whose name is
// that of a directory only by its hash, but it has made the directory when it may
// have looked at the claims above it for the last time: so where there are such
// claims, every directory beneath is looked at.
func (a *adoption) checkInside(ctx context.Context) error {
	v, err := a.s.newView(ctx)
	if err != nil || v == nil {
		return err
	}
	defer v.close()
	claims, err := namesOf(ctx, v.l.dirs, "")
	if err != nil {
		return err
	}
	pending := map[string]bool{}
	for _, name := range claims {
		pending[name] = true
	}
	delete(pending, claimName(a.spec.Dir))
	for _, kind := range []nfs.ItemKind{nfs.ItemVolume, nfs.ItemArchive} {
		keys, err := v.keys(ctx, kind)
		if err != nil {
			return err
		}
		for _, key := range keys {
			item, err := v.item(ctx, kind, key)
			if errors.Is(err, nfs.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			a.task.seen.Add(1)
			if item.Path != "" && strings.HasPrefix(item.Path, a.spec.Dir+"/") {
				return fmt.Errorf("%w: the %s %q of %q lies in it, and a volume cannot lie inside another", nfs.ErrConflict, kind, item.Path, item.Volume.Name)
			}
			if kind == nfs.ItemVolume && item.Path != "" {
				delete(pending, claimName(item.Path))
			}
		}
	}
	if len(pending) == 0 {
		return nil
	}
	d, _, err := a.s.walk(ctx, a.spec.Dir, lookForSure)
	if err != nil {
		return err
	}
	defer d.close()
	return a.checkClaims(ctx, d, a.spec.Dir, pending, 0)
}

// checkClaims looks for directories beneath d, at the path p, that have one of the
// claims.
func (a *adoption) checkClaims(ctx context.Context, d *dir, p string, claims map[string]bool, depth int) error {
	if depth == maxMeasured {
		return fmt.Errorf("%w: it has more than %d levels of directories", nfs.ErrOutOfRange, maxMeasured)
	}
	if err := d.refresh(ctx); err != nil {
		return err
	}
	return d.list(ctx, func(names []string) error {
		for _, name := range names {
			at := path.Join(p, name)
			a.task.seen.Add(1)
			if claims[claimName(at)] {
				return fmt.Errorf("%w: the directory %q in it is being made or deleted as a volume; if nothing finishes that, remove its claim %s",
					nfs.ErrBusy, at, path.Join(a.l.dirs.path, claimName(at)))
			}
			sub, err := d.openDir(ctx, name)
			if isAbsent(err) || isNotDir(err) {
				continue
			}
			if err != nil {
				return err
			}
			err = a.checkClaims(ctx, sub, at, claims, depth+1)
			sub.close()
			if err != nil {
				return err
			}
		}
		return nil
	})
}
