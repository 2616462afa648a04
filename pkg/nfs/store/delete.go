package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

const (
	archivePrefix = "archived-"
	hiddenPrefix  = ".nfs-csi-trash-"
	archiveTime   = "20060102T150405.000000Z"

	// quick is less than it takes to delete a volume, make it again and put
	// something into it.
	quick = 500 * time.Millisecond
)

// DeleteVolume disposes of the volume as its record says, in a number of file
// operations that does not depend on what it holds. Without a record it
// succeeds, unless dir is given and exists. Errors: ErrForeign for a directory
// without a record, a record that is another instance's or cannot be read, and a
// volume whose directory has become something else; ErrBusy when the volume is
// deleted and made again elsewhere at this moment; ErrPermission, ErrUnavailable,
// ErrStale.
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
	l, err := s.layout(ctx)
	if err != nil {
		return err
	}
	if l == nil {
		return s.deleteUnrecorded(ctx, l, id, dir)
	}
	d := &deletion{s: s, l: l, began: time.Now()}
	defer d.close()
	if d.record, err = d.readRecord(ctx, id); err != nil {
		s.reopenAfter(l, err)
		return err
	}
	if d.record == nil {
		return s.deleteUnrecorded(ctx, l, id, dir)
	}
	if err := s.opts.checkOwner(d.record); err != nil {
		return err
	}
	err = d.run(ctx)
	s.reopenAfter(l, err)
	if err = raced(err); err != nil {
		return fmt.Errorf("directory %q: %w", d.record.Dir, err)
	}
	return nil
}

// deleteUnrecorded answers for a volume that has no record: it is gone already,
// or was never made.
func (s *Store) deleteUnrecorded(ctx context.Context, l *layout, id, dir string) error {
	if dir == "" {
		return nil
	}
	d, _, err := s.walk(ctx, dir, lookForSure)
	if err == nil {
		d.close()
	}
	if !isAbsent(err) {
		if err != nil && !errors.Is(err, nfs.ErrForeign) && !errors.Is(err, nfs.ErrPermission) {
			return err
		}
		return fmt.Errorf("%w: the directory %q exists, and no record says that the driver made it: if its data is no longer needed, remove it by hand, and then the PersistentVolume", nfs.ErrForeign, dir)
	}
	if l == nil {
		return nil
	}
	return l.unclaim(ctx, dir, id)
}

// deletion is one run of DeleteVolume on a volume that has a record.
type deletion struct {
	s       *Store
	l       *layout
	began   time.Time // before the record was read
	record  *record
	reading sync.WaitGroup // until the record's file is closed

	parent  *dir   // nil when it does not exist
	movedTo *dir   // where the directory was moved; nil while it was not
	newName string // its name there
	entry   string // in the trash; "" while there is none
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
	l := *d.l
	l.volumes = &volumes
	return l.recordForSure(ctx, id)
}

// run moves the directory, removes the record, and leaves the claim to the purge,
// by the name of what is in the trash. The record is what the processes that delete a
// volume contend for: who removes it has deleted the volume. While it stands, no
// one gives up the claim, and no one else can make the directory, so what was
// moved is the volume's. Between the two, some other process may have removed
// the record of the volume and made another volume of that id: a delete that took
// longer than that takes asks before it removes the record.
func (d *deletion) run(ctx context.Context) error {
	r := d.record
	if r.OnDelete == nfs.Retain {
		return d.retain(ctx)
	}
	if gone, err := d.takeAway(ctx); err != nil || gone {
		return err
	}
	if d.movedTo != nil {
		// From here on the context must not leave it half done.
		ctx = context.WithoutCancel(ctx)
	}
	if time.Since(d.began) > quick || r.ParentsCreated > 0 {
		if stands, err := d.stands(ctx); err != nil && !errors.Is(err, nfs.ErrBusy) {
			return err
		} else if !stands {
			return d.late(ctx, err)
		}
		if err := d.s.removeParents(ctx, r.Dir, r.ParentsCreated); err != nil {
			return err
		}
	}
	if d.entry == "" {
		d.entry = newTrashName(r)
		if err := d.l.trash.mkdir(ctx, d.entry, 0o700); err != nil {
			return err
		}
	}
	d.reading.Wait() // NFS only renames a file that is open
	err := d.l.volumes.unlink(ctx, r.ID+recordSuffix)
	if isAbsent(err) {
		return d.late(ctx, nil)
	}
	if err == nil {
		err = d.l.volumes.sync(ctx)
	}
	if err == nil {
		d.s.purge.confirm(d.entry)
	}
	return err
}

