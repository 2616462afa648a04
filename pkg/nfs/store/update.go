package store

import (
	"context"
	"fmt"
	"path"
	"reflect"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// UpdateVolume changes the volume, and its directory where the change names an
// owner or a mode, and returns what it is then. It may be repeated. A delete that
// has begun before goes by what it has read. Errors: ErrInvalid; ErrNotFound;
// ErrOutOfRange when the volume is larger than the change allows; ErrForeign when
// the record is another instance's or cannot be read, and when the directory is
// missing; ErrBusy when the same volume is changed or deleted elsewhere at this
// moment; ErrFull, ErrPermission, ErrUnavailable, ErrStale.
func (s *Store) UpdateVolume(ctx context.Context, id string, change nfs.VolumeChange) (nfs.Volume, error) {
	defer s.active.begin()()
	if err := checkChange(id, change); err != nil {
		return nfs.Volume{}, fmt.Errorf("update volume %q: %w", id, err)
	}
	l, err := s.layout(ctx)
	if err == nil && l == nil {
		err = nfs.ErrNotFound
	}
	var r *record
	if err == nil {
		r, err = s.update(ctx, l, id, change)
		s.reopenAfter(l, err)
	}
	if err = raced(err); err != nil {
		return nfs.Volume{}, fmt.Errorf("update volume %q: %w", id, err)
	}
	return r.volume(), nil
}

func checkChange(id string, c nfs.VolumeChange) error {
	if err := nfs.CheckRecordID(id); err != nil {
		return err
	}
	// What a volume may become is what one may be made with.
	spec := nfs.VolumeSpec{Name: id, Dir: id, MinBytes: c.MinBytes, MaxBytes: c.MaxBytes, OnDelete: nfs.Delete}
	if c.OnDelete != nil {
		spec.OnDelete = *c.OnDelete
	}
	if c.ArchiveRetention != nil {
		spec.ArchiveRetention = *c.ArchiveRetention
	}
	if c.Mode != nil {
		spec.Mode = *c.Mode
	}
	return checkSpec(spec)
}

// update repeats: read the record; if it is not as asked, make the next change. So
// it ends by reading what was asked for, whoever wrote that. The directory comes
// after the record, and the record is read again after it, since another update may
// have changed both.
func (s *Store) update(ctx context.Context, l *layout, id string, change nfs.VolumeChange) (*record, error) {
	var given *record // what the directory was changed for
	for range changeTries {
		// Without it, a record that another client has removed may be read from the cache.
		if err := l.volumes.refresh(ctx); err != nil {
			return nil, err
		}
		r, err := l.record(ctx, id)
		if err == nil && r == nil {
			err = nfs.ErrNotFound
		}
		if err != nil {
			return nil, err
		}
		if err := s.opts.checkOwner(r); err != nil {
			return nil, err
		}
		is := r.volume()
		wanted, err := change.Apply(is)
		if err != nil {
			return nil, err
		}
		if err := s.findVolumeDir(ctx, l, r); err != nil {
			return nil, fmt.Errorf("directory %q: %w", r.Dir, err)
		}
		if !reflect.DeepEqual(is, wanted) {
			if err := l.change(ctx, r, r.changed(wanted)); err != nil && !isAbsent(err) && !isTaken(err) {
				return nil, err
			}
			continue
		}
		if given != nil && given.changes == r.changes && given.number == r.number {
			return r, nil
		}
		took, err := s.giveDir(ctx, l, r, change)
		if err != nil {
			return nil, fmt.Errorf("directory %q: %w", r.Dir, err)
		}
		if !took {
			return r, nil
		}
		given = r
	}
	return nil, fmt.Errorf("%w: the volume was changed elsewhere %d times meanwhile", nfs.ErrBusy, changeTries)
}

func (s *Store) findVolumeDir(ctx context.Context, l *layout, r *record) error {
	c := newCreation(s, l, r.spec())
	err := c.findDir(ctx, lookForSure)
	if isAbsent(err) {
		err = c.waitForDir(ctx, r)
	}
	return err
}

// giveDir gives the volume's directory the owner and mode of the record, those of
// them that the change names, and says whether it took that. Others may have
// changed the rest on purpose: the kubelet gives volumes a group (fsGroup).
func (s *Store) giveDir(ctx context.Context, l *layout, r *record, change nfs.VolumeChange) (took bool, err error) {
	if change.Mode == nil && change.UID == nil && change.GID == nil {
		return false, nil
	}
	parent, _, err := s.walk(ctx, parentOf(r.Dir), lookForSure)
	if err != nil {
		return false, err
	}
	defer parent.close()
	base := path.Base(r.Dir)
	held, err := parent.hold(ctx, base)
	if err != nil {
		return false, notDirectory(err, r.Dir)
	}
	defer held.close()
	if err := held.refresh(ctx); err != nil {
		return false, err
	}
	st, err := held.lstat(ctx, "")
	if err != nil {
		return false, err
	}
	want := ownership{mode: st.mode & 0o7777}
	if change.Mode != nil {
		want.mode = nfs.UnixMode(r.volume().Mode)
	}
	if change.UID != nil {
		want.uid = r.UID
	}
	if change.GID != nil {
		want.gid = r.GID
	}
	if chown, chmod := want.calls(st); !chown && !chmod {
		return false, nil
	}
	d, err := parent.openDir(ctx, base)
	if err != nil {
		return false, notDirectory(err, r.Dir)
	}
	defer d.close()
	// While the record stands, nobody makes another directory in this place: so
	// what was opened is the volume's.
	there, err := l.volumes.holds(ctx, r.ID+recordSuffix, r.file)
	if err == nil && !there {
		err = nfs.ErrNotFound
	}
	if err != nil {
		return false, err
	}
	return true, want.give(ctx, d, st)
}
