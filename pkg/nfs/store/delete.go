package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

const (
	archivePrefix = "archived-"
	archiveTime   = "20060102T150405.000000Z"

	// quick is less than it takes to delete a volume, make it again and put
	// something into it.
	quick = 50 * time.Millisecond
)

// DeleteVolume disposes of the volume as its record says, in a number of file
// operations that does not depend on what it holds. Without a record it
// succeeds, unless dir is given and exists. Errors: ErrForeign for a directory
// without a record, a record that is another instance's or cannot be read, and a
// volume whose directory has become something else; ErrBusy when another process
// deletes the volume at this moment; ErrPermission, ErrUnavailable, ErrStale.
func (s *Store) DeleteVolume(ctx context.Context, id, dir string) error {
	defer s.active.begin()()
	if err := nfs.CheckRecordID(id); err != nil {
		return err
	}
	if dir != "" {
		if err := nfs.CheckSubDir(dir); err != nil {
			return err
		}
	}
	for try := 0; ; try++ {
		err := s.deleteVolume(ctx, id, dir)
		if (errors.Is(err, errSlotGone) || errors.Is(err, errRecordGone)) && try < raceTries {
			continue
		}
		return raced(err)
	}
}

// errSlotGone says that another process has removed the store's slot, which is
// made again.
var errSlotGone = fmt.Errorf("%w: another process has taken over what this one had in the trash", nfs.ErrBusy)

// errRecordGone says that another process has deleted the volume since its record
// was read. That may be long ago: an NFS client that has had the file open opens
// it again without asking for its name.
var errRecordGone = fmt.Errorf("%w: another process has just deleted the volume", nfs.ErrBusy)

func (s *Store) deleteVolume(ctx context.Context, id, dir string) error {
	l, err := s.layout(ctx)
	if err != nil {
		return err
	}
	if l == nil {
		return s.deleteUnrecorded(ctx, l, id, dir)
	}
	d := &deletion{s: s, l: l, began: time.Now()}
	defer d.close()
	d.record, err = d.readRecord(ctx, id)
	switch {
	case err != nil:
	case d.record == nil:
		err = s.deleteUnrecorded(ctx, l, id, dir)
	default:
		if err = s.notCopied(id); err == nil {
			err = d.run(ctx)
		}
	}
	if err == nil && d.record != nil && !d.record.Source.source().IsZero() {
		// A create that was killed when all was done may have left the copy's job.
		err = s.dropJob(ctx, l, id)
	}
	s.reopenAfter(l, err)
	return err
}

// deleteUnrecorded answers for a volume that has no record: it is gone already,
// or was never made, or its delete has not come to its end.
func (s *Store) deleteUnrecorded(ctx context.Context, l *layout, id, dir string) error {
	if l != nil {
		if err := s.deleteUnfinished(ctx, l, id); err != nil {
			return err
		}
	}
	if dir == "" {
		return nil
	}
	for finished := false; ; {
		d, _, err := s.walk(ctx, dir, lookForSure)
		if err == nil {
			d.close()
		}
		if isAbsent(err) {
			break
		}
		if err != nil && !errors.Is(err, nfs.ErrForeign) && !errors.Is(err, nfs.ErrPermission) {
			return err
		}
		if l != nil && !finished {
			if finished, err = s.finish(ctx, l, id); err != nil {
				return err
			}
			if finished {
				continue
			}
		}
		return fmt.Errorf("%w: the directory %q exists, and no record says that the driver made it: if its data is no longer needed, remove it by hand, and then the PersistentVolume", nfs.ErrForeign, dir)
	}
	if l == nil {
		return nil
	}
	if err := l.dirs.refresh(ctx); err != nil {
		return err
	}
	key, err := l.claimant(ctx, dir)
	if err != nil || idOf(key) != id {
		return err
	}
	return l.unclaim(ctx, dir, key)
}

// deleteRecorded deletes the volume of that record, and no other that has its id by now.
func (s *Store) deleteRecorded(ctx context.Context, l *layout, r *record) (err error) {
	d := &deletion{s: s, l: l, began: time.Now()}
	defer d.close()
	d.record, err = d.readRecord(ctx, r.ID)
	if err != nil || d.record == nil || d.record.key() != r.key() {
		return err
	}
	if err = d.run(ctx); errors.Is(err, errRecordGone) {
		return nil
	}
	return err
}

// deletion is one run of DeleteVolume on a volume that has a record.
type deletion struct {
	s       *Store
	l       *layout
	began   time.Time // before the record was read
	record  *record
	reading sync.WaitGroup // until the record's file is closed

	parent *dir // nil when there is nothing to move
	// announced is the archive that the directory becomes, if it does.
	announced *archiveRecord
}

func (d *deletion) close() {
	d.reading.Wait()
	d.parent.close()
}

