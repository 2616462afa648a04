package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// defaultCopyWait is how long CreateVolume waits for a copy before it says how far
// that is.
const defaultCopyWait = 5 * time.Second

// errCopying goes with ErrBusy while a copy runs on without its caller.
var errCopying = errors.New("the copy runs on")

// clone is the copy that a creation makes its volume of.
type clone struct {
	job  *jobDir
	done *completion
}

// fetch gets the copy of the source, which it has made in the background if there
// is none. It fails with ErrBusy and errCopying when that takes longer. It may find
// the record of another run instead, in recordFound.
func (c *creation) fetch(ctx context.Context) error {
	if err := c.s.reaches(c.spec.Source); err != nil {
		return err
	}
	job, err := c.s.ensureClone(ctx, c.l, c.spec)
	if err != nil {
		return err
	}
	c.clone = &clone{job: job}
	r := job.record
	if err := c.s.opts.checkJobOwner(r); err != nil {
		return err
	}
	if !r.Source.is(c.spec.Source) || r.Dir != c.spec.Dir {
		return fmt.Errorf("%w: a volume of that name is being made in directory %q from %s: delete it first", nfs.ErrConflict, r.Dir, r.Source)
	}
	if err := fit(&c.spec, r.Source); err != nil {
		return err
	}
	if c.clone.done, err = job.completion(ctx); err != nil || c.clone.done != nil {
		return err
	}
	done, err := c.s.pursue(ctx, c.l, job, c.s.copyWait())
	if err != nil {
		return fmt.Errorf("copy %s: %w", r.Source, err)
	}
	if !done {
		return fmt.Errorf("%w: copying %s: %s; %w", nfs.ErrBusy, r.Source, c.s.jobs.progressOf(r), errCopying)
	}
	if c.clone.done, err = job.completion(ctx); err == nil && c.clone.done == nil {
		if c.recordFound, err = c.l.recordForSure(ctx, c.id); err == nil && c.recordFound == nil {
			err = fmt.Errorf("%w: the copy was deleted meanwhile", nfs.ErrBusy)
		}
	}
	return err
}

func (s *Store) copyWait() time.Duration {
	if s.opts.CopyWait > 0 {
		return s.opts.CopyWait
	}
	return defaultCopyWait
}

// fit checks the capacity of a volume against what its source needs, and sets it
// where none was asked for.
func fit(v *nfs.VolumeSpec, from jobSource) error {
	switch {
	case v.MaxBytes > 0 && from.Bytes > v.MaxBytes:
		return fmt.Errorf("%w: %s takes %d bytes, more than the limit of %d", nfs.ErrOutOfRange, from, from.Bytes, v.MaxBytes)
	case v.MinBytes > 0 && from.Bytes > v.MinBytes:
		return fmt.Errorf("%w: %s takes %d bytes, more than the %d asked for: ask for at least as much", nfs.ErrOutOfRange, from, from.Bytes, v.MinBytes)
	case v.MinBytes == 0:
		v.MinBytes = from.Bytes
	}
	return nil
}

// ensureClone opens the job of the volume, or makes it.
func (s *Store) ensureClone(ctx context.Context, l *layout, spec nfs.VolumeSpec) (*jobDir, error) {
	const tries = 3
	for range tries {
		job, err := s.findJob(ctx, l, cloneJob, nfs.RecordID(spec.Name))
		if err != nil || job != nil {
			return job, err
		}
		from, err := s.sourceOf(ctx, l, spec.Source)
		if err != nil {
			return nil, err
		}
		if err := fit(&spec, from); err != nil {
			return nil, err
		}
		r := s.newJobRecord(cloneJob, spec.Name, from)
		r.Dir = spec.Dir
		if job, err = s.makeJob(ctx, l, r); err != nil || job != nil {
			return job, err
		}
	}
	return nil, fmt.Errorf("%w: another process makes the volume and gives it up again and again", nfs.ErrBusy)
}