// late ends a delete that found the record gone, or another in its place
// (madeAnew): another process was faster. What was moved is then the volume, which
// the other found missing, unless another volume has been made there since. That
// has the claim, and gets its directory back.
func (d *deletion) late(ctx context.Context, madeAnew error) error {
	if d.movedTo == nil {
		return madeAnew
	}
	if err := d.l.dirs.refresh(ctx); err != nil {
		return err
	}
	owner, err := d.l.claimant(ctx, d.record.Dir)
	if err != nil {
		return err
	}
	if madeAnew == nil && (owner == "" || owner == d.record.ID) {
		return nil
	}
	if err := d.movedTo.rename(ctx, d.newName, d.parent, path.Base(d.record.Dir)); isAbsent(err) {
		return nil // purged already
	} else if err != nil {
		return fmt.Errorf("another process has deleted the volume, and a new directory was moved to %q by mistake and cannot be moved back: do it by hand, at once: %w", path.Join(d.movedTo.path, d.newName), err)
	}
	// A create that missed its directory in that moment has given it up.
	if _, err := d.s.removeEmpty(ctx, d.l, d.parent, d.record.Dir, ""); err != nil {
		return err
	}
	return fmt.Errorf("%w: another process has just deleted the volume, and its directory was made anew", nfs.ErrBusy)
}

// retain leaves the directory. The claim goes before the record, without which
// no retry would know of it; the directory keeps others away meanwhile.
func (d *deletion) retain(ctx context.Context) error {
	if err := d.l.unclaim(ctx, d.record.Dir, d.record.ID); err != nil {
		return err
	}
	if err := d.l.volumes.unlink(ctx, d.record.ID+recordSuffix); err != nil && !isAbsent(err) {
		return err
	}
	return d.l.volumes.sync(ctx)
}

// takeAway moves the directory to the trash or the archive. If it is missing, an
// earlier attempt has moved it, or it is lost; or the delete of another volume came
// late, moved it by mistake and is about to bring it back, which gets half a
// second. gone means that the volume has been deleted elsewhere.
func (d *deletion) takeAway(ctx context.Context) (gone bool, err error) {
	owner, err := d.l.claimant(ctx, d.record.Dir)
	if err != nil {
		return false, err
	}
	if owner != "" && owner != d.record.ID {
		klog.FromContext(ctx).Info("A volume is deleted without its directory, which belongs to another volume", "volume", d.record.Name, "dir", d.record.Dir, "owner", owner)
		return false, nil
	}
	move := d.trash
	if d.record.OnDelete == nfs.Archive {
		move = d.archive
	}
	tick := time.NewTicker(waitTick)
	defer tick.Stop()
	for range waitTicks {
		found, err := d.find(ctx)
		if err == nil && found {
			found, err = move(ctx)
		}
		if err != nil || found {
			return false, err
		}
		if stands, err := d.stands(ctx); err != nil || !stands {
			return true, err
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-tick.C:
		}
	}
	return false, nil
}

// find opens the parent and looks for the directory in it.
func (d *deletion) find(ctx context.Context) (found bool, err error) {
	d.parent.close()
	d.parent, _, err = d.s.walk(ctx, parentOf(d.record.Dir), lookForSure)
	if err != nil {
		return false, ignoreAbsent(err)
	}
	base := path.Base(d.record.Dir)
	held, err := d.parent.hold(ctx, base)
	if isAbsent(err) {
		if err := d.parent.refresh(ctx); err != nil {
			return false, err
		}
		held, err = d.parent.hold(ctx, base)
	}
	held.close()
	if isNotDir(err) {
		err = fmt.Errorf("%w: it has become a file or a symbolic link: remove that by hand and try again", nfs.ErrForeign)
	}
	return err == nil, ignoreAbsent(err)
}

