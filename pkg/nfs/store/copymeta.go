package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func (f *file) chowner(ctx context.Context) func(uid, gid int) error {
	return func(uid, gid int) error {
		return f.do(ctx, "chown", func(fd int) error { return unix.Fchown(fd, uid, gid) })
	}
}

func (f *file) chmoder(ctx context.Context) func(mode uint32) error {
	return func(mode uint32) error {
		return f.do(ctx, "chmod", func(fd int) error { return unix.Fchmod(fd, mode) })
	}
}

// finishDir gives a directory what is to be kept of its source. It comes when all
// names are in it: to make one changes its times.
func (c *treeCopy) finishDir(ctx context.Context, p *pair) error {
	have, err := p.dst.attr(ctx, "")
	if err != nil {
		return err
	}
	err = restoreOwner(have, p.attr,
		func(uid, gid int) error { return p.dst.chown(ctx, uid, gid) },
		func(mode uint32) error { return p.dst.chmod(ctx, mode) })
	if err != nil {
		return err
	}
	// One that is gone by now has been counted, or is counted as one that changed.
	if err := c.copyXattrs(ctx, p.src.xattrs(ctx, ""), p.dst.xattrs(ctx, ""), p.attr); err != nil && !errors.Is(err, errGone) {
		return err
	}
	return p.dst.setTimes(ctx, "", c.times.fitTimes(p.attr))
}

// finishSpecial does the same for what cannot be opened.
func (c *treeCopy) finishSpecial(ctx context.Context, src *dir, name string, want attr, dst *dir, dstName string) error {
	have, err := dst.attr(ctx, dstName)
	if err != nil {
		return err
	}
	chmod := func(mode uint32) error { return dst.chmodAt(ctx, dstName, mode) }
	if want.kind() == unix.S_IFLNK {
		chmod = nil // It has none.
	}
	err = restoreOwner(have, want, func(uid, gid int) error { return dst.chownAt(ctx, dstName, uid, gid) }, chmod)
	if err != nil {
		return err
	}
	// An NFS server keeps nothing of this kind for a symbolic link.
	if want.kind() != unix.S_IFLNK || !c.onNFS {
		if err := c.copyXattrs(ctx, src.xattrs(ctx, name), dst.xattrs(ctx, dstName), want); err != nil {
			return err
		}
	}
	return dst.setTimes(ctx, dstName, c.times.fitTimes(want))
}

// timeLimits are the times that a file system can hold.
type timeLimits struct {
	min, max int64 // seconds since 1970
	grain    int64 // nanoseconds
}

// fit says what the file system makes of a time.
func (l timeLimits) fit(t unix.Timespec) unix.Timespec {
	switch {
	case t.Sec <= l.min:
		return unix.Timespec{Sec: l.min}
	case t.Sec >= l.max:
		return unix.Timespec{Sec: l.max}
	}
	t.Nsec -= t.Nsec % l.grain
	return t
}

func (l timeLimits) fitTimes(a attr) attr {
	a.atime, a.mtime = l.fit(a.atime), l.fit(a.mtime)
	return a
}

// findTimeLimits tries out what times the file system of a directory keeps. NFS 3
// has no time before 1970, ext4 none after 2446, and old servers whole seconds.
func findTimeLimits(ctx context.Context, d *dir) (timeLimits, error) {
	const name, ns = "times", 123_456_789
	if err := ignoreAbsent(d.unlink(ctx, name)); err != nil {
		return timeLimits{}, err
	}
	f, err := d.createFile(ctx, name, 0o600, true)
	if err != nil {
		return timeLimits{}, err
	}
	if err := f.close(ctx); err != nil {
		return timeLimits{}, err
	}
	stored := func(sec int64) (unix.Timespec, error) {
		t := unix.Timespec{Sec: sec, Nsec: ns}
		err := d.setTimes(ctx, name, attr{mtime: t, atime: t})
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOVERFLOW) || errors.Is(err, unix.ERANGE) {
			return unix.Timespec{Sec: min(max(sec, 0), 1<<31-1)}, nil
		}
		if err != nil {
			return t, err
		}
		a, err := d.attr(ctx, name)
		return a.mtime, err
	}
	const far = 1 << 40 // seconds; farther off, some kernels lose the sign
	first, err := stored(-far)
	if err != nil {
		return timeLimits{}, err
	}
	last, err := stored(far)
	if err != nil {
		return timeLimits{}, err
	}
	now, err := stored(1 << 30)
	if err != nil {
		return timeLimits{}, err
	}
	l := timeLimits{min: first.Sec, max: last.Sec, grain: 1}
	for l.grain < 1e9 && now.Nsec != ns-ns%l.grain {
		l.grain *= 10
	}
	return l, ignoreAbsent(d.unlink(ctx, name))
}

