package store

import (
	"context"
	"errors"
	"fmt"
	"path"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// copySource is an opened directory to copy.
type copySource struct {
	dir      *dir
	still    bool       // nobody changes it
	expected treeCounts // zero when that is not known
	// stands asks the server whether the volume or snapshot is still there. It fails
	// with ErrNotFound when it was deleted.
	stands func(ctx context.Context) error
}

// Origin is another export that volumes can be made from.
type Origin struct {
	Export nfs.Export
	// Store is the one on it, to which nothing is written.
	Store *Store
}

// reaches fails with ErrUnavailable if the source is on an export that this store has
// no access to.
func (s *Store) reaches(source nfs.Source) error {
	o := s.opts.Origin
	if source.Export.Server == "" || o.Store != nil && source.Export.SameShare(o.Export) {
		return nil
	}
	return fmt.Errorf("%w: the %s cannot be reached from here at this moment: try again", nfs.ErrUnavailable, source)
}

// origin returns the store that the source is in, with its layout.
func (s *Store) origin(ctx context.Context, l *layout, source nfs.Source) (*Store, *layout, error) {
	if err := s.reaches(source); err != nil || source.Export.Server == "" {
		return s, l, err
	}
	at := s.opts.Origin.Store
	l, err := at.layout(ctx)
	if err == nil && l == nil {
		err = fmt.Errorf("%w: there is no %s", nfs.ErrNotFound, source)
	}
	return at, l, err
}

// openSource opens what a job copies. Errors: ErrNotFound when it was deleted since
// the job was made.
func (s *Store) openSource(ctx context.Context, l *layout, from jobSource) (copySource, error) {
	at, l, err := s.origin(ctx, l, from.source())
	if err != nil {
		return copySource{}, err
	}
	open := at.openVolumeData
	if from.Snapshot != "" {
		open = at.openSnapshotData
	}
	src, err := open(ctx, l, from)
	at.reopenAfter(l, err)
	return src, err
}

func deletedMeanwhile(from jobSource) error {
	return fmt.Errorf("%w: the %s was deleted before it was copied", nfs.ErrNotFound, from)
}

func (s *Store) openVolumeData(ctx context.Context, l *layout, from jobSource) (copySource, error) {
	at, d, err := s.openRecorded(ctx, l, from)
	if err != nil {
		return copySource{}, err
	}
	return copySource{dir: d, stands: func(ctx context.Context) error {
		// It was moved away if the directory with its record is another by now.
		if err := d.stat(ctx); err != nil {
			if errors.Is(err, nfs.ErrStale) {
				err = deletedMeanwhile(from)
			}
			return err
		}
		now, again, err := s.openRecorded(ctx, l, from)
		if err != nil {
			return err
		}
		again.close()
		if now.ino != at.ino {
			err = deletedMeanwhile(from)
		}
		return err
	}}, nil
}

// openRecorded opens the directory of the volume while its record stands.
func (s *Store) openRecorded(ctx context.Context, l *layout, from jobSource) (at attr, d *dir, err error) {
	r, err := l.recordForSure(ctx, from.Volume)
	if err == nil && (r == nil || !r.Created.Equal(from.Created)) {
		err = deletedMeanwhile(from)
	}
	if err != nil {
		return at, nil, err
	}
	if d, err = s.openVolumeDir(ctx, r.Dir); err == nil {
		if at, err = d.fresh(ctx); err != nil {
			d.close()
		}
	}
	// While the record stands, nobody makes another directory in that place.
	now, gone := l.recordForSure(ctx, from.Volume)
	if gone == nil && (now == nil || now.key() != r.key()) {
		gone = deletedMeanwhile(from)
	}
	switch {
	case gone != nil:
		if err == nil {
			d.close()
		}
		return at, nil, gone
	case isAbsent(err):
		return at, nil, fmt.Errorf("%w: the directory %q of %s is missing", nfs.ErrForeign, r.Dir, from)
	case err != nil:
		return at, nil, fmt.Errorf("%s: %w", from, err)
	}
	return at, d, nil
}

// openVolumeDir opens the directory of a volume to read it.
func (s *Store) openVolumeDir(ctx context.Context, dir string) (*dir, error) {
	parent, _, err := s.walk(ctx, parentOf(dir), lookForSure)
	if err != nil {
		return nil, err
	}
	defer parent.close()
	base := path.Base(dir)
	d, err := parent.openDir(ctx, base)
	if isAbsent(err) {
		if err := parent.refresh(ctx); err != nil {
			return nil, err
		}
		d, err = parent.openDir(ctx, base)
	}
	return d, notDirectory(err, dir)
}

func (s *Store) openSnapshotData(ctx context.Context, l *layout, from jobSource) (copySource, error) {
	snapshot, err := s.openJob(ctx, l.snapshots, from.Snapshot, snapshotJob, from.Snapshot)
	if err != nil {
		return copySource{}, err
	}
	defer snapshot.close()
	if snapshot == nil || !snapshot.record.Created.Equal(from.Created) {
		return copySource{}, deletedMeanwhile(from)
	}
	m, err := snapshot.manifest(ctx)
	if err != nil {
		return copySource{}, err
	}
	d, err := snapshot.openDir(ctx, dataName)
	if err != nil {
		return copySource{}, notDirectory(err, path.Join(snapshot.path, dataName))
	}
	parent, name, ino := snapshot.parent, snapshot.name, snapshot.ino
	return copySource{dir: d, still: true, expected: m.treeCounts, stands: func(ctx context.Context) error {
		there, err := s.stillThere(ctx, parent, name, ino)
		if err == nil && !there {
			err = deletedMeanwhile(from)
		}
		return err
	}}, nil
}
