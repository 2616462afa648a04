package driver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	mountutils "k8s.io/mount-utils"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/mount"
)

// table is a mount table in memory that behaves as the kernel's does, and a
// diary of what was done to it.
type table struct {
	mu     sync.Mutex
	mounts []mountutils.MountInfo
	diary  []string
	// usageErr is what Usage answers for a path until the path is unmounted.
	usageErr map[string]error
	mountErr error
	bindErr  error
	// stuck keeps Unmount from having an effect.
	stuck bool
	// beforeBind runs in Bind before anything else.
	beforeBind func(t *table)
}

func (t *table) note(format string, args ...any) {
	t.diary = append(t.diary, fmt.Sprintf(format, args...))
}

func (t *table) add(info mountutils.MountInfo, readOnly bool) {
	info.MountOptions = []string{"rw"}
	if readOnly {
		info.MountOptions = []string{"ro"}
	}
	t.mounts = append(t.mounts, info)
}

func (t *table) Mount(_ context.Context, e nfs.Export, dir, target string, readOnly bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.note("mount %s at %s ro=%v options=%v", e.Source(e.Addresses()[0], dir), filepath.Base(target), readOnly, e.Options)
	if t.mountErr != nil {
		return t.mountErr
	}
	if info, err := os.Stat(target); err != nil || !info.IsDir() {
		return fmt.Errorf("the target %s is no directory: %w", target, err)
	}
	t.add(mountutils.MountInfo{
		Source: e.Source(e.Addresses()[0], dir), FsType: "nfs4", MountPoint: target,
		SuperOptions: []string{"rw", "vers=4.2", "hard", "proto=tcp"},
	}, readOnly)
	return nil
}

func (t *table) Bind(_ context.Context, source, target string, readOnly bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.beforeBind != nil {
		t.beforeBind(t)
	}
	if err := t.usageErr[source]; err != nil {
		return err
	}
	t.note("bind %s to %s ro=%v", filepath.Base(source), filepath.Base(target), readOnly)
	if t.bindErr != nil {
		return t.bindErr
	}
	if info, err := os.Stat(target); err != nil || !info.IsDir() {
		return fmt.Errorf("the target %s is no directory: %w", target, err)
	}
	info, ok := mount.Find(t.mounts, source)
	if !ok { // What the kernel does: bind the directory of the file system below.
		info = mountutils.MountInfo{Source: "/dev/sda1", FsType: "ext4"}
	}
	info.MountPoint = target
	t.add(info, readOnly || isReadOnly(info))
	return nil
}

func (t *table) Unmount(_ context.Context, target string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := mount.Find(t.mounts, target); ok {
		t.note("unmount %s", filepath.Base(target))
	}
	if !t.stuck {
		t.remove(target)
	}
	return nil
}

func (t *table) remove(target string) {
	t.mounts = slices.DeleteFunc(t.mounts, func(m mountutils.MountInfo) bool { return m.MountPoint == target })
	delete(t.usageErr, target)
}

func (t *table) List() ([]mountutils.MountInfo, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.mounts), nil
}

func (t *table) Usage(_ context.Context, path string) (nfs.Usage, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.usageErr[path]; err != nil {
		return nfs.Usage{}, err
	}
	return nfs.Usage{TotalBytes: 100, AvailableBytes: 60, UsedBytes: 40, TotalInodes: 10, AvailableInodes: 3, UsedInodes: 7}, nil
}

// done returns the diary since the last call.
func (t *table) done() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.diary
	t.diary = nil
	return d
}
