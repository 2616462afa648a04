package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// hook is called before each file operation with its name and the path that it
// is about, relative to the share. An error from it is the operation's error.
type hook func(ctx context.Context, op, path string) error

// dir is an opened directory of the export. Everything the store does to files
// goes through its methods, and each takes one plain name in that directory: no
// path is ever resolved and no symbolic link ever followed, so nothing can lead
// out of the root, nor to another place inside of it (which os.Root would
// allow). Held open, it also spares NFS the lookups of the path to it.
//
// The context is looked at before each operation. One that the kernel has begun
// cannot be interrupted: where a server may die, the process is what can be killed.
type dir struct {
	f    *os.File
	path string // relative to the share; "." is the share itself
	hook hook
	kept bool // held by the store beyond the operation at hand
	// closeFile closes what readFile has opened; nil means at once.
	closeFile func(fd int)
}

// openShare returns the directory that the root is.
func openShare(root *os.Root, h hook) (*dir, error) {
	f, err := root.Open(".")
	if err != nil {
		return nil, opError("open", ".", err)
	}
	return &dir{f: f, path: ".", hook: h, kept: true}, nil
}

// close releases the directory, unless the store keeps it.
func (d *dir) close() {
	if d != nil && !d.kept {
		_ = d.f.Close()
	}
}

// do runs one operation on the entry name of the directory, or on the directory
// itself when name is "". It repeats what a signal interrupted.
func (d *dir) do(ctx context.Context, op, name string, call func(fd int) error) error {
	p := path.Join(d.path, name)
	if strings.Contains(name, "/") || name == "." || name == ".." {
		return fmt.Errorf("%w: %s %q in %q: not a name", nfs.ErrInvalid, op, name, d.path)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s %q: %w", op, p, err)
	}
	if d.hook != nil {
		if err := d.hook(ctx, op, p); err != nil {
			return opError(op, p, err)
		}
	}
	conn, err := d.f.SyscallConn()
	if err != nil {
		return opError(op, p, err)
	}
	var callErr error
	err = conn.Control(func(fd uintptr) {
		for {
			if callErr = call(int(fd)); !errors.Is(callErr, unix.EINTR) {
				return
			}
		}
	})
	if err == nil {
		err = callErr
	}
	if err != nil {
		return opError(op, p, err)
	}
	return nil
}

// openDir opens a directory in this one. An entry that is no directory, be it a
// symbolic link to one, is ENOTDIR or ELOOP: see isNotDir.
func (d *dir) openDir(ctx context.Context, name string) (*dir, error) {
	return d.openAs(ctx, name, unix.O_RDONLY)
}

// hold opens a directory, whatever its mode, for nothing but stat and close.
func (d *dir) hold(ctx context.Context, name string) (*dir, error) {
	return d.openAs(ctx, name, unix.O_PATH)
}

func (d *dir) openAs(ctx context.Context, name string, flag int) (*dir, error) {
	var f *os.File
	err := d.do(ctx, "open", name, func(fd int) error {
		n, err := unix.Openat(fd, name, flag|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			f = os.NewFile(uintptr(n), path.Join(d.path, name))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &dir{f: f, path: path.Join(d.path, name), hook: d.hook}, nil
}

// list calls each with the names in the directory, in batches, until that
// returns an error. It may be called by several goroutines at once.
func (d *dir) list(ctx context.Context, each func(names []string) error) error {
	var f *os.File
	err := d.do(ctx, "list", "", func(fd int) error {
		// A descriptor of its own has a position of its own.
		n, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == nil {
			f = os.NewFile(uintptr(n), d.path)
		}
		return err
	})
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("list %q: %w", d.path, err)
		}
		names, err := f.Readdirnames(256)
		if len(names) > 0 {
			if err := each(names); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return opError("list", d.path, err)
		}
	}
}

// info is what the store wants to know of a file.
type info struct {
	mode     uint32 // type and permission bits as stat(2) has them
	uid, gid uint32
	ino      uint64
	mtime    unix.Timespec
}

// sameFile compares a file that is never written to again with what it was: an
// inode number alone may belong to another file by now.
func (i info) sameFile(o info) bool { return i.ino == o.ino && i.mtime == o.mtime }

func (i info) isDir() bool     { return i.mode&unix.S_IFMT == unix.S_IFDIR }
func (i info) isRegular() bool { return i.mode&unix.S_IFMT == unix.S_IFREG }

func infoOf(st *unix.Stat_t) info {
	return info{mode: st.Mode, uid: st.Uid, gid: st.Gid, ino: st.Ino, mtime: st.Mtim}
}

// lstat describes the entry itself, never what a symbolic link points to; the
// opened directory when name is "".
func (d *dir) lstat(ctx context.Context, name string) (info, error) {
	var st unix.Stat_t
	err := d.do(ctx, "lstat", name, func(fd int) error {
		return unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH)
	})
	return infoOf(&st), err
}