// sourceOf finds what a new volume is to be copied from.
func (s *Store) sourceOf(ctx context.Context, l *layout, source nfs.Source) (jobSource, error) {
	from := jobSource{recordSource: newRecordSource(source)}
	at, l, err := s.origin(ctx, l, source)
	if err != nil {
		return from, err
	}
	if source.Volume != "" {
		r, err := l.recordForSure(ctx, source.Volume)
		if err == nil && r == nil {
			err = fmt.Errorf("%w: there is no %s", nfs.ErrNotFound, source)
		}
		if err == nil {
			err = at.opts.checkOwner(r)
		}
		if err != nil {
			return from, err
		}
		from.Created, from.Bytes = r.Created, r.CapacityBytes
		return from, nil
	}
	snapshot, err := at.readySnapshot(ctx, l, source.Snapshot)
	if err != nil {
		return from, err
	}
	defer snapshot.close()
	m, err := snapshot.manifest(ctx)
	if err != nil {
		return from, err
	}
	from.Created, from.Bytes = snapshot.record.Created, m.size()
	return from, nil
}

// readySnapshot opens a snapshot that is whole, for which it waits a while, unless
// the store is only to look.
func (s *Store) readySnapshot(ctx context.Context, l *layout, id string) (*jobDir, error) {
	job, err := s.findSnapshot(ctx, l, id)
	if err == nil && job == nil {
		err = fmt.Errorf("%w: there is no snapshot %q", nfs.ErrNotFound, id)
	}
	if err == nil {
		err = s.opts.checkJobOwner(job.record)
	}
	if err != nil {
		job.close()
		return nil, err
	}
	if job.whole() {
		return job, nil
	}
	defer job.close()
	if s.opts.Passive {
		return nil, fmt.Errorf("%w: the snapshot %q is not ready", nfs.ErrBusy, id)
	}
	done, err := s.pursue(ctx, l, job, s.copyWait())
	if err != nil {
		return nil, fmt.Errorf("the snapshot %q: %w", id, err)
	}
	if !done {
		return nil, fmt.Errorf("%w: the snapshot %q is not ready: %s", nfs.ErrBusy, id, s.jobs.progressOf(job.record))
	}
	whole, err := s.openJob(ctx, l.snapshots, id, snapshotJob, id)
	if err == nil && whole == nil {
		err = fmt.Errorf("%w: the snapshot %q was deleted", nfs.ErrNotFound, id)
	}
	return whole, err
}

// finishClone says that the copy is complete, for any process to make the volume of.
// What lies beside the data goes with the job.
func (r *run) finishClone(ctx context.Context, m *copyManifest) error {
	a, err := r.job.attr(ctx, dataName)
	if err != nil {
		return err
	}
	return r.job.replace(ctx, completeName, completion{Inode: a.ino, Manifest: *m})
}

// moveIn makes the copy the directory of the volume, in the place of an empty one
// that mkdir made: that decides, as for any volume, that nothing else was there. A
// directory that has the copy's inode number is the copy, which another run for the
// volume, or this one before it was killed, has moved.
func (c *creation) moveIn(ctx context.Context) error {
	data := c.clone.job
	if _, err := data.lstat(ctx, dataName); err == nil {
		if err := setOwner(ctx, data.dir, dataName, c.spec); err != nil {
			return err
		}
	} else if !isAbsent(err) {
		return err
	}
	in, err := c.isIn(ctx, c.clone.done)
	if err != nil {
		return err
	}
	if !in {
		err := c.takeDir(ctx)
		if err == nil && c.recordFound == nil {
			if err = data.rename(ctx, dataName, c.parent, c.base); err == nil {
				err = c.parent.sync(ctx)
			}
		}
		if err != nil {
			err = c.notMoved(ctx, err)
		}
		if err != nil || c.recordFound != nil {
			return err
		}
	}
	// Should the claim have been lost to the failure of another run, settle makes that good.
	c.ownsDir = true
	return nil
}

