package mount

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// listen takes TCP connections on a port of 127.0.0.1 and says which.
func listen(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

func testExport(t *testing.T, server string, options ...string) nfs.Export {
	t.Helper()
	e, err := nfs.NewExport(server, "/data", options)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// asked runs a negotiation in which the kernel answers with the given function,
// and returns what the kernel was asked for: "address version".
func asked(t *testing.T, m *Mounter, export nfs.Export, answer func(addr, vers string) error) ([]string, error) {
	t.Helper()
	var got []string
	err := m.negotiate(t.Context(), export, "vol", false, func(r request) error {
		values := map[string]string{}
		for _, p := range r.params {
			values[p.key] = p.value
		}
		if strings.HasPrefix(values["vers"], "4") != (values["clientaddr"] != "") {
			t.Errorf("version %s: clientaddr %q", values["vers"], values["clientaddr"])
		}
		got = append(got, values["addr"]+" "+values["vers"])
		return answer(values["addr"], values["vers"])
	})
	return got, err
}

func TestNegotiateVersions(t *testing.T) {
	port := listen(t)
	refusing := func(errno unix.Errno, versions ...string) func(string, string) error {
		return func(_, vers string) error {
			if slices.Contains(versions, vers) {
				return &callError{call: "fsconfig", errno: errno, words: []string{"words of " + vers}}
			}
			return nil
		}
	}
	tests := []struct {
		name, options string
		answer        func(string, string) error
		want          []string
		wantErr       error
		wantText      []string
	}{
		{name: "newest first", answer: refusing(0), want: []string{"4.2"}},
		{name: "server without 4.2", answer: refusing(unix.EPROTONOSUPPORT, "4.2"), want: []string{"4.2", "4.1"}},
		{name: "kernel without 4.2 and 4.1", answer: refusing(unix.EINVAL, "4.2", "4.1"), want: []string{"4.2", "4.1", "4.0"}},
		{name: "version 3 only", answer: refusing(unix.EPROTONOSUPPORT, "4.2", "4.1", "4.0"), want: []string{"4.2", "4.1", "4.0", "3"}},
		{name: "none", answer: refusing(unix.EPROTONOSUPPORT, "4.2", "4.1", "4.0", "3"), want: []string{"4.2", "4.1", "4.0", "3"},
			wantErr: nfs.ErrInvalid, wantText: []string{"(vers 4.2, 4.1, 4.0, 3)", "vers="}},
		{name: "4 is not 3", options: "vers=4", answer: refusing(unix.EPROTONOSUPPORT, "4.2", "4.1", "4.0"), want: []string{"4.2", "4.1", "4.0"},
			wantErr: nfs.ErrInvalid, wantText: []string{"(vers 4.2, 4.1, 4.0)", "none of the NFS versions", "words of 4.2"}},
		{name: "4.1 is not 4.0", options: "vers=4.1", answer: refusing(unix.EPROTONOSUPPORT, "4.1"), want: []string{"4.1"},
			wantErr: nfs.ErrInvalid, wantText: []string{"(vers 4.1)"}},
		{name: "denied", answer: refusing(unix.EACCES, "4.2"), want: []string{"4.2"}, wantErr: nfs.ErrPermission,
			wantText: []string{"mount 127.0.0.1:/data/vol (vers 4.2): access denied by server: words of 4.2; check that /etc/exports on the server lists this client"}},
		{name: "no such share", answer: refusing(unix.ENOENT, "4.2"), want: []string{"4.2"}, wantErr: nfs.ErrNoExport},
		{name: "denied in 4.1", answer: func(_, vers string) error {
			if vers == "4.2" {
				return &callError{errno: unix.EPROTONOSUPPORT}
			}
			return &callError{errno: unix.EACCES}
		}, want: []string{"4.2", "4.1"}, wantErr: nfs.ErrPermission, wantText: []string{"(vers 4.1)"}},
		{name: "bad option", options: "bogus", answer: func(string, string) error {
			return &callError{call: "the kernel refuses bogus", errno: unix.EINVAL, words: []string{"nfs: Unknown parameter 'bogus'"}, option: true}
		}, want: []string{"4.2"}, wantErr: nfs.ErrInvalid, wantText: []string{"nfs: Unknown parameter 'bogus'", "nfs(5)"}},
		{name: "bad options for the user space", options: "vers=9", wantErr: nfs.ErrInvalid, wantText: []string{"vers=9"}},
		{name: "mount point trouble", answer: func(string, string) error {
			return &callError{call: "cannot attach", errno: unix.EINVAL, local: true}
		}, want: []string{"4.2"}, wantErr: nfs.ErrInvalid, wantText: []string{"cannot attach"}},
		{name: "internal", answer: refusing(unix.ENOMEM, "4.2"), want: []string{"4.2"}, wantErr: unix.ENOMEM},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			export := testExport(t, "127.0.0.1", fmt.Sprintf("port=%d,mountport=1", port), tt.options)
			got, err := asked(t, New(Options{}), export, tt.answer)
			var want []string
			for _, v := range tt.want {
				want = append(want, "127.0.0.1 "+v)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("asked (-want +got)\n%s", diff)
			}
			if !errors.Is(err, tt.wantErr) {
				t.Errorf("error %v, want %v", err, tt.wantErr)
			}
			for _, text := range tt.wantText {
				if err == nil || !strings.Contains(err.Error(), text) {
					t.Errorf("error %v does not say %q", err, text)
				}
			}
			oneSentinel(t, err)
		})
	}
}