// readRecord does not wait for the file to be closed, which is a call to the
// server that nothing depends on.
func (d *deletion) readRecord(ctx context.Context, id string) (*record, error) {
	volumes := *d.l.volumes
	volumes.closeFile = func(fd int) { d.reading.Go(func() { _ = unix.Close(fd) }) }
	r, err := d.l.recordIn(ctx, &volumes, id+recordSuffix, id)
	if err != nil || r != nil {
		return r, err
	}
	if err := d.l.volumes.refresh(ctx); err != nil {
		return nil, err
	}
	return d.l.recordIn(ctx, &volumes, id+recordSuffix, id)
}

// run moves the record to the trash, which decides, and then the directory. The
// rest is left to the purge, as all is should this process die.
func (d *deletion) run(ctx context.Context) (err error) {
	r := d.record
	if err := d.s.opts.checkOwner(r); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("directory %q: %w", r.Dir, err)
		}
	}()
	if err := d.prepare(ctx); err != nil {
		return d.orGone(ctx, err)
	}
	own, err := d.l.slot(ctx)
	if err != nil {
		return err
	}
	p := d.s.purge
	e := p.begin(r.ID, r.Created)
	defer p.release(e)
	e.announced = d.announced
	if err := d.l.volumes.rename(ctx, r.ID+recordSuffix, own, e.name+recordSuffix); err != nil {
		return d.undecided(ctx, own, e, err)
	}
	// The context must not leave it half done.
	err = d.decided(context.WithoutCancel(ctx), own, e)
	if errors.Is(err, errTakenOver) {
		return nil // and ended there
	}
	if errors.Is(err, nfs.ErrStale) || isAbsent(err) {
		if gone := d.slotGone(ctx, own); gone != nil {
			return gone
		}
	}
	return err
}

// slotGone returns errSlotGone when the slot was removed, and makes the next try take
// another one.
func (d *deletion) slotGone(ctx context.Context, own *dir) error {
	if gone := d.l.checkSlot(ctx, own); gone != nil {
		return fmt.Errorf("%w: %v", errSlotGone, gone)
	}
	return nil
}

// prepare does what must be done before the decision.
func (d *deletion) prepare(ctx context.Context) (err error) {
	if err := d.find(ctx); err != nil || d.record.OnDelete != nfs.Archive || d.parent == nil {
		return err
	}
	if d.announced, err = announceArchive(ctx, d.l, d.record); err != nil {
		return err
	}
	return d.announced.checkFree(ctx, d.parent)
}

// orGone explains what came in the way by errRecordGone, if that is why.
func (d *deletion) orGone(ctx context.Context, err error) error {
	if !errors.Is(err, nfs.ErrBusy) && !isAbsent(err) {
		return err
	}
	if err := d.l.volumes.refresh(ctx); err != nil {
		return err
	}
	if now, readErr := d.l.recordIn(ctx, d.l.volumes, d.record.ID+recordSuffix, d.record.ID); readErr != nil || now != nil && now.key() == d.record.key() {
		return err
	}
	return errRecordGone
}

// decided goes on when the record is in the trash.
func (d *deletion) decided(ctx context.Context, own *dir, e *entry) (err error) {
	if time.Since(d.began) > quick {
		if err := d.verify(ctx, own, e); err != nil {
			return err
		}
	}
	if d.parent == nil && d.record.Shared == "" {
		e.place = nowhere
	} else if d.parent != nil {
		e.slot = path.Base(own.path)
		e.place, err = moveAway(ctx, d.parent, path.Base(d.record.Dir), own, e.name)
	}
	if err == nil {
		err = d.l.volumes.sync(ctx)
	}
	if err == nil && (d.record.OnDelete != nfs.Delete || d.record.ParentsCreated > 0 || d.record.Shared != "") {
		err = d.s.purge.completeEntry(ctx, d.l, e)
	}
	return err
}

// undecided ends a delete that could not move the record.
func (d *deletion) undecided(ctx context.Context, own *dir, e *entry, err error) error {
	d.s.purge.forget(e)
	if !isAbsent(err) && !errors.Is(err, nfs.ErrStale) {
		return err
	}
	if gone := d.slotGone(ctx, own); gone != nil {
		return gone
	}
	return errRecordGone
}

// verify puts back a record that is not the one which was read: another process
// has deleted the volume meanwhile, and made it anew.
func (d *deletion) verify(ctx context.Context, own *dir, e *entry) error {
	name := e.name + recordSuffix
	if err := own.refresh(ctx); err != nil {
		return err
	}
	now, err := d.l.recordIn(ctx, own, name, d.record.ID)
	switch {
	case err != nil:
		return err
	case now == nil:
		return errTakenOver
	case now.key() == d.record.key():
		return nil
	}
	return d.s.purge.returnRecord(ctx, d.l, own, e, now)
}