// refresh has the NFS client ask the server about this directory. Without it, a
// name that was missing a moment ago may be reported missing from the client's
// cache for as long as acdirmax (nfs(5)), though another client made it since.
// A directory that is itself gone is ESTALE, on every file system.
func (d *dir) refresh(ctx context.Context) error {
	err := d.stat(ctx)
	if errors.Is(err, unix.ESTALE) && !d.kept {
		return fmt.Errorf("%w: %q was removed at this moment", nfs.ErrBusy, d.path)
	}
	return err
}

// stat asks the server for the opened directory, and is ESTALE when that was
// removed.
func (d *dir) stat(ctx context.Context) error {
	_, err := d.changed(ctx)
	return err
}

// changed is stat, and says when an entry came or went last, or touch was called.
func (d *dir) changed(ctx context.Context) (unix.StatxTimestamp, error) {
	var st unix.Statx_t
	err := d.do(ctx, "stat", "", func(fd int) error {
		err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st)
		if err == nil && st.Nlink == 0 {
			return unix.ESTALE
		}
		return err
	})
	return st.Mtime, err
}

// written is when the entry's content was changed last, as the server knows it.
func (d *dir) written(ctx context.Context, name string) (unix.StatxTimestamp, error) {
	var st unix.Statx_t
	err := d.do(ctx, "stat", name, func(fd int) error {
		return unix.Statx(fd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st)
	})
	return st.Mtime, err
}

// touch gives the directory the time of now, by the server's clock.
func (d *dir) touch(ctx context.Context) error {
	return d.do(ctx, "touch", "", func(fd int) error {
		now := unix.Timespec{Nsec: unix.UTIME_NOW}
		return unix.UtimesNanoAt(fd, ".", []unix.Timespec{now, now}, 0)
	})
}

// mkdir fails with EEXIST when there is anything of that name. The umask applies.
func (d *dir) mkdir(ctx context.Context, name string, mode uint32) error {
	return d.do(ctx, "mkdir", name, func(fd int) error { return unix.Mkdirat(fd, name, mode) })
}

func (d *dir) rmdir(ctx context.Context, name string) error {
	return d.do(ctx, "rmdir", name, func(fd int) error { return unix.Unlinkat(fd, name, unix.AT_REMOVEDIR) })
}

// unlink removes anything but a directory, which is EISDIR.
func (d *dir) unlink(ctx context.Context, name string) error {
	return d.do(ctx, "unlink", name, func(fd int) error { return unix.Unlinkat(fd, name, 0) })
}

// symlink makes a symbolic link that holds text; EEXIST when the name is taken.
func (d *dir) symlink(ctx context.Context, text, name string) error {
	return d.do(ctx, "symlink", name, func(fd int) error { return unix.Symlinkat(text, fd, name) })
}

