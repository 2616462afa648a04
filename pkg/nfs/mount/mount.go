package mount

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// Options change how a Mounter works. The zero value is right for production.
type Options struct {
	// Legacy makes the Mounter use mount(2) even where the kernel has the newer
	// mount API, which it is tried for otherwise.
	Legacy bool
	// ProbeTimeout bounds the look-up of one host name, and the connection that is
	// tried to one address before the kernel is asked to mount from it. Default 5 s.
	ProbeTimeout time.Duration
	// UnmountTimeout bounds each step of an unmount. Default 3 s.
	UnmountTimeout time.Duration
	// LookupAddress resolves host names; the network is "ip". Default is
	// net.DefaultResolver.
	LookupAddress func(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Mounter changes and reads the mounts of the mount namespace that its process
// started in. All its methods can be called from any goroutine at any time. It
// satisfies the Mounter of pkg/driver.
type Mounter struct {
	options Options

	// umount2 and readMountInfo are the system's, except in tests.
	umount2       func(target string, flags int) error
	readMountInfo func() (string, error)

	mu sync.Mutex
	// unmounts are the umount2 calls that have not returned.
	unmounts map[unmountKey]*unmountCall
}

// New returns a Mounter.
func New(options Options) *Mounter {
	if options.ProbeTimeout <= 0 {
		options.ProbeTimeout = 5 * time.Second
	}
	if options.UnmountTimeout <= 0 {
		options.UnmountTimeout = 3 * time.Second
	}
	if options.LookupAddress == nil {
		options.LookupAddress = net.DefaultResolver.LookupNetIP
	}
	m := &Mounter{
		options:       options,
		umount2:       unix.Unmount,
		readMountInfo: readMountInfo,
		unmounts:      map[unmountKey]*unmountCall{},
	}
	if mountInfoSkips() {
		m.readMountInfo = readSettledMountInfo
	}
	return m
}

// request is one mount as the kernel is asked for it: one address, one version.
type request struct {
	source string
	params []param
	super  uintptr
	attr   int
}

// Mount mounts the directory dir of the export (relative to the share, may be
// empty) at target, an existing directory that is not a symbolic link. The
// addresses of the server and the NFS versions are tried as nfs(5) has it. It
// blocks in the kernel, see the package comment.
//
// Unless the options say "sharecache", the mount has a superblock of its own:
// mounts that share one have one device number and root in mountinfo, so that the
// kubelet takes two volumes of an export for mounts of one and unstages neither
// while the other is in use (kubernetes/kubernetes#105323); and MNT_FORCE on one
// would fail the calls of the other.
//
// Errors are of type *Error and wrap ErrInvalid (options, target, versions),
// ErrPermission, ErrNoExport or ErrUnavailable.
func (m *Mounter) Mount(ctx context.Context, export nfs.Export, dir, target string, readOnly bool) error {
	place, err := openTarget(target)
	if err != nil {
		return local("mount", target, err)
	}
	defer place.Close()
	if kind, err := fileType(int(place.Fd())); err != nil || kind != unix.S_IFDIR {
		return local("mount", target, cmp.Or(err, localCall("the mount point is no directory", unix.ENOTDIR)))
	}
	return m.negotiate(ctx, export, dir, readOnly, func(r request) error {
		r.params = append([]param{{key: "nosharecache", flag: true}}, r.params...)
		return m.attach(r, place)
	})
}

// Detached mounts the directory dir of the export and returns the root of that
// mount, which has no path and is in no mountinfo. It ends when every descriptor
// beneath it is closed, at the latest with the process. Mounts that the server
// nests in the export (crossmnt) work only while the returned file is open, and
// not at all where mount(2) had to be used.
//
// os.OpenRoot(RootPath(f)) makes an os.Root of the file. Blocking and errors are
// those of Mount.
func (m *Mounter) Detached(ctx context.Context, export nfs.Export, dir string, readOnly bool) (*os.File, error) {
	var root *os.File
	err := m.negotiate(ctx, export, dir, readOnly, func(r request) error {
		var err error
		root, err = m.detach(r)
		return err
	})
	return root, err
}

// RootPath returns a path that leads to the open file for this process.
func RootPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// negotiate calls do for the addresses and versions of the export until it
// succeeds or fails with something that no other address or version can help.
func (m *Mounter) negotiate(ctx context.Context, export nfs.Export, dir string, readOnly bool, do func(request) error) error {
	fail := func(reason string, kind, err error) error {
		return &Error{Op: "mount", Subject: export.String(), Reason: reason, Kind: kind, Err: err}
	}
	opts, err := parseOptions(export.Options, readOnly)
	if err != nil {
		return fail("bad mount options", nfs.ErrInvalid, err)
	}
	if opts.mounthost != "" && !opts.mountaddr.IsValid() {
		addrs, err := m.resolve(ctx, opts.mounthost, false)
		if err != nil {
			return fail("cannot find the host of the mount option mounthost", nfs.ErrUnavailable, err)
		}
		opts.mountaddr = addrs[0]
	}
	var failed failures
	for _, server := range export.Addresses() {
		var addrs []netip.Addr
		if opts.addr.IsValid() {
			addrs = []netip.Addr{opts.addr}
		} else if addrs, err = m.resolve(ctx, server, opts.ipv6); err != nil {
			failed = append(failed, fail("cannot find the server", nfs.ErrUnavailable, err))
		}
		for _, addr := range addrs {
			err := m.tryAddress(ctx, export.Source(server, dir), addr, opts, do)
			if err == nil || !unreachable(err) {
				return err
			}
			klog.FromContext(ctx).V(2).Info("NFS server address not usable", "export", export.String(), "address", addr, "err", err)
			failed = append(failed, err)
			if ctx.Err() != nil {
				break
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	if len(failed) == 1 {
		return failed[0]
	}
	return fail("no address of the server can be used", nfs.ErrUnavailable, failed)
}

// tryAddress goes down the versions at one address.
func (m *Mounter) tryAddress(ctx context.Context, source string, addr netip.Addr, opts options, do func(request) error) error {
	clientaddr := opts.clientaddr
	if !clientaddr.IsValid() {
		clientaddr = sourceAddress(ctx, addr)
	}
	var tried []string
	var probed []int
	var refused *Error
	for _, v := range opts.versions {
		tried = append(tried, v.String())
		if port := opts.probePort(v); port > 0 && !slices.Contains(probed, port) {
			host := addr
			if port == rpcbindPort && opts.mountaddr.IsValid() {
				host = opts.mountaddr
			}
			if err := m.probe(ctx, host, port); err != nil {
				if refused != nil {
					// The server did answer, in a version that it does not offer;
					// that says more than a closed port of an older one.
					refused.Versions = tried
					return refused
				}
				return &Error{Op: "mount", Subject: source, Versions: slices.Clone(tried), Kind: nfs.ErrUnavailable, Err: err,
					Reason: "the server cannot be reached", Hint: portHint(port)}
			}
			probed = append(probed, port)
		}
		if err := ctx.Err(); err != nil {
			return &Error{Op: "mount", Subject: source, Versions: tried, Reason: "no time left", Kind: nfs.ErrUnavailable, Err: err}
		}
		r := request{source: source, super: opts.super, attr: opts.attr}
		if v.major == 4 {
			r.params = opts.parameters(v, addr, clientaddr, opts.mountaddr)
		} else {
			r.params = opts.parameters(v, addr, netip.Addr{}, opts.mountaddr)
		}
		err := do(r)
		if err == nil {
			klog.FromContext(ctx).V(4).Info("Mounted", "source", source, "address", addr, "version", v.String())
			return nil
		}
		var call *callError
		if !errors.As(err, &call) {
			return &Error{Op: "mount", Subject: source, Versions: []string{v.String()}, Reason: "failed", Err: err}
		}
		if !call.refusesVersion() {
			return explain("mount", source, []string{v.String()}, call, privileged())
		}
		// The newest version's own words say best what is wrong with options that
		// no version takes.
		if refused == nil {
			refused = explain("mount", source, nil, call, privileged())
		}
	}
	refused.Versions = tried
	return refused
}

func portHint(port int) string {
	if port == rpcbindPort {
		return "NFS version 3 needs rpcbind on the server; check that it runs and that no firewall is between"
	}
	return fmt.Sprintf("check that the server runs, that NFS listens on port %d and that no firewall is between", port)
}

// openTarget opens the file or directory to mount on without following a symbolic link
// in its last element and without an automount.
func openTarget(target string) (*os.File, error) {
	if !strings.HasPrefix(target, "/") {
		return nil, localCall("the path is not absolute", unix.EINVAL)
	}
	fd, err := unix.Open(target, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, localCall("cannot open the mount point", err)
	}
	file := os.NewFile(uintptr(fd), target)
	kind, err := fileType(fd)
	if err == nil && kind == unix.S_IFLNK {
		err = localCall("the mount point is a symbolic link", unix.ELOOP)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// fileType returns the type bits of the descriptor's file from what the kernel
// has cached: no server is asked.
func fileType(fd int) (uint16, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return 0, localCall("statx", err)
	}
	return st.Mode & unix.S_IFMT, nil
}

// Usage returns the space of the file system at the path, as statfs(2) has it.
// It blocks in the kernel while the server does not answer. Errors are of type
// *Error.
func (m *Mounter) Usage(ctx context.Context, path string) (nfs.Usage, error) {
	if err := ctx.Err(); err != nil {
		return nfs.Usage{}, &Error{Op: "usage", Subject: path, Reason: "no time left", Kind: nfs.ErrUnavailable, Err: err}
	}
	var st unix.Statfs_t
	for {
		err := unix.Statfs(path, &st)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return nfs.Usage{}, local("usage", path, localCall("statfs", err))
		}
	}
	unit := int64(st.Frsize)
	if unit == 0 {
		unit = int64(st.Bsize)
	}
	return nfs.Usage{
		TotalBytes:      int64(st.Blocks) * unit,
		AvailableBytes:  int64(st.Bavail) * unit,
		UsedBytes:       int64(st.Blocks-st.Bfree) * unit,
		TotalInodes:     int64(st.Files),
		AvailableInodes: int64(st.Ffree),
		UsedInodes:      int64(st.Files - st.Ffree),
	}, nil
}
