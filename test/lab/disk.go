package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// FS is a kind of file system.
type FS string

// Kinds of file system that a lab makes.
const (
	Tmpfs FS = "tmpfs" // in the guest's memory, gone with the guest
	Ext4  FS = "ext4"
	XFS   FS = "xfs" // with reflink=1
)

// DiskSpec is a disk of a guest, /dev/ubda for the first. It keeps its data when the guest is
// killed and started again.
type DiskSpec struct {
	FS     FS  // Ext4, XFS, or "" for an empty disk
	SizeMB int // default 1024; the host's file is sparse
}

const maxDisks = 8 // User Mode Linux has no more

// makeDisk makes the disk's file if it is not there yet.
func makeDisk(ctx context.Context, path string, spec DiskSpec) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	size := spec.SizeMB
	if size == 0 {
		size = 1024
	}
	var mkfs []string
	switch spec.FS {
	case "":
	case Ext4:
		mkfs = []string{"mkfs.ext4", "-q", "-F"}
	case XFS:
		mkfs = []string{"mkfs.xfs", "-q", "-m", "reflink=1"}
	default:
		return fmt.Errorf("disk %s: no disk can have a file system %q", path, spec.FS)
	}
	tmp := path + ".new"
	f, err := os.Create(tmp)
	if err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	err = f.Truncate(int64(size) << 20)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	if mkfs != nil {
		program, err := findTool(mkfs[0])
		if err != nil {
			return fmt.Errorf("make disk: %w", err)
		}
		if err := runHost(ctx, program, append(mkfs[1:], tmp)...); err != nil {
			return fmt.Errorf("make disk: %w", err)
		}
	}
	return os.Rename(tmp, path)
}

// diskPath is the host's file for a guest's disk.
func (g *Guest) diskPath(i int) string {
	return filepath.Join(g.lab.dir, fmt.Sprintf("%s.disk%d", g.name, i))
}

// diskDevice is a disk's device in the guest.
func diskDevice(i int) string { return "/dev/ubd" + string(rune('a'+i)) }

func diskArgs(paths []string) []string {
	var args []string
	for i, p := range paths {
		// d: a disk's first bytes must not make it a copy-on-write file.
		args = append(args, fmt.Sprintf("ubd%dd=%s", i, p))
	}
	return args
}
