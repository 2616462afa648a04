package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

const treeSuffix = ".tree"

// isTree says that an entry of the trash is a tree that only the store itself has
// used: a snapshot, or what a copy has made. It needs no record, for there is nothing
// to do but to remove it, and is moved whole from slot to slot.
func isTree(entry string) bool {
	name, ok := strings.CutSuffix(entry, treeSuffix)
	if ok {
		_, ok = parseEntryName(name)
	}
	return ok
}

// decisive is the name of what makes the slot that holds it the entry's.
func decisive(entry string) string {
	if isTree(entry) {
		return entry
	}
	return entry + recordSuffix
}

// toTrash moves what only the store itself uses to the trash, in one rename, which
// decides. It is no error if it is gone. The id is for people who look there.
func (s *Store) toTrash(ctx context.Context, l *layout, d *dir, name, id string) error {
	return s.treeToTrash(ctx, l, d, name, id, 0)
}

// treeToTrash is toTrash of the directory with that inode number, unless it is 0.
// Another of that name, made at this moment, is put back.
func (s *Store) treeToTrash(ctx context.Context, l *layout, d *dir, name, id string, ino uint64) error {
	p := s.purge
	for range raceTries {
		own, err := l.slot(ctx)
		if err != nil {
			return err
		}
		e := p.beginAs(newEntryName(id, time.Now()) + treeSuffix)
		if err = d.rename(ctx, name, own, e.name); err == nil {
			err = s.checkTree(ctx, own, e, d, name, ino)
			p.release(e)
			return err
		}
		p.forget(e)
		p.release(e)
		if !isAbsent(err) && !errors.Is(err, nfs.ErrStale) {
			return err
		}
		switch gone := l.checkSlot(ctx, own); {
		case gone == nil:
			return ignoreAbsent(err)
		case !errors.Is(gone, nfs.ErrStale):
			return gone
		}
	}
	return fmt.Errorf("%w: another process removes what this one has in the trash again and again", nfs.ErrBusy)
}

func (s *Store) checkTree(ctx context.Context, own *dir, e *entry, from *dir, name string, ino uint64) error {
	if ino == 0 {
		return nil
	}
	st, err := own.lstat(ctx, e.name)
	if err != nil || st.ino == ino {
		return ignoreAbsent(err)
	}
	if err := own.rename(ctx, e.name, from, name); err != nil {
		return err
	}
	s.purge.forget(e)
	return fmt.Errorf("%w: %q was deleted and made anew at this moment", nfs.ErrBusy, path.Join(from.path, name))
}
