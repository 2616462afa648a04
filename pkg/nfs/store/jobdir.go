package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// jobKind is what a copy is for.
type jobKind string

const (
	snapshotJob jobKind = "snapshot"
	cloneJob    jobKind = "clone"
)

// The files in the directory of a job, beside those of treeCopy and the lease.
const (
	jobRecordName  = "record.json"
	failureName    = "failed.json"
	completeName   = "complete.json"
	newJobPrefix   = "new_"
	snapshotsTitle = "snapshots"
)

// jobName is the name of a job in work/. No record id has an underscore.
func jobName(kind jobKind, id string) string { return string(kind) + "_" + id }

func parseJobName(name string) (kind jobKind, id string, ok bool) {
	for _, kind := range []jobKind{snapshotJob, cloneJob} {
		if id, ok := strings.CutPrefix(name, string(kind)+"_"); ok && nfs.CheckRecordID(id) == nil {
			return kind, id, true
		}
	}
	return "", "", false
}

// jobRecord says what is being copied, from where and for what. It never changes,
// and stays as the record of the snapshot.
type jobRecord struct {
	Version  int       `json:"version"`
	Driver   string    `json:"driver"`
	Instance string    `json:"instance"`
	Kind     jobKind   `json:"kind"`
	ID       string    `json:"id"`   // of the snapshot, or of the volume that the clone becomes
	Name     string    `json:"name"` // of the same
	Source   jobSource `json:"source"`
	// Dir is the directory that a clone is for.
	Dir     string    `json:"dir,omitempty"`
	Created time.Time `json:"created"`
}

// jobSource is what is copied.
type jobSource struct {
	recordSource
	// Created is the source's time of creation, which tells it from a later one of
	// the same id.
	Created time.Time `json:"created"`
	// Bytes is the capacity that a copy has at least.
	Bytes int64 `json:"bytes,omitempty"`
}

func (r *jobRecord) check() error {
	switch {
	case r.Version != recordVersion:
		return fmt.Errorf("its format version is %d and this driver knows %d", r.Version, recordVersion)
	case r.Driver == "":
		return errors.New("no driver is named")
	case r.Kind != snapshotJob && r.Kind != cloneJob:
		return fmt.Errorf("kind is %q", r.Kind)
	case !utf8.ValidString(r.Name) || r.Name == "" || r.ID != nfs.RecordID(r.Name):
		return fmt.Errorf("id %q is not that of the name %q", r.ID, r.Name)
	case r.Source.check() != nil:
		return r.Source.check()
	case r.Source.source().IsZero(), r.Kind == snapshotJob && r.Source.Volume == "":
		return errors.New("it names no source")
	case r.Kind == cloneJob && nfs.CheckSubDir(r.Dir) != nil:
		return fmt.Errorf("dir is %q", r.Dir)
	case r.Created.IsZero() || r.Source.Created.IsZero():
		return errors.New("it lacks a time of creation")
	}
	return nil
}

func (o Options) checkJobOwner(r *jobRecord) error {
	if r.Driver == o.DriverName && r.Instance == o.InstanceID {
		return nil
	}
	return fmt.Errorf("%w: the %s %q belongs to instance %q of driver %q, and this is instance %q of %q",
		nfs.ErrForeign, r.Kind, r.Name, r.Instance, r.Driver, o.InstanceID, o.DriverName)
}

// jobDir is the opened directory of a job: in work/ until a snapshot is whole, and
// then in snapshots/. Whatever is done to the job is done beneath this descriptor,
// so that it cannot reach another job that has the name by now.
type jobDir struct {
	*dir
	parent *dir
	name   string // in parent
	ino    uint64
	record *jobRecord
}

// whole says that it is a snapshot that is complete.
func (j *jobDir) whole() bool { return path.Base(j.parent.path) == snapshotsTitle }

// close is fine on nil.
func (j *jobDir) close() {
	if j != nil {
		j.dir.close()
	}
}

// key tells a job from others that had its name before.
func (j *jobDir) key() string { return jobKey(j.record) }

func jobKey(r *jobRecord) string {
	return fmt.Sprintf("%s %d", jobName(r.Kind, r.ID), r.Created.UnixNano())
}

// openJob opens a job by its name, nil when there is none.
func (s *Store) openJob(ctx context.Context, parent *dir, name string, kind jobKind, id string) (_ *jobDir, err error) {
	d, err := parent.openDir(ctx, name)
	if isAbsent(err) {
		if err := parent.refresh(ctx); err != nil {
			return nil, err
		}
		d, err = parent.openDir(ctx, name)
	}
	if err != nil {
		return nil, notDirectory(ignoreAbsent(err), path.Join(parent.path, name))
	}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	a, err := d.fresh(ctx)
	if err != nil {
		return nil, raced(err)
	}
	at := path.Join(d.path, jobRecordName)
	data, _, err := d.readFile(ctx, jobRecordName, recordLimit)
	if isAbsent(err) {
		// The purge may have taken it from the directory, if that is in the trash by now.
		if now, err := s.stillThere(ctx, parent, name, a.ino); err != nil || !now {
			return nil, fmt.Errorf("%w: %q is being deleted: %w", nfs.ErrBusy, d.path, errors.Join(err, errJobGone))
		}
		return nil, fmt.Errorf("%w: %q has no record: move the directory away, or remove it", nfs.ErrForeign, d.path)
	}
	if err != nil {
		return nil, err
	}
	r := new(jobRecord)
	if err := decode(at, data, r); err != nil {
		return nil, err
	}
	if r.Kind != kind || r.ID != id {
		return nil, fmt.Errorf("%w: the record %q is of the %s %q", nfs.ErrForeign, at, r.Kind, r.ID)
	}
	return &jobDir{dir: d, parent: parent, name: name, ino: a.ino, record: r}, nil
}

