//go:build linux

package main

import (
	"flag"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// contain turns this process into a guest's kernel that can do the host no harm. It is process 1
// of new pid, mount, UTS and IPC namespaces; the arguments are -rw DIR for every directory that
// may be written, then the kernel's command line.
//
// A guest's programs are processes of the host whose system calls the kernel intercepts with
// ptrace. When the kernel dies first, by SIGKILL or for want of memory, the host lets them go, and
// for a moment they run free: what they next want from the guest's kernel they do to the host, as
// root. So the lab kills all of a guest's processes with one signal to their group; should the
// kernel die alone, the end of the pid namespace kills the others at once, and until then they see
// a read-only file system, no foreign process and no network but the lab's.
func contain(args []string) error {
	flags := flag.NewFlagSet("contain", flag.ContinueOnError)
	var writable []string
	flags.Func("rw", "directory that may be written", func(dir string) error {
		writable = append(writable, dir)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return err
	}
	kernel := flags.Args()
	if len(kernel) == 0 {
		return fmt.Errorf("contain: no kernel given")
	}
	if os.Getpid() != 1 {
		return fmt.Errorf("contain: not process 1 of a pid namespace")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	slices.Sort(writable) // a directory before those in it
	for _, dir := range writable {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", dir, err)
		}
	}
	readOnly := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, readOnly); err != nil {
		return fmt.Errorf("make the file system read-only: %w", err)
	}
	readWrite := &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	for _, dir := range writable {
		if err := unix.MountSetattr(unix.AT_FDCWD, dir, 0, readWrite); err != nil {
			return fmt.Errorf("make %s writable: %w", dir, err)
		}
	}
	if err := unix.Exec(kernel[0], kernel, os.Environ()); err != nil {
		return fmt.Errorf("start %s: %w", kernel[0], err)
	}
	return nil
}
