package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// Error says which operation on which mount failed, why, and what the operator
// can do. It unwraps to one of the sentinels of package nfs, unless the cause is
// internal, and to the system's error.
type Error struct {
	// Op is the operation: "mount", "bind", "unmount", "usage".
	Op string
	// Subject is what it was done to: a source as "10.0.0.1:/data", or a path.
	Subject string
	// Versions are the NFS versions tried, the last one failed with Err.
	Versions []string
	// Reason says in words what happened.
	Reason string
	// Words are the kernel's own words, as it wrote them to the fs context.
	Words []string
	// Hint says what the operator can do.
	Hint string
	// Kind is the sentinel of package nfs, or nil for an internal error.
	Kind error
	// Err is the cause, a unix.Errno wherever the kernel said no.
	Err error
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", e.Op, e.Subject)
	if len(e.Versions) > 0 {
		fmt.Fprintf(&b, " (vers %s)", strings.Join(e.Versions, ", "))
	}
	b.WriteString(": " + e.Reason)
	switch {
	case len(e.Words) > 0:
		b.WriteString(": " + strings.Join(e.Words, ", "))
	case e.Err != nil:
		b.WriteString(": " + e.Err.Error())
	}
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// Unwrap returns the sentinel and the cause.
func (e *Error) Unwrap() []error {
	var out []error
	for _, err := range []error{e.Kind, e.Err} {
		if err != nil {
			out = append(out, err)
		}
	}
	return out
}

// callError is a system call that failed on the way to a mount.
type callError struct {
	call  string
	errno unix.Errno
	// words are the kernel's own, without their level.
	words []string
	// option is set when the kernel refused one parameter, before it asked the
	// server anything.
	option bool
	// local is set when the call concerned this machine's mounts and no server.
	local bool
}

func (e *callError) Error() string {
	return fmt.Sprintf("%s: %s", e.call, e.errno)
}

func (e *callError) Unwrap() error { return e.errno }

// localCall is a failed call that concerned no server; nil for no error.
func localCall(call string, err error) error {
	if err == nil {
		return nil
	}
	e := newCallError(call, err)
	e.local = true
	return e
}

func newCallError(call string, err error) *callError {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		errno = unix.EIO
	}
	return &callError{call: call, errno: errno}
}

// refusesVersion reports whether the failure means that the kernel or the server
// does not speak the version. nfs-utils steps down on EPROTONOSUPPORT and EINVAL
// (utils/mount/stropts.c, nfs_autonegotiate); EPFNOSUPPORT and EOPNOTSUPP are
// what the kernel makes of a server that does not offer the RPC program at all
// (net/sunrpc/clnt.c).
func (e *callError) refusesVersion() bool {
	if e.option || e.local {
		return false
	}
	switch e.errno {
	case unix.EPROTONOSUPPORT, unix.EINVAL, unix.EPFNOSUPPORT, unix.EOPNOTSUPP:
		return true
	}
	return false
}

// unreachable reports whether another address of the server may do better.
func unreachable(err error) bool {
	for _, errno := range []unix.Errno{
		unix.ECONNREFUSED, unix.ETIMEDOUT, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN,
		unix.ENETDOWN, unix.ECONNRESET, unix.ECONNABORTED, unix.EADDRNOTAVAIL, unix.EAFNOSUPPORT,
		unix.EPIPE, unix.ENOTCONN,
	} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return errors.Is(err, errNoAnswer)
}

// errNoAnswer is the cause when an address did not take a connection in time.
var errNoAnswer = errors.New("no answer in time")

// failures are the errors of one try each, in their order.
type failures []error

func (f failures) Error() string {
	texts := make([]string, len(f))
	for i, err := range f {
		texts[i] = err.Error()
	}
	return strings.Join(texts, " | ")
}

func (f failures) Unwrap() []error { return f }

