package mount

import (
	"context"
	"errors"
	"slices"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// Bind makes the directory or file source visible at target, which exists, and
// at no moment writable there if readOnly is set and the kernel has
// mount_setattr(2) (Linux 5.12). Neither may be a symbolic link. Mounts below
// source are not taken along. The server behind source is asked first, so that
// a mount that is dead or stale is not handed on; like Usage, that blocks while
// the server does not answer. Errors are of type *Error.
func (m *Mounter) Bind(ctx context.Context, source, target string, readOnly bool) error {
	if err := ctx.Err(); err != nil {
		return &Error{Op: "bind", Subject: target, Reason: "no time left", Kind: nfs.ErrUnavailable, Err: err}
	}
	if _, err := m.Usage(ctx, source); err != nil {
		return err
	}
	err := error(localCall("mount_setattr", unix.ENOSYS))
	if !m.options.Legacy {
		err = bindTree(source, target, readOnly)
	}
	if errors.Is(err, unix.ENOSYS) {
		err = m.bindLegacy(source, target, readOnly)
	}
	if err != nil {
		return local("bind", source+" at "+target, err)
	}
	klog.FromContext(ctx).V(4).Info("Bound", "source", source, "target", target, "readOnly", readOnly)
	return nil
}

func bindTree(source, target string, readOnly bool) error {
	place, err := openTarget(target)
	if err != nil {
		return err
	}
	defer place.Close()
	tree, err := unix.OpenTree(unix.AT_FDCWD, source,
		unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
	if err != nil {
		return localCall("open_tree", withheld(err))
	}
	defer unix.Close(tree)
	if kind, err := fileType(tree); err != nil || kind == unix.S_IFLNK {
		return errors.Join(err, localCall("the source is a symbolic link", unix.ELOOP))
	}
	if readOnly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return localCall("mount_setattr", withheld(err))
		}
	}
	return localCall("move_mount", unix.MoveMount(tree, "", int(place.Fd()), "",
		unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// withheld turns the EPERM of a seccomp profile older than the call into ENOSYS.
func withheld(err error) error {
	if errors.Is(err, unix.EPERM) && privileged() {
		return unix.ENOSYS
	}
	return err
}

// bindLegacy binds with mount(2). A read-only bind takes a second call there, so
// the mount is writable for an instant.
func (m *Mounter) bindLegacy(source, target string, readOnly bool) error {
	from, err := openTarget(source)
	if err != nil {
		return err
	}
	defer from.Close()
	place, err := openTarget(target)
	if err != nil {
		return err
	}
	defer place.Close()
	if err := unix.Mount(RootPath(from), RootPath(place), "", unix.MS_BIND, ""); err != nil {
		return localCall("mount", err)
	}
	if !readOnly {
		return nil
	}
	if err := m.remountReadOnly(target); err != nil {
		// A mount that stays writable is worse than none.
		return errors.Join(err, localCall("umount2", m.umount2(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)))
	}
	return nil
}

// remountReadOnly makes the mount at target read-only and keeps its other flags,
// which a remount would clear.
func (m *Mounter) remountReadOnly(target string) error {
	infos, err := m.List()
	if err != nil {
		return err
	}
	info, ok := m.find(infos, target)
	if !ok {
		return localCall("the bind is not in mountinfo", unix.EINVAL)
	}
	attr := unix.MOUNT_ATTR_RDONLY
	for _, option := range info.MountOptions {
		if a, ok := attributeOf(option); ok {
			attr |= a.set
		}
	}
	flags := legacyFlags(attr)
	if !slices.Contains(info.MountOptions, "relatime") && flags&unix.MS_NOATIME == 0 {
		// mountinfo shows strictatime by the absence of both.
		flags |= unix.MS_STRICTATIME
	}
	// Opened anew: a descriptor from before the bind leads below it.
	place, err := openTarget(target)
	if err != nil {
		return err
	}
	defer place.Close()
	return localCall("remount", unix.Mount("", RootPath(place), "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""))
}
