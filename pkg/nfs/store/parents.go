package store

import (
	"context"
	"fmt"
	"path"
)

// removeParents removes the count innermost parents of the directory dir as far
// as they are empty and have not become volumes.
func (s *Store) removeParents(ctx context.Context, dir string, count int) error {
	l, err := s.layout(ctx)
	if err != nil || l == nil {
		return err
	}
	for ; count > 0; count-- {
		dir = parentOf(dir)
		parent, _, err := s.walk(ctx, parentOf(dir), look)
		if isAbsent(err) {
			continue
		}
		if err != nil {
			return err
		}
		removed, err := s.removeEmpty(ctx, l, parent, dir, "")
		parent.close()
		if err != nil || !removed {
			return err
		}
	}
	return nil
}

// removeEmpty removes the directory dir, in its opened parent, if it is empty and
// no volume but that with the given id claims it, and says whether it is gone.
func (s *Store) removeEmpty(ctx context.Context, l *layout, parent *dir, dir, id string) (gone bool, err error) {
	owner, err := l.claimant(ctx, dir)
	if err != nil || owner != "" && (idOf(owner) == "" || idOf(owner) != id) {
		return false, err
	}
	switch err := parent.rmdir(ctx, path.Base(dir)); {
	case isAbsent(err):
		return true, nil
	case isNotEmpty(err):
		return false, nil
	case err != nil:
		return false, err
	}
	// Someone may have removed it before, and a volume been made there since; empty
	// as it was, it is made again.
	if err := l.dirs.refresh(ctx); err != nil {
		return true, err
	}
	key, err := l.claimant(ctx, dir)
	if group, shared := groupOf(key); err == nil && shared {
		return true, s.remakeShared(ctx, l, dir, group)
	}
	owner = idOf(key)
	if err != nil || owner == "" || owner == id {
		return true, err
	}
	r, err := l.recordForSure(ctx, owner)
	if err != nil || r == nil || r.Dir != dir {
		return true, err // its own create will find it missing
	}
	c := newCreation(s, l, r.spec())
	c.created = r.Created
	if err := c.restore(ctx); err != nil {
		return true, fmt.Errorf("restore the directory %q of the new volume %q, which was empty and removed by mistake: %w", dir, r.Name, err)
	}
	return true, nil
}

// isEmpty says whether nothing is in the directory.
func (d *dir) isEmpty(ctx context.Context) (empty bool, err error) {
	empty = true
	err = d.list(ctx, func([]string) error { empty = false; return nil })
	return empty, err
}
