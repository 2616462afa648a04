package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

const (
	// markBit on the file of a record says that the volume may have changes. It lets
	// nobody in, since the directory is for its owner alone.
	markBit = unix.S_IRGRP
	// changeTries is how often what others change meanwhile is tried again.
	changeTries = 10
)

// changeName names the n-th change of a volume.
func changeName(n uint64) string { return strconv.FormatUint(n, 10) + recordSuffix }

// parseChangeName understands what changeName has made.
func parseChangeName(name string) (n uint64, ok bool) {
	n, err := strconv.ParseUint(strings.TrimSuffix(name, recordSuffix), 10, 64)
	return n, err == nil && n > 0 && changeName(n) == name
}

// marked says whether the record of that file may have changes. A symbolic link
// always may, and so may every file where the file system keeps no modes.
func (i info) marked() bool { return i.mode&markBit != 0 }

// latest returns a marked record, which is of that name in d, as it was changed
// last. It is nil when the record has gone meanwhile.
func (l *layout) latest(ctx context.Context, d *dir, name string, r *record) (*record, error) {
	now, err := l.lastChange(ctx, r)
	if err != nil || now != nil {
		return now, err
	}
	// Changes go before their record only where it is in the trash, and soon gone.
	if there, err := d.holds(ctx, name, r.file); err != nil || !there {
		return nil, err
	}
	return r, nil
}

// lastChange returns nil when the volume was never changed.
func (l *layout) lastChange(ctx context.Context, r *record) (*record, error) {
	changes, err := l.openChanges(ctx, r)
	if err != nil || changes == nil {
		return nil, err
	}
	defer changes.close()
	for range changeTries {
		numbers, err := changes.numbers(ctx)
		if err != nil || len(numbers) == 0 {
			return nil, err
		}
		last := slices.Max(numbers)
		name := changeName(last)
		data, _, err := readDocument(ctx, changes, name)
		if isAbsent(err) { // others have made two changes since
			continue
		}
		if err != nil {
			return nil, err
		}
		now, err := decodeRecord(path.Join(changes.path, name), data)
		if err != nil {
			return nil, err
		}
		if now.key() != r.key() || now.Dir != r.Dir {
			return nil, fmt.Errorf("%w: the change %q is of another volume than its record", nfs.ErrForeign, path.Join(changes.path, name))
		}
		now.file, now.changes, now.number = r.file, r.changes, last
		return now, nil
	}
	return nil, fmt.Errorf("%w: the volume %q was changed %d times meanwhile", nfs.ErrBusy, r.Name, changeTries)
}

// openChanges opens the directory of the volume's changes; nil when there is none.
func (l *layout) openChanges(ctx context.Context, r *record) (*dir, error) {
	d, err := l.changes.openDir(ctx, r.changes)
	if isAbsent(err) {
		if err := l.changes.refresh(ctx); err != nil {
			return nil, err
		}
		d, err = l.changes.openDir(ctx, r.changes)
	}
	if isAbsent(err) || errors.Is(err, unix.ESTALE) {
		return nil, nil
	}
	if err != nil {
		return nil, notDirectory(err, path.Join(l.changes.path, r.changes))
	}
	return d, nil
}

// numbers returns those of the changes in the directory, none when it was removed.
func (d *dir) numbers(ctx context.Context) (numbers []uint64, err error) {
	// Else the client's cache may say what was in it before.
	if err = d.stat(ctx); err == nil {
		err = d.list(ctx, func(names []string) error {
			for _, name := range names {
				n, ok := parseChangeName(name)
				if !ok && !strings.HasPrefix(name, nfsRemoved) {
					return fmt.Errorf("%w: %q is not what this driver writes: use the driver that wrote it, or remove it", nfs.ErrForeign, path.Join(d.path, name))
				}
				if ok {
					numbers = append(numbers, n)
				}
			}
			return nil
		})
	}
	if isAbsent(err) || errors.Is(err, unix.ESTALE) {
		return nil, nil
	}
	return numbers, err
}

