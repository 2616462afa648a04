package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// snapshotPatience is how long CreateSnapshot waits for a copy, so that a small
// volume is ready at once.
const snapshotPatience = 500 * time.Millisecond

// CreateSnapshot begins to copy the volume with that record id, unless there is a
// snapshot of the name, and returns what there is: one that is not Ready is copied
// in the background, by this process or a later one, until it is. Created is the
// same in every answer. When the copy has failed for good the error is its cause,
// and the copy is tried anew. Errors: ErrInvalid; ErrNotFound when the volume does
// not exist, or was deleted before it was copied; ErrConflict when the name is that
// of a snapshot of another volume; ErrForeign when a record is another instance's,
// or the directory of the volume is missing; ErrBusy when the snapshot is being
// deleted; ErrFull, ErrPermission, ErrUnavailable, ErrStale.
func (s *Store) CreateSnapshot(ctx context.Context, name, volumeID string) (nfs.Snapshot, error) {
	defer s.active.begin()()
	snapshot, err := s.createSnapshot(ctx, name, volumeID)
	if err != nil {
		return nfs.Snapshot{}, fmt.Errorf("create snapshot %q of volume %q: %w", name, volumeID, raced(err))
	}
	return snapshot, nil
}

func (s *Store) createSnapshot(ctx context.Context, name, volumeID string) (_ nfs.Snapshot, err error) {
	if name == "" || !utf8.ValidString(name) {
		return nfs.Snapshot{}, fmt.Errorf("%w: the name is empty or not valid UTF-8", nfs.ErrInvalid)
	}
	if err := nfs.CheckRecordID(volumeID); err != nil {
		return nfs.Snapshot{}, err
	}
	l, err := s.layout(ctx)
	if err != nil {
		return nfs.Snapshot{}, err
	}
	if l == nil {
		return nfs.Snapshot{}, nfs.ErrNotFound
	}
	defer func() { s.reopenAfter(l, err) }()
	job, err := s.ensureSnapshot(ctx, l, name, volumeID)
	if err != nil {
		return nfs.Snapshot{}, err
	}
	defer func() { job.close() }()
	if err := s.opts.checkJobOwner(job.record); err != nil {
		return nfs.Snapshot{}, err
	}
	if was := job.record.Source.Volume; was != volumeID {
		return nfs.Snapshot{}, fmt.Errorf("%w: a snapshot of that name exists, of the volume %q", nfs.ErrConflict, was)
	}
	if !job.whole() {
		done, err := s.pursue(ctx, l, job, snapshotPatience)
		if err != nil {
			return nfs.Snapshot{}, err
		}
		if done {
			whole, err := s.openJob(ctx, l.snapshots, job.record.ID, snapshotJob, job.record.ID)
			if err != nil {
				return nfs.Snapshot{}, err
			}
			if whole == nil {
				return nfs.Snapshot{}, fmt.Errorf("%w: the snapshot was deleted as soon as it was ready", nfs.ErrBusy)
			}
			job.close()
			job = whole
		}
	}
	return job.snapshot(ctx)
}

