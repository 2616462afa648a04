package mount

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// version is a version of the NFS protocol, such as 4.2 or 3.0.
type version struct{ major, minor int }

func (v version) String() string {
	if v.major < 4 {
		return strconv.Itoa(v.major)
	}
	return fmt.Sprintf("%d.%d", v.major, v.minor)
}

// param is one parameter of the NFS file system, as fsconfig(2) takes it.
// A flag has no value.
type param struct {
	key, value string
	flag       bool
}

// options are mount options, sorted by who has to act on them.
type options struct {
	// versions are tried in this order.
	versions []version
	// params go to the kernel's NFS client as they are.
	params []param
	// super holds the MS_* flags of the superblock, attr the MOUNT_ATTR_* flags
	// of the mount. A read-only mount has both MS_RDONLY and MOUNT_ATTR_RDONLY:
	// since Linux 6.13 the NFS superblock alone no longer makes it so.
	super uintptr
	attr  int
	// proto is "", "tcp", "udp" or "rdma"; ipv6 is set when the user named the
	// IPv6 variety of it. The same for mountproto.
	proto, mountproto string
	ipv6              bool
	// port and mountport are -1 when the user gave none.
	port, mountport int
	// addr, clientaddr and mountaddr are what the user gave, if anything.
	addr, clientaddr, mountaddr netip.Addr
	// mounthost is the host of the mount protocol (version 3), to be resolved.
	mounthost string
}

// attribute says what an option does to the flags of a mount (mount(8),
// "FILESYSTEM-INDEPENDENT MOUNT OPTIONS").
type attribute struct{ set, clear int }

const atimeAttributes = unix.MOUNT_ATTR_NOATIME | unix.MOUNT_ATTR_STRICTATIME

func attributeOf(option string) (attribute, bool) {
	switch option {
	case "ro":
		return attribute{set: unix.MOUNT_ATTR_RDONLY}, true
	case "rw":
		return attribute{clear: unix.MOUNT_ATTR_RDONLY}, true
	case "nosuid":
		return attribute{set: unix.MOUNT_ATTR_NOSUID}, true
	case "suid":
		return attribute{clear: unix.MOUNT_ATTR_NOSUID}, true
	case "nodev":
		return attribute{set: unix.MOUNT_ATTR_NODEV}, true
	case "dev":
		return attribute{clear: unix.MOUNT_ATTR_NODEV}, true
	case "noexec":
		return attribute{set: unix.MOUNT_ATTR_NOEXEC}, true
	case "exec":
		return attribute{clear: unix.MOUNT_ATTR_NOEXEC}, true
	case "nodiratime":
		return attribute{set: unix.MOUNT_ATTR_NODIRATIME}, true
	case "diratime":
		return attribute{clear: unix.MOUNT_ATTR_NODIRATIME}, true
	case "nosymfollow":
		return attribute{set: unix.MOUNT_ATTR_NOSYMFOLLOW}, true
	case "symfollow":
		return attribute{clear: unix.MOUNT_ATTR_NOSYMFOLLOW}, true
	case "noatime":
		return attribute{set: unix.MOUNT_ATTR_NOATIME, clear: atimeAttributes}, true
	case "strictatime":
		return attribute{set: unix.MOUNT_ATTR_STRICTATIME, clear: atimeAttributes}, true
	case "relatime", "norelatime", "nostrictatime", "atime":
		// Since Linux 2.6.30 all of them mean the default, relatime.
		return attribute{clear: atimeAttributes}, true
	case "user", "users":
		// mount(8): these imply the flags unless later options say otherwise.
		return attribute{set: unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}, true
	case "owner", "group":
		return attribute{set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}, true
	}
	return attribute{}, false
}

// superFlagOf returns the flag of the superblock that the option sets or clears.
func superFlagOf(option string) (flag uintptr, set, ok bool) {
	switch option {
	case "sync":
		return unix.MS_SYNCHRONOUS, true, true
	case "async":
		return unix.MS_SYNCHRONOUS, false, true
	case "dirsync":
		return unix.MS_DIRSYNC, true, true
	case "lazytime":
		return unix.MS_LAZYTIME, true, true
	case "nolazytime":
		return unix.MS_LAZYTIME, false, true
	}
	return 0, false, false
}