// oneSentinel checks that the error wraps at most one kind of error.
func oneSentinel(t *testing.T, err error) {
	t.Helper()
	var found []string
	for name, sentinel := range nfs.Sentinels() {
		if errors.Is(err, sentinel) {
			found = append(found, name)
		}
	}
	if len(found) > 1 {
		t.Errorf("error %v wraps %q, which is more than one sentinel", err, found)
	}
}

func TestNegotiateAddresses(t *testing.T) {
	port := listen(t)
	lookup := func(_ context.Context, _, host string) ([]netip.Addr, error) {
		switch host {
		case "two":
			return []netip.Addr{netip.MustParseAddr("::ffff:127.0.0.2"), netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.1")}, nil
		case "six":
			return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}, nil
		}
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	// Nothing listens on the port at any address but 127.0.0.1.
	opts := fmt.Sprintf("vers=4.2,port=%d", port)
	ok := func(string, string) error { return nil }
	tests := []struct {
		name, server, options string
		answer                func(addr, vers string) error
		want                  []string
		wantErr               error
		wantText              []string
	}{
		{name: "first", server: "127.0.0.1,127.0.0.2", answer: ok, want: []string{"127.0.0.1 4.2"}},
		{name: "a dead first", server: "127.0.0.2,127.0.0.1", answer: ok, want: []string{"127.0.0.1 4.2"}},
		{name: "all addresses of a name", server: "two", answer: ok, want: []string{"127.0.0.1 4.2"}},
		{name: "an unknown name first", server: "nowhere,127.0.0.1", answer: ok, want: []string{"127.0.0.1 4.2"}},
		{name: "unknown name", server: "nowhere", answer: ok, wantErr: nfs.ErrUnavailable, wantText: []string{"no such host", "nowhere:/data"}},
		{name: "all dead", server: "127.0.0.2,127.0.0.3", answer: ok, wantErr: nfs.ErrUnavailable,
			wantText: []string{"127.0.0.2:" + fmt.Sprint(port), "127.0.0.3:" + fmt.Sprint(port), "connection refused", "firewall"}},
		{name: "the kernel is refused", server: "127.0.0.1,localhost.invalid", answer: func(string, string) error {
			return &callError{errno: unix.ETIMEDOUT}
		}, want: []string{"127.0.0.1 4.2"}, wantErr: nfs.ErrUnavailable},
		{name: "denied is final", server: "127.0.0.1,127.0.0.1", answer: func(string, string) error {
			return &callError{errno: unix.EACCES}
		}, want: []string{"127.0.0.1 4.2"}, wantErr: nfs.ErrPermission},
		{name: "addr= instead of the resolver", server: "nowhere", options: "addr=127.0.0.1", answer: ok, want: []string{"127.0.0.1 4.2"}},
		{name: "the family of proto=", server: "six", options: "proto=tcp6", answer: ok, wantErr: nfs.ErrUnavailable, wantText: []string{"[::1]"}},
		{name: "no address of the family", server: "two", options: "proto=tcp6", answer: ok, wantErr: nfs.ErrUnavailable, wantText: []string{"family"}},
		{name: "mounthost unknown", server: "127.0.0.1", options: "mounthost=nowhere", answer: ok, wantErr: nfs.ErrUnavailable, wantText: []string{"mounthost"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := New(Options{LookupAddress: lookup})
			got, err := asked(t, m, testExport(t, tt.server, opts, tt.options), tt.answer)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("asked (-want +got)\n%s", diff)
			}
			if !errors.Is(err, tt.wantErr) {
				t.Errorf("error %v, want %v", err, tt.wantErr)
			}
			for _, text := range tt.wantText {
				if err == nil || !strings.Contains(err.Error(), text) {
					t.Errorf("error %v does not say %q", err, text)
				}
			}
			oneSentinel(t, err)
		})
	}
}

