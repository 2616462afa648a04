package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"

	"golang.org/x/sys/unix"
)

// attr is what a copy keeps or compares of a file. Two are == when the file has
// not been touched in between, but for being read.
type attr struct {
	dev, ino, nlink     uint64
	mode, uid, gid      uint32
	size, blocks        int64
	mtime, ctime, atime unix.Timespec
}

func (a attr) kind() uint32 { return a.mode & unix.S_IFMT }
func (a attr) perm() uint32 { return a.mode &^ unix.S_IFMT }

// sparse says that less is stored than the file is long; compression does it too.
func (a attr) sparse() bool { return a.blocks*512 < a.size }

// sameContent says that nobody has written to the file in between.
func (a attr) sameContent(b attr) bool {
	return a.ino == b.ino && a.size == b.size && a.mtime == b.mtime && a.ctime == b.ctime
}

// before compares two times of one clock.
func before(a, b unix.Timespec) bool {
	return a.Sec < b.Sec || a.Sec == b.Sec && a.Nsec < b.Nsec
}

func statx(fd int, name string, flags int) (attr, error) {
	var st unix.Statx_t
	err := unix.Statx(fd, name, flags|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS, &st)
	return attr{
		dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino, nlink: uint64(st.Nlink),
		mode: uint32(st.Mode), uid: st.Uid, gid: st.Gid, size: int64(st.Size), blocks: int64(st.Blocks),
		atime: timespec(st.Atime), mtime: timespec(st.Mtime), ctime: timespec(st.Ctime),
	}, err
}

func timespec(t unix.StatxTimestamp) unix.Timespec {
	return unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)}
}

// attr describes the entry itself, or the directory if name is "", for all that
// the NFS client's cache knows.
func (d *dir) attr(ctx context.Context, name string) (a attr, err error) {
	flags := 0
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	err = d.do(ctx, "lstat", name, func(fd int) (err error) {
		a, err = statx(fd, name, flags)
		return err
	})
	return a, err
}

// fresh describes the directory as the server knows it. That makes the NFS client
// drop what it had read of a directory that has changed since.
func (d *dir) fresh(ctx context.Context) (a attr, err error) {
	err = d.do(ctx, "stat", "", func(fd int) (err error) {
		a, err = statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC)
		if err == nil && a.nlink == 0 {
			return unix.ESTALE
		}
		return err
	})
	return a, err
}