// xattrs are the extended attributes of one file (xattr(7)).
type xattrs struct {
	list func(buf []byte) (int, error)
	get  func(name string, buf []byte) (int, error)
	set  func(name string, value []byte) error
}

func (f *file) xattrs(ctx context.Context) xattrs {
	do := func(call func(fd int) error) error { return f.do(ctx, "xattr", call) }
	return fdXattrs(do)
}

// xattrs are those of the entry itself, or of the directory if name is "". An
// entry that cannot be opened is reached by way of /proc, as in widen.
func (d *dir) xattrs(ctx context.Context, name string) xattrs {
	do := func(call func(fd int) error) error { return d.do(ctx, "xattr", name, call) }
	if name == "" {
		return fdXattrs(do)
	}
	at := func(fd int) string { return path.Join("/proc/self/fd", strconv.Itoa(fd), name) }
	return xattrs{
		list: func(buf []byte) (n int, err error) {
			err = do(func(fd int) (err error) { n, err = unix.Llistxattr(at(fd), buf); return err })
			return n, err
		},
		get: func(attr string, buf []byte) (n int, err error) {
			err = do(func(fd int) (err error) { n, err = unix.Lgetxattr(at(fd), attr, buf); return err })
			return n, err
		},
		set: func(attr string, value []byte) error {
			return do(func(fd int) error { return unix.Lsetxattr(at(fd), attr, value, 0) })
		},
	}
}

func fdXattrs(do func(call func(fd int) error) error) xattrs {
	return xattrs{
		list: func(buf []byte) (n int, err error) {
			err = do(func(fd int) (err error) { n, err = unix.Flistxattr(fd, buf); return err })
			return n, err
		},
		get: func(attr string, buf []byte) (n int, err error) {
			err = do(func(fd int) (err error) { n, err = unix.Fgetxattr(fd, attr, buf); return err })
			return n, err
		},
		set: func(attr string, value []byte) error {
			return do(func(fd int) error { return unix.Fsetxattr(fd, attr, value, 0) })
		},
	}
}

const (
	posixDefault = "system.posix_acl_default"
	posixAccess  = "system.posix_acl_access"
	nfs4ACL      = "system.nfs4_acl"
)

// copyXattrs copies the extended attributes that this process may read, access
// lists among them. What the target cannot hold, or does not let this process
// set, is counted.
func (c *treeCopy) copyXattrs(ctx context.Context, src, dst xattrs, want attr) error {
	if c.noXattrs.Load() {
		return nil
	}
	names, err := grow(src.list)
	switch {
	case isUnsupportedXattr(err):
		c.noXattrs.Store(true)
		return nil
	case err != nil:
		return c.sourceError(ctx, err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if err := c.copyXattr(ctx, src, dst, name, want); err != nil {
			return err
		}
	}
	return nil
}

func (c *treeCopy) copyXattr(ctx context.Context, src, dst xattrs, name string, want attr) error {
	if name == "" || strings.HasPrefix(name, "system.") && name != posixAccess && name != posixDefault && name != nfs4ACL {
		return nil // Other views of the same, system.nfs4_dacl among them.
	}
	value, err := grow(func(buf []byte) (int, error) { return src.get(name, buf) })
	switch {
	case err != nil:
		err = c.sourceError(ctx, err)
	case name == nfs4ACL:
		err = c.setNFS4ACL(dst, value, want)
	default:
		err = dst.set(name, value)
	}
	switch {
	case errors.Is(err, unix.ENODATA): // It was removed meanwhile.
		return nil
	case errors.Is(err, unix.ENOSPC):
		// ext4 says so of one that is too large for it, too.
		if st, statErr := c.job.statfs(ctx); statErr != nil || st.Bavail == 0 {
			return err
		}
	case isUnsupportedXattr(err), errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL), errors.Is(err, unix.E2BIG):
	default:
		return err
	}
	space, _, _ := strings.Cut(name, ".")
	c.notes.xattr(space)
	return nil
}

