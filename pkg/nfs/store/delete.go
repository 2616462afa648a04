package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

const (
	archivePrefix = "archived-"
	hiddenPrefix  = ".nfs-csi-trash-"
	trashTime     = "20060102T150405Z"
	archiveTime   = "20060102T150405.000000Z"
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
	var r *record
	if l != nil {
		if r, err = l.recordForSure(ctx, id); err != nil {
			s.reopenAfter(l, err)
			return err
		}
	}
	if r == nil {
		return s.deleteUnrecorded(ctx, l, id, dir)
	}
	if err := s.opts.checkOwner(r); err != nil {
		return err
	}
	d := &deletion{s: s, l: l, record: r}
	defer func() { d.parent.close(); d.held.close() }()
	err = d.run(ctx)
	s.reopenAfter(l, err)
	if err = raced(err); err != nil {
		return fmt.Errorf("directory %q: %w", r.Dir, err)
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
	s      *Store
	l      *layout
	record *record

	parent *dir // nil when it does not exist
	held   *dir // the volume's directory; nil when it is not there
}

func (d *deletion) run(ctx context.Context) error {
	if d.record.OnDelete == nfs.Retain {
		return d.retain(ctx)
	}
	if stands, err := d.look(ctx); err != nil || !stands {
		return err
	}
	stem := fmt.Sprintf("%s.%s.%s", d.record.ID, time.Now().UTC().Format(trashTime), randomName())
	move := d.trash
	if d.record.OnDelete == nfs.Archive {
		move = d.archive
	}
	if err := move(ctx, stem); err != nil {
		return err
	}
	return d.forget(ctx, stem)
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

// look finds the directory. If it is missing, an earlier attempt has moved it, or
// it is lost; or the delete of another volume came late, moved it by mistake and
// is about to bring it back, which gets half a second. A record that no longer
// stands is a delete that has succeeded elsewhere.
func (d *deletion) look(ctx context.Context) (stands bool, err error) {
	owner, err := d.l.claimant(ctx, d.record.Dir)
	if err != nil {
		return false, err
	}
	if owner != "" && owner != d.record.ID {
		klog.FromContext(ctx).Info("A volume is deleted without its directory, which belongs to another volume", "volume", d.record.Name, "dir", d.record.Dir, "owner", owner)
		return true, nil
	}
	tick := time.NewTicker(waitTick)
	defer tick.Stop()
	for range waitTicks {
		if stands, err := d.lookOnce(ctx); err != nil || !stands || d.held != nil {
			return stands, err
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-tick.C:
		}
	}
	return true, nil
}

// lookOnce finds the directory. The record must still stand afterwards: then what
// it saw is the volume, and not what someone made there after another process had
// deleted the volume.
func (d *deletion) lookOnce(ctx context.Context) (stands bool, err error) {
	d.parent.close()
	d.parent, _, err = d.s.walk(ctx, parentOf(d.record.Dir), lookForSure)
	if err == nil {
		err = d.lookAt(ctx, path.Base(d.record.Dir))
	}
	if err != nil && !isAbsent(err) {
		return false, err
	}
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

func (d *deletion) lookAt(ctx context.Context, base string) error {
	held, err := d.parent.hold(ctx, base)
	if isAbsent(err) {
		if err := d.parent.refresh(ctx); err != nil {
			return err
		}
		held, err = d.parent.hold(ctx, base)
	}
	switch {
	case err == nil:
		d.held = held
	case isNotDir(err):
		err = fmt.Errorf("%w: it has become a file or a symbolic link: remove that by hand and try again", nfs.ErrForeign)
	}
	return err
}

// trash moves the directory to the trash.
func (d *deletion) trash(ctx context.Context, stem string) error {
	if d.held == nil {
		return nil
	}
	err := d.move(ctx, d.l.trash, stem)
	if errors.Is(err, unix.EXDEV) {
		return d.hide(ctx, stem)
	}
	if err == nil {
		d.s.purge.confirm(stem)
	}
	return err
}

// hide is trash for a directory on another file system of the server than the
// trash: it gets a hidden name beside its old one, and before that a pointer in
// the trash, by which the purge finds it.
func (d *deletion) hide(ctx context.Context, stem string) error {
	hidden := hiddenPrefix + d.record.ID + "-" + randomName()
	pointer := stem + pointerSuffix
	d.s.purge.hold(pointer)
	if err := d.l.trash.symlink(ctx, path.Join(d.parent.path, hidden), pointer); err != nil {
		return err
	}
	if err := d.move(ctx, d.parent, hidden); err != nil {
		return err
	}
	d.s.purge.confirm(pointer)
	return nil
}

// archive renames the directory to the name in the archive record of this very
// volume, which the first attempt has placed. No attempt can choose another, so
// nothing is archived twice or over something else.
func (d *deletion) archive(ctx context.Context, _ string) error {
	if d.held == nil {
		// It was archived by an attempt that got no further, or is lost.
		return nil
	}
	r := d.record
	now := time.Now().UTC()
	a := &archiveRecord{Version: recordVersion, Target: archiveName(path.Base(r.Dir), r.ID, now), Archived: now, Volume: *r}
	data, err := encode(a)
	if err != nil {
		return err
	}
	name := r.ID + "-" + strconv.FormatInt(r.Created.UnixNano(), 10) + recordSuffix
	switch err := d.l.publish(ctx, d.l.archive, name, data); {
	case isTaken(err):
		data, _, err := readDocument(ctx, d.l.archive, name)
		if err != nil {
			return err
		}
		if a, err = decodeArchive(path.Join(d.l.archive.path, name), data); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	// rename(2) would put it in the place of an empty directory.
	switch _, err := d.parent.lstat(ctx, a.Target); {
	case err == nil:
		return fmt.Errorf("%w: its archive %q exists already, and so does the directory: another process archives it just now, or someone has brought it back; in that case move either away", nfs.ErrBusy, path.Join(d.parent.path, a.Target))
	case !isAbsent(err):
		return err
	}
	if err := d.move(ctx, d.parent, a.Target); isNotEmpty(err) {
		return fmt.Errorf("%w: another process archives it just now: %v", nfs.ErrBusy, err)
	} else if err != nil {
		return err
	}
	return nil
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

// move renames the directory and looks at what it has moved. Should that be
// something else than look saw, it goes back.
func (d *deletion) move(ctx context.Context, to *dir, name string) error {
	base := path.Base(d.record.Dir)
	err := d.parent.rename(ctx, base, to, name)
	if isAbsent(err) {
		// Another process deletes the same volume and was faster.
		return nil
	}
	if err != nil {
		return err
	}
	// From here on the context must not leave it half done.
	ctx = context.WithoutCancel(ctx)
	// While the directory that is held still exists, no other has its inode number.
	ino, err := d.held.stat(ctx)
	gone := errors.Is(err, nfs.ErrStale)
	if err != nil && !gone {
		return err
	}
	moved, err := to.lstat(ctx, name)
	switch {
	case isAbsent(err):
		return nil // purged already
	case err != nil:
		return err
	case !gone && moved.ino == ino:
		return nil
	}
	if err := to.rename(ctx, name, d.parent, base); isAbsent(err) {
		return nil // purged already
	} else if err != nil {
		return fmt.Errorf("another process has deleted the volume, and a new directory was moved to %q by mistake and cannot be moved back: do it by hand, at once: %w", path.Join(to.path, name), err)
	}
	// A create that missed its directory in that moment has given it up.
	if _, err := d.s.removeEmpty(ctx, d.l, d.parent, d.record.Dir, ""); err != nil {
		return err
	}
	return fmt.Errorf("%w: another process has just deleted the volume, and its directory was made anew", nfs.ErrBusy)
}

// forget ends the volume: its record goes to the trash, its claim and its empty
// parents go. Should this end half-way, the purge does the rest (purger.finish).
func (d *deletion) forget(ctx context.Context, stem string) error {
	r := d.record
	err := d.l.volumes.rename(ctx, r.ID+recordSuffix, d.l.trash, stem+recordSuffix)
	if isAbsent(err) {
		// The other process that deletes it was faster; then the rest is its own too.
		return nil
	}
	if err != nil {
		return err
	}
	if err := d.s.release(ctx, d.l, r); err != nil {
		return err
	}
	if err := d.l.volumes.sync(ctx); err != nil {
		return err
	}
	d.s.purge.confirm(stem + recordSuffix)
	return nil
}

// release gives up what a volume without a record still holds.
func (s *Store) release(ctx context.Context, l *layout, r *record) error {
	if err := l.unclaim(ctx, r.Dir, r.ID); err != nil {
		return err
	}
	return s.removeParents(ctx, r.Dir, r.ParentsCreated)
}