// nfsRemoved begins the names of files that the NFS client keeps for those who
// have them open, after they were removed.
const nfsRemoved = ".nfs"

// change makes to the next change of the volume that r was read of. It fails with
// ENOENT or EEXIST when another process has deleted or changed that meanwhile.
func (l *layout) change(ctx context.Context, r, to *record) error {
	data, err := encode(to)
	if err != nil {
		return err
	}
	if !r.file.marked() {
		if err := l.volumes.mark(ctx, r.ID+recordSuffix, r.file); err != nil {
			return err
		}
	}
	if r.number == 0 {
		err := l.changes.mkdir(ctx, r.changes, 0o700)
		if err == nil {
			err = l.changes.sync(ctx)
		}
		if err != nil && !isTaken(err) {
			return err
		}
	}
	changes, err := l.changes.openDir(ctx, r.changes)
	if err != nil {
		return err
	}
	defer changes.close()
	mine := changeName(r.number + 1)
	published := l.publish(ctx, changes, mine, data)
	// The delete and its purge may have come to their end before.
	switch there, err := l.volumes.holds(ctx, r.ID+recordSuffix, r.file); {
	case err != nil:
		return err
	case !there:
		return l.takeBack(ctx, r, changes, mine, published)
	case published != nil:
		return published
	}
	return changes.prune(ctx)
}

// takeBack removes what a change has left of a volume that is deleted, unless
// others are at work there.
func (l *layout) takeBack(ctx context.Context, r *record, changes *dir, mine string, published error) error {
	if published == nil {
		if err := changes.unlink(ctx, mine); err != nil && !isAbsent(err) && !errors.Is(err, unix.ESTALE) {
			return err
		}
	}
	if err := l.changes.rmdir(ctx, r.changes); err != nil && !isAbsent(err) && !isNotEmpty(err) {
		return err
	}
	return opError("find", path.Join(l.volumes.path, r.ID+recordSuffix), unix.ENOENT)
}

// prune removes all but the last change and the one before, which whoever has just
// read the directory may be about to read. What came late under a number that was
// free again goes by that, too.
func (d *dir) prune(ctx context.Context) error {
	numbers, err := d.numbers(ctx)
	if err != nil || len(numbers) == 0 {
		return err
	}
	last := slices.Max(numbers)
	for _, n := range numbers {
		if n < last-1 {
			if err := d.unlink(ctx, changeName(n)); err != nil && !isAbsent(err) {
				return err
			}
		}
	}
	return nil
}

// holds asks the server whether the record of that name is the one which was read.
func (d *dir) holds(ctx context.Context, name string, file info) (bool, error) {
	if err := d.refresh(ctx); err != nil {
		return false, err
	}
	st, err := d.lstat(ctx, name)
	if isAbsent(err) {
		return false, nil
	}
	return err == nil && st.sameFile(file), err
}

// mark sets the markBit of the file, if it is still the one that is meant; else it
// fails with ENOENT.
func (d *dir) mark(ctx context.Context, name string, file info) error {
	return d.do(ctx, "mark", name, func(at int) error {
		fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if !infoOf(&st).sameFile(file) {
			return unix.ENOENT
		}
		if err := errors.Join(unix.Fchmod(fd, st.Mode&0o7777|markBit), unix.Fsync(fd), unix.Fstat(fd, &st)); err != nil {
			return err
		}
		if !infoOf(&st).marked() {
			return errors.New("the file system of the export does not keep the modes of files, so volumes on it cannot be changed")
		}
		return nil
	})
}

// takeChanges removes the changes of a volume, while a late update may be about to
// add one.
func (p *purger) takeChanges(ctx context.Context, l *layout, name string) error {
	// Nobody comes for them later, so the client's cache is not asked.
	err := l.changes.refresh(ctx)
	for try := 0; err == nil && try < raceTries; try++ {
		if err = p.remove(ctx, l.changes, name, nil, 0); isNotEmpty(err) {
			err = nil
			continue
		}
		return err
	}
	return err
}
