package nfs_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func TestSnapshotHandle(t *testing.T) {
	export := func(server, share string, options ...string) nfs.Export {
		t.Helper()
		e, err := nfs.NewExport(server, share, options)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	for text, want := range map[string]nfs.SnapshotHandle{
		"s1:10.0.0.1:/data::snapshot-1":                   {Export: export("10.0.0.1", "/data"), ID: "snapshot-1"},
		"s1:fd00%3A%3A1,nfs:/a%20b%23:nfsvers=4.1,soft:x": {Export: export("fd00::1,nfs", "/a b#", "nfsvers=4.1", "soft"), ID: "x"},
	} {
		got, err := nfs.ParseSnapshotHandle(text)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v, (-want +got):\n%s", text, err, diff)
		}
		if again := want.String(); again != text {
			t.Errorf("%+v is written %q, want %q", want, again, text)
		}
		// Neither is taken for the other.
		if _, err := nfs.ParseHandle(text); err == nil {
			t.Errorf("%q was read as a volume handle", text)
		}
	}
	for text, part := range map[string]string{
		"":                                 "no version",
		"v1:10.0.0.1:/data::pvc-1":         "no version",
		"s2:10.0.0.1:/data::snapshot-1":    "no version",
		"s1:10.0.0.1:/data:snapshot-1":     "4 parts",
		"s1:10.0.0.1:/data::../x":          "not a record id",
		"s1:10.0.0.1:/data/::snapshot-1":   "proper form",
		"s1:10.0.0.1:/d%61ta::snapshot-1":  "proper form",
		"s1:10.0.0.1:data::snapshot-1":     "not an absolute path",
		"s1:10.0.0.1:/data::snapshot-1%":   "cut-off escape",
		"10.0.0.1#data#x#uuid#delete#snap": "no version",
	} {
		_, err := nfs.ParseSnapshotHandle(text)
		checkInvalid(t, err, part)
	}
}

func FuzzParseSnapshotHandle(f *testing.F) {
	f.Add("s1:10.0.0.1:/data::snapshot-1")
	f.Fuzz(func(t *testing.T, s string) {
		h, err := nfs.ParseSnapshotHandle(s)
		if err == nil && h.String() != s {
			t.Errorf("%q became %q", s, h)
		}
	})
}

func TestSource(t *testing.T) {
	a := nfs.Source{Export: nfs.Export{Server: "s", Share: "/d", Options: []string{"soft"}}, Volume: "v"}
	b := nfs.Source{Export: nfs.Export{Server: "s", Share: "/d"}, Volume: "v"}
	if !a.Same(b) || a.Same(nfs.Source{Volume: "v"}) || b.Same(nfs.Source{Export: b.Export, Snapshot: "v"}) || a.IsZero() || !(nfs.Source{}).IsZero() {
		t.Errorf("%v, %v", a, b)
	}
	if text := a.String(); text != `volume "v" on s:/d` {
		t.Errorf("%q", text)
	}
}