// ignored reports whether the option speaks to programs other than this one:
// to mount -a, systemd and fstab tools, or, for bg, fg and retry, to the loop
// in mount.nfs(8) that tries again. Here the orchestrator tries again.
func ignored(key string) bool {
	switch key {
	case "defaults", "auto", "noauto", "_netdev", "nofail", "nouser", "noowner", "nogroup",
		"comment", "silent", "loud", "uhelper", "helper", "bg", "fg", "retry":
		return true
	}
	return strings.HasPrefix(key, "x-") || strings.HasPrefix(key, "X-")
}

// operation reports whether the option asks mount(8) for something else than a
// new mount.
func operation(key string) bool {
	switch key {
	case "remount", "bind", "rbind", "move", "shared", "rshared", "private", "rprivate",
		"slave", "rslave", "unbindable", "runbindable", "source":
		return true
	}
	return false
}

// parseOptions sorts mount options as nfs(5) and mount(8) describe them. A later
// option wins over an earlier one. Options that nobody here knows go to the
// kernel, which refuses what it does not know either. Errors wrap ErrInvalid.
func parseOptions(list []string, readOnly bool) (options, error) {
	o := options{port: -1, mountport: -1}
	major, minor := 0, -1
	for _, text := range list {
		for option := range strings.SplitSeq(text, ",") {
			option = strings.TrimSpace(option)
			if option == "" {
				continue
			}
			key, value, hasValue := strings.Cut(option, "=")
			if v, ok := versionShorthand(option); ok {
				key, value = "vers", v
			}
			var err error
			switch key {
			case "vers", "nfsvers":
				major, minor, err = parseVersion(value)
			case "minorversion":
				minor, err = parseNumber(value, 2)
			default:
				err = o.add(key, value, hasValue)
			}
			if err != nil {
				return options{}, fmt.Errorf("%w: mount option %q: %w", nfs.ErrInvalid, option, err)
			}
		}
	}
	if readOnly {
		o.attr |= unix.MOUNT_ATTR_RDONLY
	}
	if o.attr&unix.MOUNT_ATTR_RDONLY != 0 {
		o.super |= unix.MS_RDONLY
	}
	var err error
	if o.versions, err = candidates(major, minor); err != nil {
		return options{}, err
	}
	return o, nil
}

func (o *options) add(key, value string, hasValue bool) error {
	if !hasValue {
		if a, ok := attributeOf(key); ok {
			o.attr = o.attr&^a.clear | a.set
			return nil
		}
		if flag, set, ok := superFlagOf(key); ok {
			o.super &^= flag
			if set {
				o.super |= flag
			}
			return nil
		}
	}
	if ignored(key) {
		return nil
	}
	if operation(key) {
		return fmt.Errorf("not an option of an NFS mount")
	}
	var err error
	switch key {
	case "tcp", "udp", "rdma":
		o.proto, o.ipv6 = key, false
	case "proto":
		o.proto, o.ipv6, err = parseProto(value)
	case "mountproto":
		o.mountproto, _, err = parseProto(value)
	case "port":
		o.port, err = parseNumber(value, 65535)
	case "mountport":
		o.mountport, err = parseNumber(value, 65535)
	case "addr":
		o.addr, err = parseAddress(value)
	case "clientaddr":
		o.clientaddr, err = parseAddress(value)
	case "mountaddr":
		o.mountaddr, err = parseAddress(value)
	case "mounthost":
		o.mounthost = value
	default:
		o.params = slices.DeleteFunc(o.params, func(p param) bool { return p.key == key })
		o.params = append(o.params, param{key: key, value: value, flag: !hasValue})
	}
	return err
}

// versionShorthand reads "v3", "v4", "v4.1" and the like.
func versionShorthand(option string) (string, bool) {
	v, ok := strings.CutPrefix(option, "v")
	return v, ok && v != "" && '0' <= v[0] && v[0] <= '9'
}

