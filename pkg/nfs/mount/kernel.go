package mount

import (
	"errors"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// fsType serves every NFS version: the client chooses the type nfs4 itself when
// the parameter vers says so (fs/nfs/fs_context.c).
const fsType = "nfs"

// maxParam is the longest value that fsconfig(2) takes (fs/fsopen.c).
const maxParam = 255

// attach mounts at the place.
func (m *Mounter) attach(r request, place *os.File) error {
	if m.usesMountAPI(r) {
		root, err := createAgain(r)
		if err == nil {
			defer root.Close()
			err := retry(func() error {
				return unix.MoveMount(int(root.Fd()), "", int(place.Fd()), "",
					unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
			})
			return localCall("cannot attach the mount to its mount point", err)
		}
		if !noMountAPI(err) {
			return err
		}
	}
	return mountLegacy(r, RootPath(place))
}

// detach mounts without a place.
func (m *Mounter) detach(r request) (*os.File, error) {
	if m.usesMountAPI(r) {
		root, err := createAgain(r)
		if err == nil || !noMountAPI(err) {
			return root, err
		}
	}
	var root *os.File
	err := inPrivateNamespace(func() error {
		// /proc is there in every container; nothing but this thread sees what
		// is mounted over it.
		const place = "/proc"
		if err := mountLegacy(r, place); err != nil {
			return err
		}
		fd, err := unix.Open(place, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return localCall("cannot open the root of the mount", err)
		}
		root = os.NewFile(uintptr(fd), r.source)
		return localCall("cannot detach the mount", unix.Unmount(place, unix.MNT_DETACH))
	})
	if err != nil && root != nil {
		err = errors.Join(err, root.Close())
		root = nil
	}
	return root, err
}

// usesMountAPI reports whether the request can go through fsopen(2) at all.
func (m *Mounter) usesMountAPI(r request) bool {
	return !m.options.Legacy && len(r.source) <= maxParam
}

// noMountAPI reports whether fsopen(2) is missing, or withheld by a seccomp
// profile older than it, so that mount(2) is worth a try.
func noMountAPI(err error) bool {
	var call *callError
	if !errors.As(err, &call) || call.call != fsopenCall {
		return false
	}
	return call.errno == unix.ENOSYS || call.errno == unix.EPERM && privileged()
}

const fsopenCall = "fsopen"

// createAgain calls create until no signal interrupts it: an fs context that
// failed once cannot be used again.
func createAgain(r request) (root *os.File, err error) {
	err = retry(func() error {
		root, err = create(r)
		return err
	})
	return root, err
}

// create makes a mount that is attached nowhere; its descriptor is O_PATH.
func create(r request) (*os.File, error) {
	ctxfd, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, newCallError(fsopenCall, err)
	}
	defer unix.Close(ctxfd)
	failed := func(call string, err error, option bool) error {
		e := newCallError(call, err)
		e.words, e.option = kernelWords(ctxfd), option
		return e
	}
	params := append([]param{{key: "source", value: r.source}}, superParams(r.super)...)
	for _, p := range append(params, r.params...) {
		if p.flag {
			err = unix.FsconfigSetFlag(ctxfd, p.key)
		} else {
			err = unix.FsconfigSetString(ctxfd, p.key, p.value)
		}
		if err != nil {
			// A version that the kernel was built without is refused here already.
			return nil, failed("the kernel refuses "+p.String(), err, p.key != "vers")
		}
	}
	if err := unix.FsconfigCreate(ctxfd); err != nil {
		return nil, failed("fsconfig", err, false)
	}
	fd, err := unix.Fsmount(ctxfd, unix.FSMOUNT_CLOEXEC, r.attr)
	if err != nil {
		return nil, failed("fsmount", err, true)
	}
	return os.NewFile(uintptr(fd), r.source), nil
}

func (p param) String() string {
	if p.flag {
		return p.key
	}
	return p.key + "=" + p.value
}

// superParams names the flags of the superblock as fs_context.c knows them.
func superParams(super uintptr) []param {
	var out []param
	for _, f := range []struct {
		flag uintptr
		key  string
	}{{unix.MS_RDONLY, "ro"}, {unix.MS_SYNCHRONOUS, "sync"}, {unix.MS_DIRSYNC, "dirsync"}, {unix.MS_LAZYTIME, "lazytime"}} {
		if super&f.flag != 0 {
			out = append(out, param{key: f.key, flag: true})
		}
	}
	return out
}

// kernelWords reads what the kernel logged to the fs context: one message for
// each read, "e ", "w " or "i " before it, ENODATA after the last. Only errors
// are kept, or warnings where there is no error.
func kernelWords(ctxfd int) []string {
	var failures, others []string
	// The kernel keeps no more than eight messages (fs/fs_context.c).
	for range 8 {
		buf := make([]byte, 1024)
		n, err := unix.Read(ctxfd, buf)
		if err != nil || n <= 0 {
			break
		}
		level, text, _ := strings.Cut(strings.TrimSpace(string(buf[:n])), " ")
		if level == "e" {
			failures = append(failures, text)
		} else {
			others = append(others, text)
		}
	}
	if len(failures) == 0 {
		return others
	}
	return failures
}

// mountLegacy mounts with mount(2), which gives no words with its error.
func mountLegacy(r request, target string) error {
	parts := make([]string, len(r.params))
	for i, p := range r.params {
		parts[i] = p.String()
	}
	err := retry(func() error {
		return unix.Mount(r.source, target, fsType, r.super|legacyFlags(r.attr), strings.Join(parts, ","))
	})
	if err != nil {
		return newCallError("mount", err)
	}
	return nil
}

// legacyFlags translates MOUNT_ATTR_* to the MS_* of mount(2).
func legacyFlags(attr int) uintptr {
	var flags uintptr
	for _, f := range []struct {
		attr int
		flag uintptr
	}{
		{unix.MOUNT_ATTR_RDONLY, unix.MS_RDONLY},
		{unix.MOUNT_ATTR_NOSUID, unix.MS_NOSUID},
		{unix.MOUNT_ATTR_NODEV, unix.MS_NODEV},
		{unix.MOUNT_ATTR_NOEXEC, unix.MS_NOEXEC},
		{unix.MOUNT_ATTR_NOATIME, unix.MS_NOATIME},
		{unix.MOUNT_ATTR_STRICTATIME, unix.MS_STRICTATIME},
		{unix.MOUNT_ATTR_NODIRATIME, unix.MS_NODIRATIME},
		{unix.MOUNT_ATTR_NOSYMFOLLOW, unix.MS_NOSYMFOLLOW},
	} {
		if attr&f.attr != 0 {
			flags |= f.flag
		}
	}
	return flags
}

// inPrivateNamespace calls f on a thread of its own in a mount namespace of its
// own, which ends with the call.
func inPrivateNamespace(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end, and /proc/self would show its namespace.
			// While this goroutine holds it, another one gets another thread.
			result <- inPrivateNamespace(f)
			runtime.UnlockOSThread()
			return
		}
		// Never unlocked: the runtime ends the thread with the goroutine, and the
		// namespace ends with the thread.
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return localCall("unshare", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return localCall("cannot make the mount namespace private", err)
			}
			return f()
		}()
	}()
	return <-result
}

// retry repeats a system call that a signal interrupted; the Go runtime sends
// such signals for its own purposes.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