// claimCopy claims a directory that exists without a claim, if it is the copy: that
// was moved in by a run that lost the claim, as another run failed and gave it up.
func (c *creation) claimCopy(ctx context.Context) error {
	ours, err := c.isOurCopy(ctx)
	if err == nil && !ours {
		// The record is there before the copy's job goes.
		if c.recordFound, err = c.l.recordForSure(ctx, c.id); err == nil && c.recordFound == nil {
			err = c.foreign()
		}
	}
	if err != nil || !ours {
		return err
	}
	err = c.l.dirs.symlink(ctx, c.key(), claimName(c.spec.Dir))
	if isTaken(err) {
		err = fmt.Errorf("%w: the directory is being claimed elsewhere", nfs.ErrBusy)
	}
	c.claimed = err == nil
	return err
}

func (c *creation) isOurCopy(ctx context.Context) (bool, error) {
	job, err := c.s.findJob(ctx, c.l, cloneJob, c.id)
	if err != nil || job == nil {
		return false, err
	}
	defer job.close()
	if c.s.opts.checkJobOwner(job.record) != nil || job.record.Dir != c.spec.Dir {
		return false, nil
	}
	done, err := job.completion(ctx)
	if err != nil || done == nil {
		return false, err
	}
	return c.isIn(ctx, done)
}

// isIn says whether the directory of the volume is the copy.
func (c *creation) isIn(ctx context.Context, done *completion) (bool, error) {
	parent, _, err := c.s.walk(ctx, parentOf(c.spec.Dir), lookForSure)
	if err != nil {
		return false, ignoreAbsent(err)
	}
	in, err := c.s.stillThere(ctx, parent, c.base, done.Inode)
	if err != nil || !in {
		parent.close()
		return false, err
	}
	c.parent.close()
	c.parent = parent
	return true, nil
}

// notMoved makes sense of the failure to move the copy. It is none if another run
// has done that.
func (c *creation) notMoved(ctx context.Context, failed error) error {
	switch in, err := c.isIn(ctx, c.clone.done); {
	case err != nil:
		return err
	case in:
		return nil
	case errors.Is(failed, unix.EXDEV):
		return fmt.Errorf("%w: the directory is on another file system of the server than %s, and a copy cannot be moved there: choose another subDir", nfs.ErrInvalid, c.l.work.path)
	case !isAbsent(failed):
		return raced(failed)
	}
	if _, err := c.clone.job.lstat(ctx, dataName); !isAbsent(err) {
		return raced(failed)
	}
	// A volume that is gone by now was made of it.
	if err := c.s.removeJob(ctx, c.l, c.clone.job); err != nil {
		return err
	}
	return fmt.Errorf("%w: the volume of that name was deleted at this moment", nfs.ErrBusy)
}

// withdraw ends a run which finds that the copy, moved in already, is not there any
// more: the volume was deleted, by a process that found the record which another run
// had made of the same copy. A record that this run has made since goes the way of
// every delete.
func (c *creation) withdraw(ctx context.Context) error {
	if c.record == nil {
		return c.reclaim(ctx)
	}
	d := &deletion{s: c.s, l: c.l, record: c.record}
	defer d.close()
	if err := d.run(ctx); err != nil && !errors.Is(err, nfs.ErrBusy) {
		return err
	}
	return fmt.Errorf("%w: the volume was deleted as soon as it was made", nfs.ErrBusy)
}

// dropClone removes what is left of the copy when the volume is made.
func (c *creation) dropClone(ctx context.Context) {
	if c.clone == nil {
		return
	}
	if err := c.s.removeJob(ctx, c.l, c.clone.job); err != nil {
		klog.FromContext(ctx).Info("What is left of a copy will be removed later", "volume", c.spec.Name, "err", err)
	}
}

