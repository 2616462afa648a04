package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	mountutils "k8s.io/mount-utils"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// checkPath returns the clean path of a request field, or ErrInvalid when it
// cannot be a place to mount at.
func checkPath(field, path string) (string, error) {
	clean := filepath.Clean(path)
	if !filepath.IsAbs(clean) || clean == "/" || strings.ContainsRune(path, 0) {
		return "", invalidf("%s %q is not an absolute path below /", field, path)
	}
	return clean, nil
}

// mountAt returns the mount on top at the path, if there is one.
func (n *node) mountAt(path string) (mountutils.MountInfo, bool, error) {
	mounts, err := n.mounts.List()
	if err != nil {
		return mountutils.MountInfo{}, false, err
	}
	info, ok := topMount(mounts, path)
	return info, ok, nil
}

// topMount finds the mount on top at the path: the last one in mountinfo. The
// path itself is never looked at, since that could wait for a dead server; only
// symbolic links in its parent are followed, which mountinfo shows resolved.
func topMount(mounts []mountutils.MountInfo, path string) (mountutils.MountInfo, bool) {
	at := func(path string) (mountutils.MountInfo, bool) {
		for _, m := range slices.Backward(mounts) {
			if m.MountPoint == path {
				return m, true
			}
		}
		return mountutils.MountInfo{}, false
	}
	if m, ok := at(path); ok {
		return m, true
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return mountutils.MountInfo{}, false
	}
	return at(filepath.Join(parent, filepath.Base(path)))
}

// otherTarget finds a mount of the staged volume that is not the staging mount.
// Its source tells: the kernel shows the directory in it for binds too
// (fs/nfs/super.c, nfs_show_devname).
func otherTarget(mounts []mountutils.MountInfo, staged mountutils.MountInfo, staging string) (mountutils.MountInfo, bool) {
	for _, m := range mounts {
		if m.Source == staged.Source && m.FsType == staged.FsType && m.MountPoint != staged.MountPoint && m.MountPoint != staging {
			return m, true
		}
	}
	return mountutils.MountInfo{}, false
}

func isReadOnly(m mountutils.MountInfo) bool {
	return slices.Contains(m.MountOptions, "ro") || slices.Contains(m.SuperOptions, "ro")
}

func describe(m mountutils.MountInfo) string {
	return fmt.Sprintf("%s (%s, %s)", m.Source, m.FsType, strings.Join(m.MountOptions, ","))
}

// mount mounts the volume at the path, which exists.
func (n *node) mount(ctx context.Context, volume volumeLocation, path string, readOnly bool) error {
	err := n.mounts.Mount(ctx, volume.export, volume.dir, path, readOnly)
	if errors.Is(err, nfs.ErrNoExport) {
		// On the node the missing directory is the volume itself.
		return fmt.Errorf("%w: %s: %s", nfs.ErrNotFound, volume, err.Error())
	}
	if err != nil {
		return fmt.Errorf("mount %s at %s: %w", volume, path, err)
	}
	return nil
}

// mountAnew replaces the mount at the staging path when the server no longer
// knows the directory behind it. Pods that run on the volume have mounts of
// their own and keep them.
func (n *node) mountAnew(ctx context.Context, volume volumeLocation, staging string, readOnly bool) error {
	klog.FromContext(ctx).Info("The staged mount is stale: mounting the volume anew", "path", staging)
	if err := n.mounts.Unmount(ctx, staging); err != nil {
		return fmt.Errorf("unmount the stale mount at %s: %w", staging, err)
	}
	return n.mount(ctx, volume, staging, readOnly)
}

// unmount takes away what is mounted at the path, and then the empty directory.
// Nothing mounted and no directory are a success: somebody did it before.
func (n *node) unmount(ctx context.Context, path string) error {
	if err := n.mounts.Unmount(ctx, path); err != nil {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	still, mounted, err := n.mountAt(path)
	if err != nil {
		return err
	}
	if mounted {
		return fmt.Errorf("%w: %s is still mounted at %s", nfs.ErrUnavailable, describe(still), path)
	}
	return removeMountPoint(path)
}

// makeMountPoint makes the directory at which nothing is mounted yet.
func makeMountPoint(path string) error {
	// Mostly its parent is there, and MkdirAll looks at both first.
	err := os.Mkdir(path, 0o750)
	if err != nil {
		err = os.MkdirAll(path, 0o750)
	}
	if err != nil {
		return fmt.Errorf("make the mount point: %w", err)
	}
	return nil
}

// removeMountPoint removes an empty directory and nothing else. Should it hold
// files, they were written while no volume was mounted, and they are the user's.
func removeMountPoint(path string) error {
	err := unix.Rmdir(path)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
		return fmt.Errorf("%w: the directory %s, with no volume mounted, holds files on the node's own disk; look at them and move them away",
			errPrecondition, path)
	}
	return fmt.Errorf("remove the mount point %s: %w", path, err)
}