// readlink fails with EINVAL when the entry is no symbolic link.
func (d *dir) readlink(ctx context.Context, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	var n int
	err := d.do(ctx, "readlink", name, func(fd int) (err error) {
		n, err = unix.Readlinkat(fd, name, buf)
		return err
	})
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// rename moves an entry to another directory of the export.
func (d *dir) rename(ctx context.Context, name string, to *dir, toName string) error {
	return d.pair(ctx, "rename", name, to, toName, func(from, to int) error {
		return unix.Renameat(from, name, to, toName)
	})
}

// link gives a file a second name; EEXIST when that is taken.
func (d *dir) link(ctx context.Context, name string, to *dir, toName string) error {
	return d.pair(ctx, "link", name, to, toName, func(from, to int) error {
		return unix.Linkat(from, name, to, toName, 0)
	})
}

func (d *dir) pair(ctx context.Context, op, name string, to *dir, toName string, call func(from, to int) error) error {
	if toName == "" || strings.Contains(toName, "/") || toName == "." || toName == ".." {
		return fmt.Errorf("%w: %s to %q in %q: not a name", nfs.ErrInvalid, op, toName, to.path)
	}
	return d.do(ctx, op, name, func(from int) error {
		conn, err := to.f.SyscallConn()
		if err != nil {
			return err
		}
		var callErr error
		if err := conn.Control(func(fd uintptr) { callErr = call(from, int(fd)) }); err != nil {
			return err
		}
		return callErr
	})
}

// chown and chmod change the opened directory itself. chown goes first: it may
// clear the set-id bits (chown(2)). An id of -1 stays as it is.
func (d *dir) chown(ctx context.Context, uid, gid int) error {
	return d.do(ctx, "chown", "", func(fd int) error { return unix.Fchown(fd, uid, gid) })
}

func (d *dir) chmod(ctx context.Context, mode uint32) error {
	return d.do(ctx, "chmod", "", func(fd int) error { return unix.Fchmod(fd, mode) })
}

// widen gives the owner every right to the directory of that name, which may be
// one that cannot be opened. A symbolic link put in its place is not followed:
// the O_PATH descriptor is of the entry itself, and chmod(2) takes it only by
// way of /proc, fchmod(2) not at all.
func (d *dir) widen(ctx context.Context, name string) error {
	return d.do(ctx, "chmod", name, func(fd int) error {
		n, err := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(n)
		return unix.Chmod("/proc/self/fd/"+strconv.Itoa(n), 0o700)
	})
}

// sync makes the directory's entries durable. An NFS server has done that
// before it answered; on a local file system it takes this.
func (d *dir) sync(ctx context.Context) error {
	return d.do(ctx, "sync", "", unix.Fsync)
}

// statfs describes the file system of the directory.
func (d *dir) statfs(ctx context.Context) (unix.Statfs_t, error) {
	var st unix.Statfs_t
	err := d.do(ctx, "statfs", "", func(fd int) error { return unix.Fstatfs(fd, &st) })
	return st, err
}

// readFile returns the content of a regular file of at most limit bytes, and
// what it is. ELOOP means that it is a symbolic link.
func (d *dir) readFile(ctx context.Context, name string, limit int) (data []byte, of info, err error) {
	err = d.do(ctx, "read", name, func(fd int) error {
		// O_NONBLOCK, so that a planted FIFO is seen instead of waited for.
		n, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if d.closeFile != nil {
			defer d.closeFile(n)
		} else {
			defer unix.Close(n)
		}
		var st unix.Stat_t
		if err := unix.Fstat(n, &st); err != nil {
			return err
		}
		if !infoOf(&st).isRegular() {
			return fmt.Errorf("%w: it is not a regular file", nfs.ErrForeign)
		}
		if st.Size > int64(limit) {
			return fmt.Errorf("%w: its %d bytes are more than the %d that this driver writes", nfs.ErrForeign, st.Size, limit)
		}
		of = infoOf(&st)
		data, err = readUpTo(n, limit)
		return err
	})
	return data, of, err
}

func readUpTo(fd, limit int) ([]byte, error) {
	data := make([]byte, 0, 4096)
	for {
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
		n, err := unix.Read(fd, data[len(data):cap(data)])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, err
		case n == 0:
			return data, nil
		}
		if data = data[:len(data)+n]; len(data) > limit {
			return nil, fmt.Errorf("%w: it is longer than %d bytes", nfs.ErrForeign, limit)
		}
	}
}