// stands asks the server whether the record is still there: if not, the volume
// has been deleted elsewhere.
func (d *deletion) stands(ctx context.Context) (bool, error) {
	if err := d.l.volumes.refresh(ctx); err != nil {
		return false, err
	}
	st, err := d.l.volumes.lstat(ctx, d.record.ID+recordSuffix)
	switch {
	case isAbsent(err):
		return false, nil
	case err != nil:
		return false, err
	case !st.sameFile(d.record.file):
		return false, fmt.Errorf("%w: another process has just deleted the volume and made it anew", nfs.ErrBusy)
	}
	return true, nil
}

// trash moves the directory to the trash.
func (d *deletion) trash(ctx context.Context) (moved bool, err error) {
	entry := newTrashName(d.record)
	if moved, err = d.move(ctx, d.l.trash, entry); moved {
		d.entry = entry
	}
	if errors.Is(err, unix.EXDEV) {
		return d.hide(ctx)
	}
	return moved, err
}

// hide is trash for a directory on another file system of the server than the
// trash: it gets a hidden name beside its old one, and before that a pointer in
// the trash, by which the purge finds it.
func (d *deletion) hide(ctx context.Context) (moved bool, err error) {
	hidden := hiddenPrefix + d.record.ID + "-" + randomName()
	pointer := newTrashName(d.record) + pointerSuffix
	d.s.purge.hold(pointer)
	if err := d.l.trash.symlink(ctx, path.Join(d.parent.path, hidden), pointer); err != nil {
		return false, err
	}
	if moved, err = d.move(ctx, d.parent, hidden); moved {
		d.entry = pointer
	}
	return moved, err
}

// archive renames the directory to the name in the archive record of this very
// volume, which the first attempt has placed. No attempt can choose another, so
// nothing is archived twice or over something else.
func (d *deletion) archive(ctx context.Context) (moved bool, err error) {
	r := d.record
	now := time.Now().UTC()
	a := &archiveRecord{Version: recordVersion, Target: archiveName(path.Base(r.Dir), r.ID, now), Archived: now, Volume: *r}
	data, err := encode(a)
	if err != nil {
		return false, err
	}
	name := r.ID + "-" + strconv.FormatInt(r.Created.UnixNano(), 10) + recordSuffix
	switch err := d.l.publish(ctx, d.l.archive, name, data); {
	case isTaken(err):
		data, _, err := readDocument(ctx, d.l.archive, name)
		if err != nil {
			return false, err
		}
		if a, err = decodeArchive(path.Join(d.l.archive.path, name), data); err != nil {
			return false, err
		}
	case err != nil:
		return false, err
	}
	// rename(2) would put it in the place of an empty directory.
	switch _, err := d.parent.lstat(ctx, a.Target); {
	case err == nil:
		return false, fmt.Errorf("%w: its archive %q exists already, and so does the directory: another process archives it just now, or someone has brought it back; in that case move either away", nfs.ErrBusy, path.Join(d.parent.path, a.Target))
	case !isAbsent(err):
		return false, err
	}
	if moved, err = d.move(ctx, d.parent, a.Target); isNotEmpty(err) {
		err = fmt.Errorf("%w: another process archives it just now: %v", nfs.ErrBusy, err)
	}
	return moved, err
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

// move renames the directory, unless it is gone.
func (d *deletion) move(ctx context.Context, to *dir, name string) (moved bool, err error) {
	if err := d.parent.rename(ctx, path.Base(d.record.Dir), to, name); err != nil {
		return false, ignoreAbsent(err)
	}
	d.movedTo, d.newName = to, name
	return true, nil
}
