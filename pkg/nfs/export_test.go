package nfs_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func TestNewExport(t *testing.T) {
	for _, tc := range []struct {
		name          string
		server, share string
		options       []string
		want          nfs.Export
		err           string
	}{
		{name: "plain", server: "10.0.0.1", share: "/data", want: nfs.Export{Server: "10.0.0.1", Share: "/data"}},
		{name: "share is cleaned", server: "nfs.example", share: "/data//a/", want: nfs.Export{Server: "nfs.example", Share: "/data/a"}},
		{name: "root share", server: "nfs", share: "/", want: nfs.Export{Server: "nfs", Share: "/"}},
		{name: "host names have no case", server: "NFS.Example", share: "/D", want: nfs.Export{Server: "nfs.example", Share: "/D"}},
		{name: "address list", server: "10.0.0.1, nfs.example", share: "/d", want: nfs.Export{Server: "10.0.0.1,nfs.example", Share: "/d"}},
		{name: "IPv6 loses its brackets", server: "[FD00::1]", share: "/d", want: nfs.Export{Server: "fd00::1", Share: "/d"}},
		{name: "default options go", server: "s", share: "/d", options: []string{"hard,nfsvers=4.1", "rw", "nfsvers=4.1"}, want: nfs.Export{Server: "s", Share: "/d", Options: []string{"nfsvers=4.1"}}},
		{name: "odd share", server: "s", share: "/a b#%ü", want: nfs.Export{Server: "s", Share: "/a b#%ü"}},
		{name: "255 bytes", server: "s", share: "/" + strings.Repeat("x", 255), want: nfs.Export{Server: "s", Share: "/" + strings.Repeat("x", 255)}},
		{name: "256 bytes", server: "s", share: "/" + strings.Repeat("x", 256), err: "longer than 255 bytes"},
		{name: "no server", share: "/d", err: "the address is empty"},
		{name: "empty list element", server: "a,,b", share: "/d", err: "the address is empty"},
		{name: "bad host", server: "a b", share: "/d", err: "neither an IP address nor a host name"},
		{name: "server with a path", server: "a/b", share: "/d", err: "neither an IP address nor a host name"},
		{name: "brackets around no IPv6", server: "[10.0.0.1]", share: "/d", err: "not an IPv6 address"},
		{name: "relative share", server: "s", share: "d", err: "not an absolute path"},
		{name: "climbing share", server: "s", share: "/d/../e", err: `holds ".."`},
		{name: "control character", server: "s", share: "/d\n", err: "control character"},
		{name: "option with a space", server: "s", share: "/d", options: []string{"a b"}, err: "mount option"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := nfs.NewExport(tc.server, tc.share, tc.options)
			checkInvalid(t, err, tc.err)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("export (-want +got):\n%s", diff)
			}
			if tc.err != "" {
				return
			}
			again, err := nfs.NewExport(got.Server, got.Share, got.Options)
			if err != nil || !again.Equal(got) || again.Key() != got.Key() {
				t.Errorf("normalising %v again gave %v, %v", got, again, err)
			}
		})
	}
}

// checkInvalid fails unless err is ErrInvalid with the text, or nil where the text is empty.
func checkInvalid(t *testing.T, err error, text string) {
	t.Helper()
	switch {
	case text == "" && err != nil:
		t.Fatalf("unexpected error: %v", err)
	case text != "" && err == nil:
		t.Fatalf("no error; want ErrInvalid with %q", text)
	case text != "" && (!errors.Is(err, nfs.ErrInvalid) || !strings.Contains(err.Error(), text)):
		t.Fatalf("error %q; want ErrInvalid with %q", err, text)
	}
}

func TestParseExport(t *testing.T) {
	for _, tc := range []struct {
		in, name, options string
		err               string
	}{
		{in: "10.0.0.1:/data", name: "10.0.0.1:/data"},
		{in: "[fd00::1]:/data nfsvers=4.1,soft", name: "[fd00::1]:/data", options: "nfsvers=4.1,soft"},
		{in: "[fd00::1],[fd00::2]:/data", name: "[fd00::1],[fd00::2]:/data"},
		{in: `s:/my\040data hard`, name: "s:/my data"},
		{in: "s:/", name: "s:/"},
		{in: "s", err: "not of the form server:/share"},
		{in: "s:data", err: "not of the form server:/share"},
		{in: "", err: "not of the form server:/share"},
		{in: ":/data", err: "the address is empty"},
	} {
		t.Run(tc.in, func(t *testing.T) {
			e, err := nfs.ParseExport(tc.in)
			checkInvalid(t, err, tc.err)
			if tc.err != "" {
				return
			}
			if e.String() != tc.name || strings.Join(e.Options, ",") != tc.options {
				t.Errorf("got %q with options %q, want %q with %q", e, e.Options, tc.name, tc.options)
			}
		})
	}
}

func TestExportSource(t *testing.T) {
	e, err := nfs.NewExport("10.0.0.1,fd00::1", "/data", nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range e.Addresses() {
		got = append(got, e.Source(a, "a/b"), e.Source(a, ""))
	}
	want := []string{"10.0.0.1:/data/a/b", "10.0.0.1:/data", "[fd00::1]:/data/a/b", "[fd00::1]:/data"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sources (-want +got):\n%s", diff)
	}
}