// again opens the directory once more, with a descriptor and a position of its own.
func (d *dir) again(ctx context.Context) (*dir, error) {
	var f *os.File
	err := d.do(ctx, "open", "", func(fd int) error {
		n, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == nil {
			f = os.NewFile(uintptr(n), d.path)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &dir{f: f, path: d.path, hook: d.hook}, nil
}

// direntSize is the buffer that each directory being read takes.
const direntSize = 16 << 10

// entries calls each with every name in the directory and its type (as the
// S_IFMT bits, 0 where the file system does not tell), as long as that returns
// no error. It reads through the directory's own descriptor, so there can be one
// reader at a time.
func (d *dir) entries(ctx context.Context, each func(name string, kind uint32) error) error {
	const reclen, kind, name = 16, 18, 19 // offsets in struct linux_dirent64, see getdents(2)
	buf := make([]byte, direntSize)
	for first := true; ; first = false {
		n := 0
		err := d.do(ctx, "list", "", func(fd int) (err error) {
			if first {
				if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
					return err
				}
			}
			n, err = unix.Getdents(fd, buf)
			return err
		})
		if err != nil || n == 0 {
			return err
		}
		for b := buf[:n]; len(b) > name; {
			size := int(binary.NativeEndian.Uint16(b[reclen:]))
			if size <= name || size > len(b) {
				return fmt.Errorf("list %q: the kernel gave an entry of %d bytes", d.path, size)
			}
			entry := unix.ByteSliceToString(b[name:size])
			if entry != "." && entry != ".." {
				if err := each(entry, uint32(b[kind])<<12); err != nil {
					return err
				}
			}
			b = b[size:]
		}
	}
}

// mkfifo makes a named pipe; the umask applies.
func (d *dir) mkfifo(ctx context.Context, name string, mode uint32) error {
	return d.do(ctx, "mkfifo", name, func(fd int) error { return unix.Mknodat(fd, name, unix.S_IFIFO|mode, 0) })
}

// chownAt changes the entry itself. An id of -1 stays as it is.
func (d *dir) chownAt(ctx context.Context, name string, uid, gid int) error {
	return d.do(ctx, "chown", name, func(fd int) error { return unix.Fchownat(fd, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW) })
}

// chmodAt changes the entry itself, in the way that widen does and for its reasons.
func (d *dir) chmodAt(ctx context.Context, name string, mode uint32) error {
	return d.do(ctx, "chmod", name, func(fd int) error {
		n, err := unix.Openat(fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(n)
		return unix.Chmod("/proc/self/fd/"+strconv.Itoa(n), mode)
	})
}

// setTimes sets the times of the entry itself, or of the directory if name is "".
func (d *dir) setTimes(ctx context.Context, name string, a attr) error {
	at := name
	if at == "" {
		at = "."
	}
	return d.do(ctx, "utimes", name, func(fd int) error {
		return unix.UtimesNanoAt(fd, at, []unix.Timespec{a.atime, a.mtime}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// syncfs writes out all that was written to the file system of the directory, and
// fails if any of that has failed since the directory was opened (syncfs(2)).
func (d *dir) syncfs(ctx context.Context) error {
	return d.do(ctx, "sync", "", unix.Syncfs)
}

// file is an opened file. Like those of dir, its methods are where a copy can be
// cancelled, and killed by a test.
type file struct {
	fd   int
	path string // relative to the share
	hook hook
}

// openSource opens an entry to read it. A symbolic link is ELOOP, a socket ENXIO;
// it may be anything else but is not waited for.
//
// Over NFS it is opened with O_DIRECT, which is then taken back: so the client asks the
// server for no delegation of the file (nfs4_map_atomic_open_share in the kernel's
// fs/nfs/nfs4proc.c), which would have to be given back by a call, and is of no use to
// one who reads the file once.
func (d *dir) openSource(ctx context.Context, name string, flags int, onNFS bool) (*file, error) {
	direct := 0
	if onNFS {
		direct = unix.O_DIRECT
	}
	f, err := d.openFileAs(ctx, "open", name, unix.O_RDONLY|direct|flags, 0)
	if direct != 0 && errors.Is(err, unix.EINVAL) {
		// It is no regular file by now.
		f, err = d.openFileAs(ctx, "open", name, unix.O_RDONLY|flags, 0)
	}
	if err != nil || direct == 0 {
		return f, err
	}
	if _, err := unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, unix.O_NONBLOCK|flags); err != nil {
		return nil, errors.Join(opError("open", f.path, err), f.close(ctx))
	}
	return f, nil
}

// createFile makes a file, EEXIST when the name is taken. Over NFS that is one
// more call for each file: the times, in which the server remembers who made it,
// have to be set anew (RFC 8881, section 18.16.3). Without it, a regular file that
// is there is opened, and the caller looks whether it is new.
func (d *dir) createFile(ctx context.Context, name string, mode uint32, exclusive bool) (*file, error) {
	flags := unix.O_WRONLY | unix.O_CREAT
	if exclusive {
		flags |= unix.O_EXCL
	}
	return d.openFileAs(ctx, "create", name, flags, mode)
}

func (d *dir) openFileAs(ctx context.Context, op, name string, flags int, mode uint32) (*file, error) {
	f := &file{fd: -1, path: path.Join(d.path, name), hook: d.hook}
	err := d.do(ctx, op, name, func(fd int) (err error) {
		f.fd, err = unix.Openat(fd, name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, mode)
		return err
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// do runs one operation on the file. It repeats what a signal interrupted.
func (f *file) do(ctx context.Context, op string, call func(fd int) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s %q: %w", op, f.path, err)
	}
	if f.hook != nil {
		if err := f.hook(ctx, op, f.path); err != nil {
			return opError(op, f.path, err)
		}
	}
	for {
		err := call(f.fd)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EINTR):
			return opError(op, f.path, err)
		}
	}
}

// attr describes the file as it was at the last call to the server, which was
// open(2) if there was no other.
func (f *file) attr(ctx context.Context) (a attr, err error) {
	err = f.do(ctx, "stat", func(fd int) (err error) {
		a, err = statx(fd, "", unix.AT_EMPTY_PATH)
		return err
	})
	return a, err
}

// fresh describes the file as the server knows it now.
func (f *file) fresh(ctx context.Context) (a attr, err error) {
	err = f.do(ctx, "stat", func(fd int) (err error) {
		a, err = statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC)
		return err
	})
	return a, err
}

func (f *file) truncate(ctx context.Context, size int64) error {
	return f.do(ctx, "truncate", func(fd int) error { return unix.Ftruncate(fd, size) })
}

func (f *file) sync(ctx context.Context) error {
	return f.do(ctx, "sync", unix.Fsync)
}

// close closes the file once. NFS may report a full disk no earlier than here.
func (f *file) close(ctx context.Context) error {
	if f.fd < 0 {
		return nil
	}
	fd := f.fd
	f.fd = -1
	err := unix.Close(fd)
	if f.hook != nil {
		err = errors.Join(err, f.hook(ctx, "close", f.path))
	}
	// EINTR has closed it nevertheless (close(2)).
	if err != nil && !errors.Is(err, unix.EINTR) {
		return opError("close", f.path, err)
	}
	return nil
}
