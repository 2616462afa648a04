package mount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	mountutils "k8s.io/mount-utils"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// utils is the Mounter in the form of k8s.io/mount-utils, whose methods have
// the same names as the Mounter's and other parameters.
type utils struct{ m *Mounter }

var _ mountutils.MounterForceUnmounter = utils{}

// Utils returns the Mounter as an interface of k8s.io/mount-utils. It mounts NFS
// and binds, and nothing else. Its calls have no context: they end when the
// kernel does.
func (m *Mounter) Utils() mountutils.MounterForceUnmounter { return utils{m} }

// Mount mounts source ("server:/path") at target as fstype ("nfs", "nfs4", or
// empty), or binds it with the option "bind". "remount" with "bind" makes the
// target read-only if "ro" is among the options.
func (u utils) Mount(source, target, fstype string, options []string) error {
	ctx := context.Background()
	readOnly := slices.Contains(options, "ro")
	switch {
	case slices.Contains(options, "bind") && slices.Contains(options, "remount"):
		if !readOnly {
			return nil
		}
		if err := u.m.remountReadOnly(target); err != nil {
			return local("bind", target, err)
		}
		return nil
	case slices.Contains(options, "bind"):
		return u.m.Bind(ctx, source, target, readOnly)
	case fstype != "" && fstype != "nfs" && fstype != "nfs4":
		return &Error{Op: "mount", Subject: source, Kind: nfs.ErrInvalid,
			Reason: fmt.Sprintf("the file system type %q is not NFS", fstype)}
	}
	export, err := nfs.ParseExport(strings.ReplaceAll(source, " ", `\040`))
	if err != nil {
		return &Error{Op: "mount", Subject: source, Reason: "bad source", Kind: nfs.ErrInvalid, Err: err}
	}
	export.Options = options
	if fstype == "nfs4" {
		export.Options = append([]string{"vers=4"}, options...)
	}
	return u.m.Mount(ctx, export, "", target, readOnly)
}

// MountSensitive is Mount; NFS has no options that are secret.
func (u utils) MountSensitive(source, target, fstype string, options, sensitiveOptions []string) error {
	return u.Mount(source, target, fstype, slices.Concat(options, sensitiveOptions))
}

// MountSensitiveWithoutSystemd is MountSensitive: systemd is never used.
func (u utils) MountSensitiveWithoutSystemd(source, target, fstype string, options, sensitiveOptions []string) error {
	return u.MountSensitive(source, target, fstype, options, sensitiveOptions)
}

// MountSensitiveWithoutSystemdWithMountFlags refuses flags for mount(8), which is
// never run.
func (u utils) MountSensitiveWithoutSystemdWithMountFlags(source, target, fstype string, options, sensitiveOptions, mountFlags []string) error {
	if len(mountFlags) > 0 {
		return &Error{Op: "mount", Subject: source, Kind: nfs.ErrInvalid,
			Reason: fmt.Sprintf("no program is run that would take the flags %q", mountFlags)}
	}
	return u.MountSensitive(source, target, fstype, options, sensitiveOptions)
}

func (u utils) Unmount(target string) error {
	return u.m.Unmount(context.Background(), target)
}

func (u utils) UnmountWithForce(target string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return u.m.Unmount(ctx, target)
}

func (u utils) List() ([]mountutils.MountPoint, error) {
	infos, err := u.m.List()
	if err != nil {
		return nil, err
	}
	points := make([]mountutils.MountPoint, len(infos))
	for i, info := range infos {
		points[i] = mountutils.MountPoint{Device: info.Source, Path: info.MountPoint, Type: info.FsType,
			Opts: slices.Concat(info.MountOptions, info.SuperOptions)}
	}
	return points, nil
}

// IsLikelyNotMountPoint is exact here, and asks no server.
func (u utils) IsLikelyNotMountPoint(file string) (bool, error) {
	is, err := u.IsMountPoint(file)
	return !is, err
}

func (u utils) CanSafelySkipMountPointCheck() bool { return true }

// IsMountPoint looks into mountinfo, and at the path itself only if it is no
// mount point, to tell fs.ErrNotExist.
func (u utils) IsMountPoint(file string) (bool, error) {
	infos, err := u.m.List()
	if err != nil {
		return false, err
	}
	if _, ok := u.m.find(infos, file); ok {
		return true, nil
	}
	_, err = os.Lstat(file)
	return false, err
}

// GetMountRefs returns the other places where the file or directory at the path
// is mounted, and none for a path that does not exist.
func (u utils) GetMountRefs(pathname string) ([]string, error) {
	if _, err := os.Lstat(pathname); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil && !errors.Is(err, unix.ESTALE) {
		return nil, err
	}
	infos, err := u.m.List()
	if err != nil {
		return nil, err
	}
	return mountRefs(infos, resolveParent(infos, pathname)), nil
}

// mountRefs finds the mounts of what lies at the path: the same root within the
// same file system.
func mountRefs(infos []mountutils.MountInfo, place string) []string {
	var refs []string
	for i := len(infos) - 1; i >= 0; i-- {
		own := infos[i]
		if !within(place, own.MountPoint) {
			continue
		}
		root := strings.TrimSuffix(own.Root, "/") + strings.TrimPrefix(place, strings.TrimSuffix(own.MountPoint, "/"))
		if root == "" {
			root = "/"
		}
		for _, info := range infos {
			if info.ID != own.ID && info.Root == root && info.Major == own.Major && info.Minor == own.Minor {
				refs = append(refs, info.MountPoint)
			}
		}
		break
	}
	return refs
}
