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

// leave takes the reference of a deleted volume out of its group, and says whether it
// was the last: then the directory is for this entry to take away, and no other.
// Which it is, is decided by putting a directory with the entry lastSuffix in the place
// of the group's, by a rename that works only where that is empty.
func (p *purger) leave(ctx context.Context, l *layout, own *dir, e *entry, r *record) (last bool, err error) {
	if !e.begun.Load() {
		if err := p.findMoved(ctx, l, own, e, r); err != nil || e.place != unknown {
			return err == nil, err // which is the last's alone to do
		}
		// Whoever began it may be slow and not dead.
		if err := p.fence(ctx, l, e.name); err != nil {
			return false, err
		}
	}
	groups, g, err := p.s.openGroup(ctx, r.Shared)
	if err != nil {
		return false, ignoreAbsent(err)
	}
	defer groups.close()
	defer g.close()
	refs, err := readReferences(ctx, g)
	if err != nil || refs.last == r.key() {
		return err == nil, ignoreAbsent(err)
	}
	// In this order, or a create might confirm its reference in between.
	for _, name := range []string{r.key() + newSuffix, r.key()} {
		if err := g.unlink(ctx, name); err != nil && !isAbsent(err) && !errors.Is(err, unix.ESTALE) {
			return false, err
		}
	}
	if err := g.sync(ctx); err != nil && !errors.Is(err, unix.ESTALE) {
		return false, err
	}
	for range raceTries {
		last, err := p.endGroup(ctx, own, e, groups, r)
		if err != nil || last {
			return last, err
		}
		stands, err := p.s.clearGroup(ctx, r.Shared)
		if err != nil {
			return false, err
		}
		if stands {
			return false, p.dropMark(ctx, own, e.name)
		}
	}
	return false, fmt.Errorf("%w: volumes were made in the shared directory %q %d times meanwhile", nfs.ErrBusy, r.Dir, raceTries)
}

// clearGroup removes the references of creates that are not done, if there are no
// others: those begin anew, in another group. It says whether there are others.
func (s *Store) clearGroup(ctx context.Context, group string) (stands bool, err error) {
	groups, g, err := s.openGroup(ctx, group)
	if err != nil {
		return isAbsent(err), ignoreAbsent(err)
	}
	defer groups.close()
	defer g.close()
	refs, err := readReferences(ctx, g)
	if err != nil || len(refs.confirmed) > 0 || refs.last != "" {
		return err == nil || isAbsent(err), ignoreAbsent(err)
	}
	for _, key := range refs.tentative {
		if err := ignoreAbsent(absentIfStale(g.unlink(ctx, key+newSuffix), g.path)); err != nil {
			return false, err
		}
	}
	return false, nil
}

// endGroup ends the group if it is empty.
func (p *purger) endGroup(ctx context.Context, own *dir, e *entry, groups *dir, r *record) (ended bool, err error) {
	mark := e.name + lastSuffix
	if err := own.mkdir(ctx, mark, 0o700); err != nil && !isTaken(err) {
		return false, err
	}
	d, err := own.openDir(ctx, mark)
	if err != nil {
		return false, err
	}
	defer d.close()
	if err := d.symlink(ctx, r.Dir, r.key()+lastSuffix); err != nil && !isTaken(err) {
		return false, err
	}
	err = own.rename(ctx, mark, groups, r.Shared)
	if isNotEmpty(err) {
		return false, nil
	}
	return err == nil, err
}

// dropMark removes what endGroup has made in the slot.
func (p *purger) dropMark(ctx context.Context, slot *dir, entry string) error {
	return p.remove(ctx, slot, entry+lastSuffix, nil, 0)
}

// removeGroup removes the group that the entry has ended, when its directory is away
// and its claim free.
func (s *Store) removeGroup(ctx context.Context, group string) error {
	for range raceTries {
		groups, g, err := s.openGroup(ctx, group)
		if err != nil {
			return ignoreAbsent(err)
		}
		err = emptyGroup(ctx, g)
		g.close()
		if err == nil {
			err = groups.rmdir(ctx, group)
		}
		groups.close()
		if !isNotEmpty(err) {
			return ignoreAbsent(err)
		}
	}
	klog.FromContext(ctx).Info("A group of shared volumes stays for a create to remove", "group", path.Join(sharedDir, group))
	return nil
}

func emptyGroup(ctx context.Context, g *dir) error {
	refs, err := readReferences(ctx, g)
	if err != nil {
		return err
	}
	names := []string{}
	for _, key := range refs.tentative {
		names = append(names, key+newSuffix)
	}
	if refs.last != "" {
		names = append(names, refs.last+lastSuffix)
	}
	for _, name := range names {
		if err := g.unlink(ctx, name); err != nil && !isAbsent(err) {
			return err
		}
	}
	return nil
}