// parseVersion returns minor -1 for "4", which stands for every minor version.
func parseVersion(s string) (major, minor int, err error) {
	switch s {
	case "3":
		return 3, -1, nil
	case "4":
		return 4, -1, nil
	case "4.0", "4.1", "4.2":
		return 4, int(s[2] - '0'), nil
	case "2":
		return 0, 0, fmt.Errorf("NFS version 2 is gone from the kernel; use 3, 4, 4.0, 4.1 or 4.2")
	}
	return 0, 0, fmt.Errorf("%q is none of the NFS versions 3, 4, 4.0, 4.1, 4.2", s)
}

// candidates returns the versions to try, the newest first, as mount.nfs(8)
// negotiates them.
func candidates(major, minor int) ([]version, error) {
	switch {
	case major == 3 && minor >= 0:
		return nil, fmt.Errorf("%w: mount option minorversion=%d does not go with NFS version 3", nfs.ErrInvalid, minor)
	case major == 3:
		return []version{{3, 0}}, nil
	case minor >= 0:
		return []version{{4, minor}}, nil
	case major == 4:
		return []version{{4, 2}, {4, 1}, {4, 0}}, nil
	}
	return []version{{4, 2}, {4, 1}, {4, 0}, {3, 0}}, nil
}

// parseProto splits a netid into the protocol and whether it is the IPv6 one.
func parseProto(s string) (proto string, ipv6 bool, err error) {
	proto = strings.TrimSuffix(s, "6")
	switch proto {
	case "tcp", "udp", "rdma":
		return proto, proto != s, nil
	}
	return "", false, fmt.Errorf("%q is none of tcp, udp, rdma, tcp6, udp6, rdma6", s)
}

func parseNumber(s string, limit int) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil || int(n) > limit {
		return 0, fmt.Errorf("%q is not a number from 0 to %d", s, limit)
	}
	return int(n), nil
}

func parseAddress(s string) (netip.Addr, error) {
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		s = s[1 : len(s)-1]
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", s)
	}
	return a.Unmap(), nil
}

// netid returns the name of the protocol for the family of the address, since
// the kernel refuses proto=tcp with an IPv6 address (fs/nfs/fs_context.c,
// nfs_fs_context_validate).
func netid(proto string, addr netip.Addr) string {
	if addr.Is6() {
		return proto + "6"
	}
	return proto
}

// parameters returns what the kernel is told in order to mount from the address
// with the version. mountaddr and clientaddr are given where they are known.
func (o options) parameters(v version, addr, clientaddr, mountaddr netip.Addr) []param {
	out := []param{{key: "vers", value: v.String()}, {key: "addr", value: addr.String()}}
	text := func(key, value string) { out = append(out, param{key: key, value: value}) }
	if clientaddr.IsValid() {
		text("clientaddr", clientaddr.String())
	}
	if o.proto != "" {
		text("proto", netid(o.proto, addr))
	}
	if o.port >= 0 {
		text("port", strconv.Itoa(o.port))
	}
	if mountaddr.IsValid() {
		text("mountaddr", mountaddr.String())
	}
	if o.mountproto != "" {
		family := addr
		if mountaddr.IsValid() {
			family = mountaddr
		}
		text("mountproto", netid(o.mountproto, family))
	}
	if o.mountport >= 0 {
		text("mountport", strconv.Itoa(o.mountport))
	}
	return append(out, o.params...)
}

// probePort returns the TCP port that must take a connection before a mount of
// that version has a chance, or 0 when there is none to try. Version 4 lives on
// one port; version 3 asks rpcbind for the ports that the user did not give.
func (o options) probePort(v version) int {
	switch {
	case o.proto == "udp" || o.proto == "rdma":
		return 0
	case v.major == 4 && o.port < 0:
		return nfsPort
	case v.major == 4 && o.port > 0:
		return o.port
	case v.major == 3 && o.port > 0 && (o.mountport > 0 || o.mountproto == "udp"):
		return o.port
	case v.major == 3 && o.mountproto == "udp":
		return 0
	}
	return rpcbindPort
}

const (
	nfsPort     = 2049
	rpcbindPort = 111
)