// A listener whose queue is full drops connections, as a dead address does.
func TestProbeGivesUp(t *testing.T) {
	port := fullListener(t)
	m := New(Options{ProbeTimeout: 200 * time.Millisecond})
	export := testExport(t, "127.0.0.1", fmt.Sprintf("vers=4.2,port=%d", port))
	start := time.Now()
	got, err := asked(t, m, export, func(string, string) error { return nil })
	if !errors.Is(err, nfs.ErrUnavailable) || !strings.Contains(fmt.Sprint(err), "no answer in time") {
		t.Errorf("error %v, want ErrUnavailable, no answer in time", err)
	}
	if len(got) > 0 || time.Since(start) > 5*time.Second {
		t.Errorf("asked the kernel %q after %s", got, time.Since(start))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Detached(ctx, export, "", false); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: error %v", err)
	}
}

func fullListener(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	addr, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := addr.(*unix.SockaddrInet4).Port
	for range 10 {
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 50*time.Millisecond)
		if err != nil {
			return port
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	t.Skip("the kernel queues every connection here")
	return 0
}

func TestExplain(t *testing.T) {
	tests := []struct {
		errno      unix.Errno
		privileged bool
		want       error
		text       string
	}{
		{unix.EPERM, false, nfs.ErrPermission, "CAP_SYS_ADMIN is missing: operation not permitted; set securityContext.capabilities.add: [SYS_ADMIN] on the container"},
		{unix.EPERM, true, nfs.ErrPermission, "sec="},
		{unix.EACCES, true, nfs.ErrPermission, "access denied by server"},
		{unix.ENOENT, true, nfs.ErrNoExport, "no such directory for this client"},
		{unix.ENODEV, true, nil, "modprobe nfs"},
		{unix.EINVAL, true, nfs.ErrInvalid, "mount options"},
		{unix.ENAMETOOLONG, true, nfs.ErrInvalid, "too long"},
		{unix.EPROTONOSUPPORT, true, nfs.ErrInvalid, "none of the NFS versions"},
		{unix.ECONNREFUSED, true, nfs.ErrUnavailable, "nolock"},
		{unix.ETIMEDOUT, true, nfs.ErrUnavailable, "does not answer"},
		{unix.EIO, true, nfs.ErrUnavailable, "does not answer"},
		{unix.ESTALE, true, nfs.ErrStale, "removed"},
		{unix.ENOMEM, true, nil, "fsconfig: cannot allocate memory"},
	}
	for _, tt := range tests {
		err := explain("mount", "s:/d", []string{"3"}, &callError{call: "fsconfig", errno: tt.errno}, tt.privileged)
		if !errors.Is(err, tt.errno) || tt.want != nil && !errors.Is(err, tt.want) || tt.want == nil && err.Kind != nil {
			t.Errorf("%v: error %v of kind %v, want %v", tt.errno, err, err.Kind, tt.want)
		}
		if !strings.HasPrefix(err.Error(), "mount s:/d (vers 3): ") || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%v: %q does not say %q", tt.errno, err, tt.text)
		}
	}
}
