package main

import (
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/worker"
)

// beDrowsy gives the process worker.TimerSlack, by executing the program once
// more: a thread has its slack from the one that made it and keeps it over
// execve(2), and some of the runtime's threads are there before main runs. Where
// that cannot be done, the process goes on as it is. In a node, the looks of the
// runtime that this spares took a third of the processor time of a call.
func beDrowsy() {
	program, err := os.Executable()
	if err != nil {
		return
	}
	runtime.LockOSThread() // It is this thread's slack that lasts.
	defer runtime.UnlockOSThread()
	if timerSlack() >= worker.TimerSlack {
		return
	}
	// A thread with a real-time policy has no slack, whatever it asks for.
	err = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(worker.TimerSlack.Nanoseconds()), 0, 0, 0)
	if err == nil && timerSlack() == worker.TimerSlack {
		_ = syscall.Exec(program, os.Args, os.Environ()) //nolint:gosec // It is this very program.
	}
}

// timerSlack is that of the calling thread.
func timerSlack() time.Duration {
	ns, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		return 0
	}
	return time.Duration(ns)
}