// find opens the parent if the directory is in it and is the volume's.
func (d *deletion) find(ctx context.Context) (err error) {
	r := d.record
	if r.OnDelete == nfs.Retain || r.Shared != "" {
		return nil
	}
	key, err := d.l.claimant(ctx, r.Dir)
	if err != nil {
		return err
	}
	if key != "" && idOf(key) != r.ID {
		klog.FromContext(ctx).Info("A volume is deleted without its directory, which belongs to another volume", "volume", r.Name, "dir", r.Dir, "owner", key)
		return nil
	}
	parent, _, err := d.s.walk(ctx, parentOf(r.Dir), lookForSure)
	if err != nil {
		return ignoreAbsent(err)
	}
	base := path.Base(r.Dir)
	held, err := parent.hold(ctx, base)
	if isAbsent(err) {
		if err = parent.refresh(ctx); err == nil {
			held, err = parent.hold(ctx, base)
		}
	}
	if err == nil {
		held.close()
		d.parent = parent
		return nil
	}
	parent.close()
	if isNotDir(err) {
		err = fmt.Errorf("%w: it has become a file or a symbolic link: remove that by hand and try again", nfs.ErrForeign)
	}
	return ignoreAbsent(err)
}

// announceArchive writes the archive record of this very volume, if there is none
// yet, and says what is in it. No attempt can choose another name, so nothing is
// archived twice or over something else. An attempt long ago may have come to
// nothing, and the retention counts from the last.
func announceArchive(ctx context.Context, l *layout, r *record) (*archiveRecord, error) {
	now := time.Now().UTC()
	a := &archiveRecord{Version: recordVersion, Target: archiveName(path.Base(r.Dir), r.ID, now), Archived: now, Volume: *r}
	data, err := encode(a)
	if err != nil {
		return nil, err
	}
	name := r.key() + recordSuffix
	if err := l.publish(ctx, l.archive, name, data); !isTaken(err) {
		return a, err
	}
	before, _, err := l.archived(ctx, name)
	if err != nil || before.Volume.ArchiveRetention == "" && r.ArchiveRetention == "" {
		return before, err
	}
	a.Target = before.Target
	if data, err = encode(a); err != nil {
		return nil, err
	}
	temp := r.key() + "." + randomName()
	if err := l.work.writeFile(ctx, temp, data); err != nil {
		return nil, err
	}
	return a, l.work.rename(ctx, temp, l.archive, name)
}

// archived reads the record of an archive.
func (l *layout) archived(ctx context.Context, name string) (*archiveRecord, info, error) {
	data, file, err := readDocument(ctx, l.archive, name)
	if err != nil {
		return nil, info{}, err
	}
	a, err := decodeArchive(path.Join(l.archive.path, name), data)
	return a, file, err
}

// checkFree fails when something has the archive's name already, since rename(2)
// would put it in the place of an empty directory.
func (r *archiveRecord) checkFree(ctx context.Context, parent *dir) error {
	_, err := parent.lstat(ctx, r.Target)
	if err == nil {
		return fmt.Errorf("%w: its archive %q exists already, and so does the directory: someone has brought it back: move either away", nfs.ErrBusy, path.Join(parent.path, r.Target))
	}
	return ignoreAbsent(err)
}

// archive moves the directory from where the delete has put it to its name as an
// archive.
func (s *Store) archive(ctx context.Context, l *layout, own *dir, e *entry, r *record) error {
	if e.place != inSlot && e.place != besideIt {
		return nil
	}
	// Empty without the directory, the parents may be gone.
	parent, _, err := s.walk(ctx, parentOf(r.Dir), makeMissing)
	if err != nil {
		return err
	}
	defer parent.close()
	a := e.announced
	if a == nil {
		if a, err = announceArchive(ctx, l, r); err != nil {
			return err
		}
	}
	if err := a.checkFree(ctx, parent); err != nil {
		return err
	}
	var from *dir
	if e.place == besideIt {
		from, err = parent.openDir(ctx, hiddenPrefix+e.name)
	} else {
		from, err = s.purge.slotOf(ctx, l, own, e)
	}
	if err != nil {
		return err
	}
	defer from.close()
	if err := from.rename(ctx, e.name, parent, a.Target); err != nil {
		return err
	}
	if e.place == besideIt {
		if err := parent.rmdir(ctx, hiddenPrefix+e.name); err != nil && !isAbsent(err) {
			return err
		}
	}
	e.place = nowhere
	s.purge.archives.note(r.key(), a.due(time.Now()))
	return parent.sync(ctx)
}

// archiveName is "archived-<base>-<time>-<id>", with the base cut short where
// the name would be too long.
func archiveName(base, id string, now time.Time) string {
	tail := "-" + now.Format(archiveTime) + "-" + id
	room := maxName - len(archivePrefix) - len(tail)
	for len(base) > room {
		_, size := utf8.DecodeLastRuneInString(base)
		base = base[:len(base)-size]
	}
	return archivePrefix + base + tail
}
