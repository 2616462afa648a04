package mount

import (
	"context"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	mountutils "k8s.io/mount-utils"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// Match returns nil when the existing mount is what Mount(ctx, export, dir,
// target, readOnly) would make, and otherwise nfs.ErrConflict with what
// differs. It asks the resolver, and nobody else, when the mount shows another name for
// the server than the export has: the kernel shares one superblock between
// mounts of one server and shows the name that the first of them used.
func (m *Mounter) Match(ctx context.Context, info mountutils.MountInfo, export nfs.Export, dir string, readOnly bool) error {
	if !SameSource(info, export, dir) && !m.sameByName(ctx, info, export, dir) {
		return fmt.Errorf("%w: %s at %s is not %s", nfs.ErrConflict, info.Source, info.MountPoint, export.Source(export.Addresses()[0], dir))
	}
	return OptionsMatch(info, export, readOnly)
}

func (m *Mounter) sameByName(ctx context.Context, info mountutils.MountInfo, export nfs.Export, dir string) bool {
	var addresses []string
	for _, server := range export.Addresses() {
		addrs, err := m.resolve(ctx, server, false)
		if err != nil {
			continue
		}
		for _, a := range addrs {
			addresses = append(addresses, a.String())
		}
	}
	if len(addresses) == 0 {
		return false
	}
	return SameSource(info, nfs.Export{Server: strings.Join(addresses, ","), Share: export.Share}, dir)
}

// SameSource reports whether the mount is an NFS mount of the directory dir of
// the export: its source names one of the export's servers, or its address is
// one of them, and the path is the same. It asks nobody; names are compared as
// text.
func SameSource(info mountutils.MountInfo, export nfs.Export, dir string) bool {
	if info.FsType != "nfs" && info.FsType != "nfs4" {
		return false
	}
	host, share, ok := cutSource(info.Source)
	if !ok || path.Clean(share) != path.Join(export.Share, dir) {
		return false
	}
	servers := export.Addresses()
	return slices.ContainsFunc(servers, func(s string) bool { return sameHost(s, host) }) ||
		slices.ContainsFunc(servers, func(s string) bool { return sameHost(s, optionValue(info.SuperOptions, "addr")) })
}

// cutSource splits "server:/path"; an IPv6 address has brackets.
func cutSource(source string) (host, share string, ok bool) {
	if strings.HasPrefix(source, "[") {
		host, share, ok = strings.Cut(source[1:], "]:")
		return host, share, ok
	}
	return strings.Cut(source, ":")
}

func sameHost(a, b string) bool {
	ipA, errA := netip.ParseAddr(a)
	ipB, errB := netip.ParseAddr(b)
	if errA == nil && errB == nil {
		return ipA.Unmap() == ipB.Unmap()
	}
	return a != "" && strings.EqualFold(strings.TrimSuffix(a, "."), strings.TrimSuffix(b, "."))
}

// OptionsMatch returns nil when the mount behaves as the export's options and
// readOnly ask for, and otherwise nfs.ErrConflict with what differs. Options that
// the kernel negotiates (rsize, wsize), or that the first mount of a server sets
// for all others that share its connection (timeo, retrans, nconnect and the
// like), are not compared.
func OptionsMatch(info mountutils.MountInfo, export nfs.Export, readOnly bool) error {
	opts, err := parseOptions(export.Options, readOnly)
	if err != nil {
		return err
	}
	differs := func(what, want, have string) error {
		return fmt.Errorf("%w: the mount at %s has %s %q, not %q", nfs.ErrConflict, info.MountPoint, what, have, want)
	}
	super := info.SuperOptions
	isReadOnly := slices.Contains(info.MountOptions, "ro") || slices.Contains(super, "ro")
	if want := opts.attr&unix.MOUNT_ATTR_RDONLY != 0; want != isReadOnly {
		return differs("access", access(want), access(isReadOnly))
	}
	for _, option := range []string{"nosuid", "nodev", "noexec", "noatime", "nodiratime"} {
		a, _ := attributeOf(option)
		if opts.attr&a.set != 0 && !slices.Contains(info.MountOptions, option) {
			return differs("options", option, strings.Join(info.MountOptions, ","))
		}
	}
	vers := optionValue(super, "vers")
	if !slices.ContainsFunc(opts.versions, func(v version) bool { return v.String() == vers }) {
		return differs("version", fmt.Sprint(opts.versions), vers)
	}
	if have := strings.TrimSuffix(optionValue(super, "proto"), "6"); opts.proto != "" && have != opts.proto {
		return differs("protocol", opts.proto, have)
	}
	if want, have := opts.persistence(), persistence(super); want != have {
		return differs("failure mode", want, have)
	}
	for _, p := range opts.params {
		if want, have, ok := compared(p, super, vers); ok && want != have {
			return differs("option "+p.key, want, have)
		}
	}
	return nil
}

func access(readOnly bool) string {
	if readOnly {
		return "ro"
	}
	return "rw"
}

// persistence returns which of soft, softerr and hard is in force.
func (o options) persistence() string {
	mode := "hard"
	for _, p := range o.params {
		if p.key == "soft" || p.key == "softerr" || p.key == "hard" {
			mode = p.key
		}
	}
	return mode
}

func persistence(super []string) string {
	for _, mode := range []string{"soft", "softerr"} {
		if slices.Contains(super, mode) {
			return mode
		}
	}
	return "hard"
}

// compared returns what was asked for and what the superblock shows for an
// option that every superblock has for itself (fs/nfs/super.c,
// nfs_compare_mount_options), in one form for both.
func compared(p param, super []string, vers string) (want, have string, ok bool) {
	shown := func(key, byDefault string) string {
		if v := optionValue(super, key); v != "" {
			return v
		}
		return byDefault
	}
	switch p.key {
	case "nocto", "noac", "posix":
		return "set", flagShown(super, p.key), true
	case "noacl", "nordirplus":
		return "set", flagShown(super, p.key), vers == "3" || p.key == "nordirplus"
	case "acregmin", "acdirmin", "acregmax", "acdirmax":
		defaults := map[string]string{"acregmin": "3", "acregmax": "60", "acdirmin": "30", "acdirmax": "60"}
		return p.value, shown(p.key, defaults[p.key]), true
	case "actimeo":
		return p.value, shown("acregmin", "3"), true
	case "lookupcache":
		if p.value == "positive" {
			return "pos", shown("lookupcache", "all"), true
		}
		return p.value, shown("lookupcache", "all"), true
	case "nolock":
		return "set", flagShown(super, "nolock"), vers == "3"
	case "local_lock":
		return p.value, shown("local_lock", "none"), vers == "3"
	case "sec":
		have := optionValue(super, "sec")
		if have == "null" {
			have = "none"
		}
		if slices.Contains(strings.Split(p.value, ":"), have) {
			return have, have, true
		}
		return p.value, have, true
	}
	return "", "", false
}

func flagShown(super []string, key string) string {
	if slices.Contains(super, key) {
		return "set"
	}
	return "unset"
}

// optionValue returns the value of the last "key=value" of the options.
func optionValue(options []string, key string) string {
	for _, o := range slices.Backward(options) {
		if v, ok := strings.CutPrefix(o, key+"="); ok {
			return v
		}
	}
	return ""
}