// stillThere asks the server whether a directory has the name that it had.
func (s *Store) stillThere(ctx context.Context, parent *dir, name string, ino uint64) (bool, error) {
	if err := parent.refresh(ctx); err != nil {
		return false, err
	}
	st, err := parent.lstat(ctx, name)
	if err != nil {
		return false, ignoreAbsent(err)
	}
	return st.ino == ino, nil
}

// findJob opens the job that is not whole yet, nil when there is none.
func (s *Store) findJob(ctx context.Context, l *layout, kind jobKind, id string) (*jobDir, error) {
	return s.openJob(ctx, l.work, jobName(kind, id), kind, id)
}

// findSnapshot opens a snapshot, whole or not; nil when there is none. It looks in
// work/ first: what leaves that in between is in snapshots/ by then.
func (s *Store) findSnapshot(ctx context.Context, l *layout, id string) (*jobDir, error) {
	job, err := s.findJob(ctx, l, snapshotJob, id)
	if err != nil || job != nil {
		return job, err
	}
	return s.openJob(ctx, l.snapshots, id, snapshotJob, id)
}

// makeJob makes a job that this process has the lease of. The rename is what
// decides who makes it: a directory that is not empty is never replaced
// (rename(2)), and a job always holds its record. It returns nil when it was there.
func (s *Store) makeJob(ctx context.Context, l *layout, r *jobRecord) (_ *jobDir, err error) {
	data, err := encode(r)
	if err != nil {
		return nil, err
	}
	temp, name := newJobPrefix+randomName(), jobName(r.Kind, r.ID)
	if err := l.work.mkdir(ctx, temp, 0o700); err != nil {
		return nil, err
	}
	made := false
	s.jobs.making(r, false)
	defer func() {
		if !made {
			s.jobs.making(r, true)
			err = errors.Join(err, s.toTrash(context.WithoutCancel(ctx), l, l.work, temp, r.ID))
		}
	}()
	d, err := l.work.openDir(ctx, temp)
	if err != nil {
		return nil, err
	}
	defer d.close()
	if err := d.writeFile(ctx, jobRecordName, data); err != nil {
		return nil, err
	}
	if err := makeEmpty(ctx, d, firstLease.name()); err != nil {
		return nil, err
	}
	if err := d.sync(ctx); err != nil {
		return nil, err
	}
	if err := l.work.rename(ctx, temp, l.work, name); err != nil {
		if isNotEmpty(err) {
			err = nil
		}
		return nil, err
	}
	made = true
	if err := l.work.sync(ctx); err != nil {
		return nil, err
	}
	return s.openJob(ctx, l.work, name, r.Kind, r.ID)
}

// firstLease is that of whoever has made the job.
var firstLease = leaseState{n: 1, held: true}

// failure is the content of failed.json: why a job has been given up.
type failure struct {
	Sentinel string    `json:"sentinel"` // its name in nfs.Sentinels
	Message  string    `json:"message"`
	When     time.Time `json:"when"`
}

// recordedError is the error of a job as it was recorded.
type recordedError struct {
	message string
	cause   error
}

func (e *recordedError) Error() string { return e.message }
func (e *recordedError) Unwrap() error { return e.cause }

func failureOf(err error) failure {
	f := failure{Message: err.Error(), When: time.Now().UTC()}
	if len(f.Message) > recordLimit/8 {
		f.Message = f.Message[:recordLimit/8]
	}
	cause := sentinelOf(err)
	for name, s := range nfs.Sentinels() {
		if errors.Is(cause, s) {
			f.Sentinel = name
		}
	}
	return f
}

// failure returns why the job was given up, or nil.
func (j *jobDir) failure(ctx context.Context) (*failure, error) {
	data, _, err := j.readFile(ctx, failureName, recordLimit)
	if err != nil {
		return nil, ignoreAbsent(err)
	}
	f := new(failure)
	if err := json.Unmarshal(data, f); err != nil {
		return nil, fmt.Errorf("%w: %q is not what this driver writes: %w", nfs.ErrForeign, path.Join(j.path, failureName), err)
	}
	return f, nil
}

func (f *failure) err() error {
	return &recordedError{message: f.Message, cause: nfs.Sentinels()[f.Sentinel]}
}

// ended says when the job was given up, or completed if it is a clone; the zero
// time when neither is so.
func (j *jobDir) ended(ctx context.Context) (time.Time, error) {
	f, err := j.failure(ctx)
	if err != nil {
		return time.Time{}, err
	}
	if f != nil {
		return f.When, nil
	}
	c, err := j.completion(ctx)
	if err != nil || c == nil {
		return time.Time{}, err
	}
	return c.Manifest.Finished, nil
}

// replace writes a document of the job, all of it or nothing.
func (j *jobDir) replace(ctx context.Context, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return replaceFile(ctx, j.dir, name, data)
}

// completion is the content of complete.json: a clone that waits to become a
// volume. Its data may have been moved to the volume's directory already.
type completion struct {
	Inode    uint64       `json:"inode"` // of the directory data/
	Manifest copyManifest `json:"manifest"`
}

// completion returns nil while the clone is not complete.
func (j *jobDir) completion(ctx context.Context) (*completion, error) {
	data, _, err := j.readFile(ctx, completeName, manifestLimit)
	if err != nil {
		return nil, ignoreAbsent(err)
	}
	c := new(completion)
	if err := json.Unmarshal(data, c); err != nil || c.Inode == 0 {
		return nil, fmt.Errorf("%w: %q is not what this driver writes: %w", nfs.ErrForeign, path.Join(j.path, completeName), err)
	}
	return c, nil
}