// notCopied fails with ErrBusy while this process copies the volume.
func (s *Store) notCopied(id string) error {
	r := s.jobs.copying(func(from jobSource) bool { return from.Server == "" && from.Volume == id })
	if r == nil {
		return nil
	}
	return fmt.Errorf("%w: the %s %q is being copied from it (%s): wait, or delete that", nfs.ErrBusy, r.job.record.Kind, r.job.record.Name, r.progress())
}

// dropJob removes what is left of the copy that a volume was made of.
func (s *Store) dropJob(ctx context.Context, l *layout, id string) error {
	return s.withClone(ctx, l, id, s.removeJob)
}

// deleteUnfinished removes the clone that was to become the volume, if there is one.
func (s *Store) deleteUnfinished(ctx context.Context, l *layout, id string) error {
	return s.withClone(ctx, l, id, s.discardClone)
}

// withClone calls do with the job of the volume, if there is one.
func (s *Store) withClone(ctx context.Context, l *layout, id string, do func(context.Context, *layout, *jobDir) error) error {
	job, err := s.findJob(ctx, l, cloneJob, id)
	if err != nil || job == nil {
		return err
	}
	defer job.close()
	if err := s.opts.checkJobOwner(job.record); err != nil {
		return err
	}
	return do(ctx, l, job)
}

// discardClone removes a clone that became no volume, with its claim and, if that was
// moved already, its data.
func (s *Store) discardClone(ctx context.Context, l *layout, job *jobDir) error {
	r, err := l.recordForSure(ctx, job.record.ID)
	if err != nil {
		return err
	}
	if r == nil {
		if err := s.discardPlace(ctx, l, job); err != nil {
			return err
		}
	}
	return s.removeJob(ctx, l, job)
}

// discardPlace removes what a creation that was not completed has left on the share.
func (s *Store) discardPlace(ctx context.Context, l *layout, job *jobDir) error {
	// What frees the claim must not be at work on an earlier volume.
	if _, err := s.finish(ctx, l, job.record.ID); err != nil {
		return err
	}
	at := job.record.Dir
	if err := l.dirs.refresh(ctx); err != nil {
		return err
	}
	key, err := l.claimant(ctx, at)
	if err != nil || idOf(key) != job.record.ID {
		return err
	}
	done, err := job.completion(ctx)
	if err != nil {
		return err
	}
	parent, _, err := s.walk(ctx, parentOf(at), lookForSure)
	if isAbsent(err) {
		return l.unclaim(ctx, at, key)
	}
	if err != nil {
		return err
	}
	defer parent.close()
	if done != nil {
		ours, err := s.stillThere(ctx, parent, path.Base(at), done.Inode)
		if err != nil {
			return err
		}
		if ours {
			return s.discardVolume(ctx, l, job, key)
		}
	}
	if _, err := s.removeEmpty(ctx, l, parent, at, job.record.ID); err != nil {
		return err
	}
	return l.unclaim(ctx, at, key)
}

// discardVolume gives a volume that lacks nothing but its record a record, which
// only one process can, and deletes it as every volume: so a create that is about to
// do the same finds either the volume or what has become of it.
func (s *Store) discardVolume(ctx context.Context, l *layout, job *jobDir, key string) error {
	_, created := parseKey(key)
	r := newRecord(s.opts, nfs.VolumeSpec{Name: job.record.Name, Dir: job.record.Dir, OnDelete: nfs.Delete, Source: job.record.Source.source()}, 0, created)
	data, err := encode(r)
	if err != nil {
		return err
	}
	err = l.publish(ctx, l.volumes, r.ID+recordSuffix, data)
	if isTaken(err) {
		return fmt.Errorf("%w: the volume was completed at this moment", nfs.ErrBusy)
	}
	if err != nil {
		return err
	}
	d := &deletion{s: s, l: l, record: r}
	defer d.close()
	return d.run(ctx)
}