// writeFile makes a new file, EEXIST when the name is taken, and returns when
// its content is on disk. On failure part of it may be there.
func (d *dir) writeFile(ctx context.Context, name string, data []byte) (err error) {
	fd := -1
	err = d.do(ctx, "create", name, func(at int) (err error) {
		fd, err = unix.Openat(at, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	defer func() {
		// NFS may report a full disk or quota no earlier than here. EINTR still
		// closes (close(2)), and what counts was synced before.
		closeErr := unix.Close(fd)
		if err == nil && closeErr != nil && !errors.Is(closeErr, unix.EINTR) {
			err = opError("close", path.Join(d.path, name), closeErr)
		}
	}()
	err = d.do(ctx, "write", name, func(int) error {
		for len(data) > 0 {
			n, err := unix.Write(fd, data)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
			data = data[max(n, 0):]
		}
		return nil
	})
	if err != nil {
		return err
	}
	return d.do(ctx, "sync", name, func(int) error { return unix.Fsync(fd) })
}

// opError gives an operation's failure its sentinel, and the operator a hint.
// The error number stays within reach of errors.Is.
func opError(op, p string, err error) error {
	hint, sentinel := classify(err)
	switch {
	case sentinel == nil:
		return fmt.Errorf("%s %q: %w", op, p, err)
	case errors.Is(err, sentinel):
		return fmt.Errorf("%s %q: %w", op, p, err)
	default:
		return fmt.Errorf("%w: %s %q: %w%s", sentinel, op, p, err, hint)
	}
}

// classify is the one table from error numbers (errno(3)) to sentinels. Those
// that are not in it, such as ENOENT, mean what the caller makes of them.
func classify(err error) (hint string, sentinel error) {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return "", sentinelOf(err)
	}
	switch errno {
	case unix.ENOSPC, unix.EDQUOT:
		return "; free space on the server or raise the quota", nfs.ErrFull
	case unix.EROFS:
		return "; the export or the file system behind it is read-only", nfs.ErrPermission
	case unix.EACCES, unix.EPERM:
		return "; the server refuses it to the user that it takes this client for: see root_squash in exports(5), and the owner and mode of the directory", nfs.ErrPermission
	case unix.ESTALE:
		return "", nfs.ErrStale
	case unix.EIO, unix.ETIMEDOUT, unix.EHOSTDOWN, unix.EHOSTUNREACH, unix.ENETDOWN, unix.ENETUNREACH,
		unix.ECONNREFUSED, unix.ECONNRESET, unix.ECONNABORTED, unix.ENOTCONN, unix.EPIPE, unix.EREMOTEIO, unix.ESHUTDOWN:
		return "", nfs.ErrUnavailable
	case unix.ENAMETOOLONG:
		return "; the file system of the export takes shorter names only", nfs.ErrInvalid
	}
	return "", nil
}

func sentinelOf(err error) error {
	for _, s := range nfs.Sentinels() {
		if errors.Is(err, s) {
			return s
		}
	}
	return nil
}

// raced gives ErrBusy to a failure that only another process can cause, by making
// or removing what this one relied on a moment ago.
func raced(err error) error {
	if !isAbsent(err) && !isNotEmpty(err) {
		return err
	}
	if sentinelOf(err) != nil {
		return err
	}
	return fmt.Errorf("%w: another process has interfered: %w", nfs.ErrBusy, err)
}

// isNotDir reports whether openDir failed because the entry is no directory.
func isNotDir(err error) bool { return errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) }

func isNotEmpty(err error) bool { return errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) }

func ignoreNotEmpty(err error) error {
	if isNotEmpty(err) {
		return nil
	}
	return err
}

func isAbsent(err error) bool { return errors.Is(err, unix.ENOENT) }

func isTaken(err error) bool { return errors.Is(err, unix.EEXIST) }
