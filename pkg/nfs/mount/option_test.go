package mount

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

var compareOptions = cmp.AllowUnexported(options{}, version{}, param{})

func compareAddr() cmp.Option {
	return cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
}

func TestParseOptions(t *testing.T) {
	all := []version{{4, 2}, {4, 1}, {4, 0}, {3, 0}}
	four := all[:3]
	flag := func(key string) param { return param{key: key, flag: true} }
	value := func(key, value string) param { return param{key: key, value: value} }
	tests := []struct {
		in       string
		readOnly bool
		want     options
	}{
		{in: "", want: options{versions: all}},
		{in: " ,, defaults,auto,noauto,_netdev,nofail,nouser,x-systemd.automount,X-mount.mkdir=0700,comment=a,bg,fg,retry=5", want: options{versions: all}},
		{in: "", readOnly: true, want: options{versions: all, attr: unix.MOUNT_ATTR_RDONLY, super: unix.MS_RDONLY}},
		{in: "rw", readOnly: true, want: options{versions: all, attr: unix.MOUNT_ATTR_RDONLY, super: unix.MS_RDONLY}},
		{in: "ro", want: options{versions: all, attr: unix.MOUNT_ATTR_RDONLY, super: unix.MS_RDONLY}},
		{in: "ro,rw", want: options{versions: all}},
		{in: "noatime,nodiratime,nosuid,nodev,noexec,nosymfollow", want: options{versions: all, attr: unix.MOUNT_ATTR_NOATIME | unix.MOUNT_ATTR_NODIRATIME |
			unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSYMFOLLOW}},
		{in: "noatime,strictatime", want: options{versions: all, attr: unix.MOUNT_ATTR_STRICTATIME}},
		{in: "noatime,relatime", want: options{versions: all}},
		{in: "user,exec", want: options{versions: all, attr: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}},
		{in: "sync,dirsync,lazytime", want: options{versions: all, super: unix.MS_SYNCHRONOUS | unix.MS_DIRSYNC | unix.MS_LAZYTIME}},
		{in: "sync,async", want: options{versions: all}},
		{in: "vers=4", want: options{versions: four}},
		{in: "nfsvers=4.1", want: options{versions: []version{{4, 1}}}},
		{in: "v4.0", want: options{versions: []version{{4, 0}}}},
		{in: "v4", want: options{versions: four}},
		{in: "v3", want: options{versions: []version{{3, 0}}}},
		{in: "vers=3,vers=4.2", want: options{versions: []version{{4, 2}}}},
		{in: "vers=4,minorversion=1", want: options{versions: []version{{4, 1}}}},
		{in: "minorversion=0", want: options{versions: []version{{4, 0}}}},
		{in: "hard,soft,timeo=50,nconnect=4,sec=krb5:sys,nolock", want: options{versions: all,
			params: []param{flag("hard"), flag("soft"), value("timeo", "50"), value("nconnect", "4"), value("sec", "krb5:sys"), flag("nolock")}}},
		{in: "soft,hard,soft", want: options{versions: all, params: []param{flag("hard"), flag("soft")}}},
		{in: "timeo=1,timeo=2,fsc,fsc=x,bogus,empty=", want: options{versions: all,
			params: []param{value("timeo", "2"), value("fsc", "x"), flag("bogus"), value("empty", "")}}},
		{in: "proto=tcp6,port=20490", want: options{versions: all, proto: "tcp", ipv6: true, port: 20490}},
		{in: "proto=rdma,tcp", want: options{versions: all, proto: "tcp"}},
		{in: "udp,mountproto=udp,mountport=635,mounthost=m,mountaddr=10.0.0.3", want: options{versions: all,
			proto: "udp", mountproto: "udp", mountport: 635, mounthost: "m", mountaddr: netip.MustParseAddr("10.0.0.3")}},
		{in: "addr=10.0.0.1,clientaddr=[fd00::2]", want: options{versions: all,
			addr: netip.MustParseAddr("10.0.0.1"), clientaddr: netip.MustParseAddr("fd00::2")}},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			if tt.want.port == 0 {
				tt.want.port = -1
			}
			if tt.want.mountport == 0 {
				tt.want.mountport = -1
			}
			got, err := parseOptions([]string{tt.in}, tt.readOnly)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, compareOptions, compareAddr()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestParseOptionsRefuses(t *testing.T) {
	for _, in := range []string{
		"vers=2", "vers=5", "vers=4.3", "vers=", "v9", "minorversion=3", "minorversion=x", "vers=3,minorversion=1",
		"port=65536", "port=-1", "port=x", "mountport=70000", "proto=sctp", "mountproto=", "addr=server", "clientaddr=1.2.3",
		"mountaddr=x", "remount", "bind", "rbind", "move", "rshared", "source=a:/b",
	} {
		_, err := parseOptions([]string{in}, false)
		if !errors.Is(err, nfs.ErrInvalid) || !strings.Contains(err.Error(), strings.Split(in, ",")[0]) && in != "vers=3,minorversion=1" {
			t.Errorf("%s: error %v, want ErrInvalid that names the option", in, err)
		}
	}
}

func FuzzParseOptions(f *testing.F) {
	for _, s := range []string{"vers=4.1,ro,soft", "v3,nolock,port=0", "proto=tcp6,addr=fe80::1%eth0", `context="a,b"`, "=,=x,ro=1"} {
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, s string, readOnly bool) {
		o, err := parseOptions([]string{s}, readOnly)
		if err != nil {
			if !errors.Is(err, nfs.ErrInvalid) {
				t.Fatalf("%q: error %v is not ErrInvalid", s, err)
			}
			return
		}
		if readOnly && (o.attr&unix.MOUNT_ATTR_RDONLY == 0 || o.super&unix.MS_RDONLY == 0) {
			t.Fatalf("%q: not read-only", s)
		}
		if len(o.versions) == 0 {
			t.Fatalf("%q: no version", s)
		}
		params := o.parameters(o.versions[0], netip.MustParseAddr("10.0.0.1"), netip.Addr{}, netip.Addr{})
		seen := map[string]bool{}
		for _, p := range params {
			if seen[p.key] || strings.Contains(p.value, ",") || p.flag && p.value != "" {
				t.Fatalf("%q: parameter %+v is there twice or malformed", s, p)
			}
			seen[p.key] = true
		}
	})
}

func TestParameters(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	client := netip.MustParseAddr("10.0.0.9")
	tests := []struct {
		in         string
		addr       netip.Addr
		clientaddr netip.Addr
		mountaddr  netip.Addr
		want       string
	}{
		{in: "", addr: v4, clientaddr: client, want: "vers=4.2 addr=10.0.0.1 clientaddr=10.0.0.9"},
		{in: "proto=tcp", addr: v6, want: "vers=4.2 addr=fd00::1 proto=tcp6"},
		{in: "proto=tcp6,port=1", addr: v6, want: "vers=4.2 addr=fd00::1 proto=tcp6 port=1"},
		{in: "vers=3,mountproto=udp,mountport=635,nolock", addr: v6, want: "vers=3 addr=fd00::1 mountproto=udp6 mountport=635 nolock"},
		{in: "vers=3,mountproto=tcp", addr: v6, mountaddr: v4, want: "vers=3 addr=fd00::1 mountaddr=10.0.0.1 mountproto=tcp"},
	}
	for _, tt := range tests {
		o, err := parseOptions([]string{tt.in}, false)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range o.parameters(o.versions[0], tt.addr, tt.clientaddr, tt.mountaddr) {
			got = append(got, p.String())
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("%q at %s: %q, want %q", tt.in, tt.addr, s, tt.want)
		}
	}
}

func TestProbePort(t *testing.T) {
	tests := map[string]int{
		"vers=4.2": 2049, "vers=4.2,port=5": 5, "vers=4.2,port=0": 111, "vers=4.2,proto=rdma": 0,
		"vers=3": 111, "vers=3,port=5": 111, "vers=3,port=5,mountport=6": 5, "vers=3,mountport=6": 111,
		"vers=3,udp": 0, "vers=3,mountproto=udp": 0, "vers=3,mountproto=udp,port=5": 5,
	}
	for in, want := range tests {
		o, err := parseOptions([]string{in}, false)
		if err != nil {
			t.Fatal(err)
		}
		if got := o.probePort(o.versions[0]); got != want {
			t.Errorf("%s: port %d, want %d", in, got, want)
		}
	}
}