// ensureSnapshot opens the snapshot of that name, or makes it. Between the look into
// snapshots/ and the making of a new one, an older one may have been completed, so
// that one is looked for again.
func (s *Store) ensureSnapshot(ctx context.Context, l *layout, name, volumeID string) (*jobDir, error) {
	id := nfs.RecordID(name)
	const tries = 3
	for range tries {
		job, err := s.findSnapshot(ctx, l, id)
		if err != nil || job != nil {
			return job, err
		}
		r, err := s.newSnapshotRecord(ctx, l, name, volumeID)
		if err != nil {
			return nil, err
		}
		if job, err = s.makeJob(ctx, l, r); err != nil {
			return nil, err
		}
		if job == nil {
			continue // Another process was faster.
		}
		older, err := s.openJob(ctx, l.snapshots, id, snapshotJob, id)
		if err == nil && older == nil {
			return job, nil
		}
		job.close()
		older.close()
		if err := errors.Join(err, s.toTrash(ctx, l, l.work, job.name, id)); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: the snapshot comes and goes", nfs.ErrBusy)
}

func (s *Store) newSnapshotRecord(ctx context.Context, l *layout, name, volumeID string) (*jobRecord, error) {
	volume, err := l.recordForSure(ctx, volumeID)
	if err != nil {
		return nil, err
	}
	if volume == nil {
		return nil, fmt.Errorf("%w: there is no such volume", nfs.ErrNotFound)
	}
	if err := s.opts.checkOwner(volume); err != nil {
		return nil, err
	}
	return s.newJobRecord(snapshotJob, name, jobSource{recordSource: recordSource{Volume: volumeID}, Created: volume.Created}), nil
}

func (s *Store) newJobRecord(kind jobKind, name string, from jobSource) *jobRecord {
	return &jobRecord{
		Version: recordVersion, Driver: s.opts.DriverName, Instance: s.opts.InstanceID,
		Kind: kind, ID: nfs.RecordID(name), Name: name, Source: from, Created: time.Now().UTC(),
	}
}

// pursue has the job worked on and waits a while for it to end. If it was given up
// before, the error says why and it is begun again.
func (s *Store) pursue(ctx context.Context, l *layout, job *jobDir, patience time.Duration) (done bool, err error) {
	var failed *failure
	r := s.jobs.of(job.record)
	if r == nil {
		if failed, err = job.failure(ctx); err != nil {
			return false, err
		}
		if r, err = s.jobs.start(ctx, l, job); err != nil {
			return false, err
		}
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-r.ended:
		if errors.Is(r.err, errJobGone) {
			return true, nil
		}
		if errors.Is(r.err, errStopped) {
			return false, fmt.Errorf("%w: %w", nfs.ErrUnavailable, r.err)
		}
		return r.err == nil, r.err
	case <-ctx.Done():
		return false, ctx.Err()
	case <-timer.C:
	}
	if failed != nil {
		return false, fmt.Errorf("%w; it is being tried again", failed.err())
	}
	return false, nil
}

// finishSnapshot moves the job, whose copy is whole, to snapshots/, with nothing in
// it but the record, the manifest and the data.
func (r *run) finishSnapshot(ctx context.Context) error {
	if err := r.tidy(ctx); err != nil {
		return err
	}
	if err := r.job.sync(ctx); err != nil {
		return err
	}
	if err := r.job.parent.rename(ctx, r.job.name, r.l.snapshots, r.job.record.ID); err != nil {
		if isNotEmpty(err) {
			// See ensureSnapshot: what is there was made before.
			return errors.Join(errJobGone, r.s.toTrash(ctx, r.l, r.job.parent, r.job.name, r.job.record.ID))
		}
		return err
	}
	// What follows is no longer the work that the lease is for.
	ctx = context.WithoutCancel(ctx)
	return errors.Join(r.l.snapshots.sync(ctx), r.job.parent.sync(ctx))
}

// tidy removes what a copy leaves beside its data.
func (r *run) tidy(ctx context.Context) error {
	var names []string
	err := r.job.list(ctx, func(some []string) error {
		names = append(names, some...)
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		_, isLease := parseLease(name)
		if isLease || name == jobRecordName || name == manifestName || name == dataName {
			continue
		}
		if err := r.s.toTrash(ctx, r.l, r.job.dir, name, r.job.record.ID); err != nil {
			return err
		}
	}
	return nil
}

// manifest says what a whole snapshot holds.
func (j *jobDir) manifest(ctx context.Context) (*copyManifest, error) {
	m, err := readManifest(ctx, j.dir)
	if err == nil && m == nil {
		err = fmt.Errorf("%w: %q is missing: delete the snapshot", nfs.ErrForeign, path.Join(j.path, manifestName))
	}
	return m, err
}

// size is how much space a manifest's files take at least, wherever they are.
func (m *copyManifest) size() int64 { return m.Bytes - m.LinkedBytes }

// snapshot returns what the job says.
func (j *jobDir) snapshot(ctx context.Context) (nfs.Snapshot, error) {
	r := j.record
	v := nfs.Snapshot{ID: r.ID, Name: r.Name, Volume: r.Source.Volume, Created: r.Created, Ready: j.whole()}
	if v.Ready {
		m, err := j.manifest(ctx)
		if err != nil {
			return nfs.Snapshot{}, err
		}
		v.SizeBytes = m.size()
	}
	return v, nil
}

// GetSnapshot returns the snapshot with that record id. Errors: ErrNotFound;
// ErrForeign when the record is another instance's or cannot be read.
func (s *Store) GetSnapshot(ctx context.Context, id string) (nfs.Snapshot, error) {
	defer s.active.begin()()
	v, err := s.getSnapshot(ctx, id)
	if err != nil {
		return nfs.Snapshot{}, fmt.Errorf("get snapshot %q: %w", id, err)
	}
	return v, nil
}

func (s *Store) getSnapshot(ctx context.Context, id string) (_ nfs.Snapshot, err error) {
	if err := nfs.CheckRecordID(id); err != nil {
		return nfs.Snapshot{}, err
	}
	l, err := s.layout(ctx)
	if err != nil {
		return nfs.Snapshot{}, err
	}
	if l == nil {
		return nfs.Snapshot{}, nfs.ErrNotFound
	}
	defer func() { s.reopenAfter(l, err) }()
	job, err := s.findSnapshot(ctx, l, id)
	if err != nil {
		return nfs.Snapshot{}, err
	}
	defer job.close()
	if job == nil {
		return nfs.Snapshot{}, nfs.ErrNotFound
	}
	if err := s.opts.checkJobOwner(job.record); err != nil {
		return nfs.Snapshot{}, err
	}
	return job.snapshot(ctx)
}

// ListSnapshots returns up to limit snapshots (0: all) of this driver and instance
// with ids after the given one, in the order of their ids, and of the volume with
// that record id alone, unless that is empty. More may follow when it returned
// limit. Snapshots that come or go meanwhile may or may not be in it; all others
// are. What cannot be read is logged, counted in Backlog and left out.
func (s *Store) ListSnapshots(ctx context.Context, volumeID, after string, limit int) ([]nfs.Snapshot, error) {
	defer s.active.begin()()
	l, err := s.layout(ctx)
	if err != nil || l == nil {
		return nil, err
	}
	snapshots, err := s.listSnapshots(ctx, l, volumeID, after, limit)
	s.reopenAfter(l, err)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	return snapshots, nil
}

func (s *Store) listSnapshots(ctx context.Context, l *layout, volumeID, after string, limit int) ([]nfs.Snapshot, error) {
	var ids []string
	collect := func(id string) {
		if id > after && nfs.CheckRecordID(id) == nil {
			ids = append(ids, id)
		}
	}
	// In this order, see findSnapshot.
	for _, from := range []struct {
		dir *dir
		id  func(name string) string
	}{
		{l.work, func(name string) string { id, _ := strings.CutPrefix(name, jobName(snapshotJob, "")); return id }},
		{l.snapshots, func(name string) string { return name }},
	} {
		if err := from.dir.refresh(ctx); err != nil {
			return nil, err
		}
		err := from.dir.list(ctx, func(names []string) error {
			for _, name := range names {
				if kind, _, ok := parseJobName(name); from.dir == l.snapshots || ok && kind == snapshotJob {
					collect(from.id(name))
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(ids)
	var found []nfs.Snapshot
	for _, id := range slices.Compact(ids) {
		if limit > 0 && len(found) == limit {
			break
		}
		v, err := s.listed(ctx, l, id, volumeID)
		switch {
		case err == nil && v.ID != "":
			found = append(found, v)
		case err == nil, errors.Is(err, nfs.ErrBusy): // gone, or about to be
		case errors.Is(err, nfs.ErrForeign):
			s.skipped.Add(1)
			klog.FromContext(ctx).Info("A snapshot is left out of the list: it cannot be read", "id", id, "err", err)
		default:
			return nil, err
		}
	}
	return found, nil
}

// listed returns a snapshot, the zero value if it is not to be in the list.
func (s *Store) listed(ctx context.Context, l *layout, id, volumeID string) (nfs.Snapshot, error) {
	job, err := s.findSnapshot(ctx, l, id)
	if err != nil || job == nil {
		return nfs.Snapshot{}, err
	}
	defer job.close()
	if s.opts.checkJobOwner(job.record) != nil || volumeID != "" && job.record.Source.Volume != volumeID {
		return nfs.Snapshot{}, nil
	}
	return job.snapshot(ctx)
}

// DeleteSnapshot removes the snapshot, in a number of file operations that does not
// depend on what it holds, and ends its copy if that is not complete. Without a
// record it succeeds. Errors: ErrForeign when the record is another instance's or
// cannot be read; ErrBusy while a volume is made from it; ErrPermission,
// ErrUnavailable, ErrStale.
func (s *Store) DeleteSnapshot(ctx context.Context, id string) error {
	defer s.active.begin()()
	if err := s.deleteSnapshot(ctx, id); err != nil {
		return fmt.Errorf("delete snapshot %q: %w", id, raced(err))
	}
	return nil
}

func (s *Store) deleteSnapshot(ctx context.Context, id string) (err error) {
	if err := nfs.CheckRecordID(id); err != nil {
		return err
	}
	l, err := s.layout(ctx)
	if err != nil || l == nil {
		return err
	}
	defer func() { s.reopenAfter(l, err) }()
	if r := s.jobs.copying(func(from jobSource) bool { return from.Server == "" && from.Snapshot == id }); r != nil {
		return fmt.Errorf("%w: the volume %q is being made from it (%s): wait, or delete that volume", nfs.ErrBusy, r.job.record.Name, r.progress())
	}
	job, err := s.findSnapshot(ctx, l, id)
	if err != nil || job == nil {
		return err
	}
	defer job.close()
	if err := s.opts.checkJobOwner(job.record); err != nil {
		return err
	}
	return s.removeJob(ctx, l, job)
}

// removeJob moves a job or snapshot to the trash, whole, and ends the work on it:
// here at once, in another process when that next renews its lease. What it writes
// until then goes to the trash.
func (s *Store) removeJob(ctx context.Context, l *layout, job *jobDir) error {
	if r := s.jobs.of(job.record); r != nil {
		r.cancel(errJobGone)
		select {
		case <-r.ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	// It may have been completed, and moved, since it was found.
	for _, at := range []struct {
		parent *dir
		name   string
	}{{job.parent, job.name}, {l.snapshots, job.record.ID}} {
		there, err := s.stillThere(ctx, at.parent, at.name, job.ino)
		if err != nil {
			return err
		}
		if there {
			if err := s.treeToTrash(ctx, l, at.parent, at.name, job.record.ID, job.ino); err != nil {
				return err
			}
			return at.parent.sync(ctx)
		}
	}
	return nil
}