// explain makes an Error of a failed system call of an NFS mount.
func explain(op, subject string, versions []string, call *callError, privileged bool) *Error {
	if call.local {
		return local(op, subject, call)
	}
	e := &Error{Op: op, Subject: subject, Versions: versions, Words: call.words, Err: call.errno}
	e.Reason = call.call
	switch call.errno {
	case unix.EPERM:
		e.Kind = nfs.ErrPermission
		if !privileged {
			e.Reason, e.Hint = missingCapability, capabilityHint
			break
		}
		e.Reason = "not permitted"
		e.Hint = "the server may demand another security flavour (sec=) or a reserved port, " +
			"or a seccomp or AppArmor profile on this node forbids the mount"
	case unix.EACCES:
		e.Kind, e.Reason = nfs.ErrPermission, "access denied by server"
		e.Hint = "check that /etc/exports on the server lists this client"
	case unix.EKEYEXPIRED, unix.ENOKEY, unix.EKEYREJECTED:
		e.Kind, e.Reason = nfs.ErrPermission, "no usable Kerberos credential"
		e.Hint = "check the keytab and rpc.gssd on this node"
	case unix.ENOENT, unix.ENOTDIR:
		e.Kind, e.Reason = nfs.ErrNoExport, "the server has no such directory for this client"
		e.Hint = "check that the share is spelled as in /etc/exports, that it lists this client, and that the directory exists"
	case unix.ESTALE:
		e.Kind, e.Reason = nfs.ErrStale, "the directory was removed on the server meanwhile"
	case unix.ENODEV:
		e.Reason = "the kernel has no NFS client"
		e.Hint = "run `modprobe nfs` on the node, or install the kernel's NFS modules"
	case unix.EINVAL, unix.ENAMETOOLONG, unix.EMSGSIZE, unix.E2BIG, unix.ERANGE:
		e.Kind, e.Reason = nfs.ErrInvalid, "the kernel refuses the mount options"
		e.Hint = "check mountOptions against nfs(5)"
		if call.errno == unix.ENAMETOOLONG {
			e.Reason, e.Hint = "the server name or path is too long for the kernel", ""
		}
	case unix.EPROTONOSUPPORT, unix.EPFNOSUPPORT, unix.EOPNOTSUPP, unix.EPROTOTYPE:
		e.Kind, e.Reason = nfs.ErrInvalid, "the server or this kernel speaks none of the NFS versions tried"
		e.Hint = "choose one that both have with the mount option vers="
	case unix.ECONNREFUSED, unix.ETIMEDOUT, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN,
		unix.ENETDOWN, unix.ECONNRESET, unix.ECONNABORTED, unix.EADDRNOTAVAIL, unix.EADDRINUSE,
		unix.EAFNOSUPPORT, unix.EPIPE, unix.ENOTCONN, unix.EIO, unix.EAGAIN, unix.EINTR,
		unix.EREMOTEIO, unix.EPROTO:
		e.Kind, e.Reason = nfs.ErrUnavailable, "the server does not answer as it should"
		e.Hint = "check that the server runs and that nothing between it and this node blocks NFS"
		if len(versions) == 1 && versions[0] == "3" && call.errno == unix.ECONNREFUSED {
			e.Hint += "; NFS version 3 also needs rpcbind and rpc.statd on this node, unless the mount option nolock is given"
		}
	}
	return e
}

const (
	missingCapability = "CAP_SYS_ADMIN is missing"
	capabilityHint    = "set securityContext.capabilities.add: [SYS_ADMIN] on the container"
)

// local makes an Error of a failed operation on this machine's own mounts.
func local(op, subject string, err error) *Error {
	e := &Error{Op: op, Subject: subject, Err: err, Reason: "failed"}
	var call *callError
	if errors.As(err, &call) {
		e.Reason, e.Err = call.call, call.errno
	}
	switch {
	case errors.Is(err, unix.EPERM):
		e.Kind = nfs.ErrPermission
		if !privileged() {
			e.Reason, e.Hint = missingCapability, capabilityHint
		}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP),
		errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENAMETOOLONG):
		e.Kind = nfs.ErrInvalid
	case errors.Is(err, unix.ESTALE):
		e.Kind, e.Hint = nfs.ErrStale, "the directory behind it was removed on the server; mount it anew"
	case errors.Is(err, unix.EIO), errors.Is(err, unix.ETIMEDOUT),
		errors.Is(err, unix.EHOSTDOWN), errors.Is(err, unix.ENOTCONN):
		e.Kind = nfs.ErrUnavailable
		e.Hint = "the NFS server behind it does not answer"
	case errors.Is(err, unix.EACCES):
		e.Kind = nfs.ErrPermission
	}
	return e
}

// privileged reports whether the calling thread has CAP_SYS_ADMIN, which
// mount(2) and its kin require (capabilities(7)).
func privileged() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return true
	}
	return data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}
