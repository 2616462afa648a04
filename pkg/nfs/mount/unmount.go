package mount

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	mountutils "k8s.io/mount-utils"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// unmountKey names one umount2 call. The mount's id is part of it: after a call
// that hung, another mount may be at the same target, for which it did nothing.
type unmountKey struct {
	target string
	id     int
	flags  int
}

// unmountCall is a umount2 call that runs, or ended with err once done is closed.
type unmountCall struct {
	done chan struct{}
	err  error
}

// errHangs is the outcome of a umount2 that did not return in time.
var errHangs = errors.New("umount2 does not return")

// maxStacked bounds the mounts that Unmount takes away at one place, so that it
// ends even if something mounts there as fast.
const maxStacked = 100

// Unmount takes away every mount at the target and returns nil when none is
// left; none there at the start is no error. It looks at mountinfo and never at
// the target, and never waits for a server longer than UnmountTimeout a step.
//
// Each mount is unmounted plainly first. If a process still uses it, it is
// detached: it leaves the target at once, and ends with its last user. If the
// call does not return because the server does not answer, the file system's
// requests are aborted (MNT_FORCE), but only where this is its last mount, since
// that fails the requests of every mount of it; then it is detached.
//
// A umount2 that hangs goes on in its own goroutine, which ends with the call,
// when the server comes back or the process ends. At most one for each step and
// target exists; a later Unmount of that target joins it.
//
// Errors are of type *Error: ErrPermission without CAP_SYS_ADMIN, ErrUnavailable
// when a mount stays in spite of all.
func (m *Mounter) Unmount(ctx context.Context, target string) error {
	count := -1
	var last error
	for range maxStacked {
		infos, err := m.List()
		if err != nil {
			return local("unmount", target, err)
		}
		place := resolveParent(infos, target)
		top, ok := Find(infos, place)
		if !ok {
			return nil
		}
		n := countAt(infos, place)
		if count >= 0 && n >= count {
			break
		}
		if err := ctx.Err(); err != nil {
			return &Error{Op: "unmount", Subject: target, Reason: "no time left", Kind: nfs.ErrUnavailable, Err: err}
		}
		count = n
		last = m.unmountTop(ctx, place, top.ID, lastOfFileSystem(infos, top))
		var e *Error
		if errors.As(last, &e) {
			return e
		}
	}
	return &Error{Op: "unmount", Subject: target, Reason: "it is still mounted", Kind: nfs.ErrUnavailable, Err: last,
		Hint: "look for it in /proc/self/mountinfo on the node; a mount may lie above it, or the NFS server not answer"}
}

// unmountTop takes the topmost mount at the place away. Whether it is gone is for
// mountinfo to say: a umount2 that hangs has mostly done its work before, and now
// flushes data or ends the NFSv4 session with a server that does not answer. It
// returns what the last step said, an *Error if nothing further helps.
func (m *Mounter) unmountTop(ctx context.Context, place string, id int, force bool) error {
	logger := klog.FromContext(ctx).WithValues("target", place)
	err := m.umount(ctx, place, id, 0)
	switch {
	case err == nil:
		logger.V(4).Info("Unmounted")
		return nil
	case errors.Is(err, unix.EPERM):
		return local("unmount", place, localCall("umount2", err))
	case errors.Is(err, errHangs):
		if gone, err := m.gone(place, id); gone || err != nil {
			logger.Info("Unmounted, though the kernel still takes leave of a server that does not answer")
			return err
		}
		if !force {
			break
		}
		logger.Info("The server does not answer, aborting its requests")
		if err = m.umount(ctx, place, id, unix.MNT_FORCE); err == nil {
			return nil
		}
	}
	logger.Info("Detaching the mount", "why", err)
	err = m.umount(ctx, place, id, unix.MNT_DETACH)
	if errors.Is(err, unix.EPERM) {
		return local("unmount", place, localCall("umount2", err))
	}
	return err
}

// gone reports whether the mount with that id is no longer at the place.
func (m *Mounter) gone(place string, id int) (bool, error) {
	infos, err := m.List()
	if err != nil {
		return false, local("unmount", place, err)
	}
	return !slices.ContainsFunc(infos, func(info mountutils.MountInfo) bool {
		return info.ID == id && info.MountPoint == place
	}), nil
}

// umount calls umount2 in a goroutine and waits for it until UnmountTimeout, or a
// third of the context's time, is over. UMOUNT_NOFOLLOW always goes with it.
func (m *Mounter) umount(ctx context.Context, place string, id, flags int) error {
	key := unmountKey{place, id, flags}
	m.mu.Lock()
	call := m.unmounts[key]
	if call == nil {
		call = &unmountCall{done: make(chan struct{})}
		m.unmounts[key] = call
		go func() {
			call.err = retry(func() error { return m.umount2(place, flags|unix.UMOUNT_NOFOLLOW) })
			m.mu.Lock()
			delete(m.unmounts, key)
			m.mu.Unlock()
			close(call.done)
		}()
	}
	m.mu.Unlock()

	wait := m.options.UnmountTimeout
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(deadline)/3)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-call.done:
		return call.err
	case <-timer.C:
	case <-ctx.Done():
	}
	return fmt.Errorf("%w (flags %#x)", errHangs, flags)
}

func countAt(infos []mountutils.MountInfo, place string) int {
	n := 0
	for _, info := range infos {
		if info.MountPoint == place {
			n++
		}
	}
	return n
}

// lastOfFileSystem reports whether no other mount of the same file system exists
// in this mount namespace.
func lastOfFileSystem(infos []mountutils.MountInfo, mount mountutils.MountInfo) bool {
	for _, info := range infos {
		if info.ID != mount.ID && info.Major == mount.Major && info.Minor == mount.Minor {
			return false
		}
	}
	return true
}
