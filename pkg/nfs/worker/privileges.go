package worker

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// storeCapabilities are those of capabilities(7) that work on files takes, where
// the server lets root be root: owners and modes of volumes (CHOWN, FOWNER,
// setgid bits: FSETID), and reaching what belongs to others when it is purged
// (DAC_OVERRIDE, which covers DAC_READ_SEARCH but for open_by_handle_at(2)).
const storeCapabilities = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID

// confine leaves no thread of this process a way to get privileges by executing
// a program, which no worker does. What it has, it keeps. It fails in binaries
// that use cgo, whose threads cannot all be reached.
func confine() error {
	if err := onAllThreads("no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return err
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil || has == 0 {
			continue // The kernel does not know it, or it is gone.
		}
		// Without SETPCAP the bounding set stays; no_new_privs makes it
		// meaningless, since nothing can be gained by execve(2).
		err := onAllThreads("bounding set", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c)
		if errors.Is(err, unix.EPERM) {
			break
		} else if err != nil {
			return err
		}
	}
	err := onAllThreads("ambient set", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL)
	if errors.Is(err, unix.EINVAL) {
		return nil // Kernels before 4.3 have no ambient set.
	}
	return err
}

// dropCapabilities leaves every thread of this process with storeCapabilities, as
// far as it had them; the store says where one that is missing hurts. Like
// confine, it fails in binaries that use cgo.
func dropCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	keep := data[0].Permitted & storeCapabilities
	data = [2]unix.CapUserData{{Effective: keep, Permitted: keep}}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET,
		uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0); errno != 0 { //nolint:gosec // capset(2) takes pointers
		return fmt.Errorf("capset: %w", errno)
	}
	return nil
}

func onAllThreads(what string, trap, a1, a2 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("%s: %w", what, errno)
	}
	return nil
}