func isUnsupportedXattr(err error) bool {
	const enotsupp = unix.Errno(524) // see hasNoLinks
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, enotsupp)
}

// grow calls read with larger buffers until the answer fits.
func grow(read func(buf []byte) (int, error)) ([]byte, error) {
	for size := 1 << 10; ; size *= 8 {
		buf := make([]byte, size)
		n, err := read(buf)
		if errors.Is(err, unix.ERANGE) && size < 1<<20 {
			continue
		}
		return buf[:max(n, 0)], err
	}
}

// setNFS4ACL sets the access list that NFS 4 shows of every file, although most
// have only what follows from the mode. To set one that is there already would be
// a call for each file, and with some servers make it differ from the mode for
// ever. So what new files have by themselves is remembered by their mode.
func (c *treeCopy) setNFS4ACL(dst xattrs, acl []byte, want attr) error {
	if known, ok := c.acls.Load(want.mode); ok && known == string(acl) {
		return nil
	}
	have, err := grow(func(buf []byte) (int, error) { return dst.get(nfs4ACL, buf) })
	if err != nil {
		return err
	}
	if bytes.Equal(have, acl) {
		c.acls.Store(want.mode, string(acl))
		return nil
	}
	return dst.set(nfs4ACL, acl)
}

// dropInheritance has what is made in the directory get no access list from it,
// which the directory itself may have got from above. It says whether it still
// does: over NFS 4, a Linux server keeps the default list of a directory whatever
// is set (seen with Linux 6.1).
func (d *dir) dropInheritance(ctx context.Context) (inherits bool, err error) {
	err = d.do(ctx, "xattr", "", func(fd int) error { return unix.Fremovexattr(fd, posixDefault) })
	if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EINVAL) && !isUnsupportedXattr(err) {
		return false, err
	}
	x := d.xattrs(ctx, "")
	for range 2 {
		acl, err := grow(func(buf []byte) (int, error) { return x.get(nfs4ACL, buf) })
		switch {
		case isUnsupportedXattr(err), errors.Is(err, unix.ENODATA):
			return false, nil
		case err != nil:
			return false, err
		}
		kept := withoutInheritance(acl)
		if len(kept) == len(acl) {
			return false, nil
		}
		if err := x.set(nfs4ACL, kept); err != nil {
			return false, err
		}
	}
	return true, nil
}

// withoutInheritance leaves out the entries of an NFS 4 access list that files and
// directories inherit. The attribute is a number of entries and then for each its
// type, flags, mask and, with its length and padded to four bytes, its who (RFC
// 8881, section 6.2.1). What does not look like that is returned as it is.
func withoutInheritance(acl []byte) []byte {
	const inherit = 0x1 | 0x2 // ACE4_FILE_INHERIT_ACE, ACE4_DIRECTORY_INHERIT_ACE
	if len(acl) < 4 {
		return acl
	}
	kept, count := make([]byte, 4, len(acl)), uint32(0)
	rest := acl[4:]
	for range binary.BigEndian.Uint32(acl) {
		if len(rest) < 16 {
			return acl
		}
		size := 16 + (int64(binary.BigEndian.Uint32(rest[12:]))+3)&^3
		if size > int64(len(rest)) {
			return acl
		}
		if binary.BigEndian.Uint32(rest[4:])&inherit == 0 {
			kept = append(kept, rest[:size]...)
			count++
		}
		rest = rest[size:]
	}
	binary.BigEndian.PutUint32(kept, count)
	return kept
}
