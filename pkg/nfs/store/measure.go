package store

import (
	"context"
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// maxMeasured bounds the descriptors and the stack that measuring a tree takes.
const maxMeasured = 1000

// measure counts the files and the disk space of an item's tree. It changes nothing
// and follows no link.
func (s *Store) measure(ctx context.Context, t *task, kind nfs.ItemKind, key string) error {
	p, err := s.pathOf(ctx, kind, key)
	if err != nil || p == "" {
		return err
	}
	parent, _, err := s.walk(ctx, parentOf(p), lookForSure)
	if err != nil {
		return ignoreAbsent(err)
	}
	defer parent.close()
	return t.measure(ctx, parent, path.Base(p), 0)
}

func (s *Store) pathOf(ctx context.Context, kind nfs.ItemKind, key string) (string, error) {
	v, err := s.newView(ctx)
	if err != nil {
		return "", err
	}
	if v == nil {
		return "", fmt.Errorf("%w: the %s %q", nfs.ErrNotFound, kind, key)
	}
	defer v.close()
	item, err := v.item(ctx, kind, key)
	return item.Path, err
}

// measure adds the entry of that name, and all beneath it. What comes or goes
// meanwhile may or may not be counted.
func (t *task) measure(ctx context.Context, parent *dir, name string, depth int) error {
	var st unix.Stat_t
	err := parent.do(ctx, "lstat", name, func(fd int) error { return unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	if err != nil {
		return ignoreAbsent(err)
	}
	t.seen.Add(1)
	const unit = 512 // of st_blocks, see stat(3type)
	if !infoOf(&st).isDir() {
		t.bytes.Add(st.Blocks * unit / max(1, int64(st.Nlink)))
		return nil
	}
	t.bytes.Add(st.Blocks * unit)
	if depth == maxMeasured {
		return fmt.Errorf("%w: %q has more than %d levels of directories", nfs.ErrOutOfRange, path.Join(parent.path, name), maxMeasured)
	}
	d, err := parent.openDir(ctx, name)
	if err == nil {
		defer d.close()
		err = d.list(ctx, func(names []string) error {
			for _, name := range names {
				if err := t.measure(ctx, d, name, depth+1); err != nil {
					return err
				}
			}
			return nil
		})
	}
	switch {
	case errors.Is(err, nfs.ErrPermission):
		t.denied.Add(1)
		return nil
	case isNotDir(err): // it has become something else
		return nil
	}
	return ignoreAbsent(err)
}
