package nfs_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func TestParseHandle(t *testing.T) {
	for _, tc := range []struct {
		in         string
		export, id string
		options    string
		dir        string
		legacy     bool
		err        string
	}{
		{in: "v1:10.0.0.1:/data::pvc-1", export: "10.0.0.1:/data", id: "pvc-1"},
		{in: "v1:fd00%3A%3A1:/my%20data%23:nfsvers=4.1,soft:pvc-1", export: "[fd00::1]:/my data#", options: "nfsvers=4.1,soft", id: "pvc-1"},
		{in: "", err: "no version"},
		{in: "v2:10.0.0.1:/data::pvc-1", err: "no version"},
		{in: "v1:10.0.0.1:/data:pvc-1", err: "4 parts"},
		{in: "v1:10.0.0.1:/data::../x", err: "not a record id"},
		{in: "v1:10.0.0.1:/data::", err: "not a record id"},
		{in: "v1:10.0.0.1:/data/:hard:pvc-1", err: "one proper form"},
		{in: "v1:10.0.0.1:/%64ata::pvc-1", err: "one proper form"},
		{in: "v1:10.0.0.1:/data%2::pvc-1", err: "cut-off escape"},
		{in: "v1:10.0.0.1:/data%2f::pvc-1", err: "bad escape"},
		{in: "v1:10.0.0.1:data::pvc-1", err: "not an absolute path"},

		{in: "nfs.example#data/k8s#pvc-1##", export: "nfs.example:/data/k8s", id: "pvc-1", dir: "pvc-1", legacy: true},
		{in: "nfs.example#data#team/db#pvc-1#archive", export: "nfs.example:/data", id: "pvc-1", dir: "team/db", legacy: true},
		{in: "nfs.example#data#pvc-1", export: "nfs.example:/data", id: "pvc-1", dir: "pvc-1", legacy: true},
		{in: "nfs.example#data", err: "server#share#subDir"},
		{in: "nfs.example#data#a#b#pvc-1#delete", err: "server#share#subDir"},
		{in: "nfs.example#data#..#pvc-1#", err: "not a directory name"},
		{in: "nfs.example#data##pvc-1#", err: "element is empty"},
		{in: "nfs.example#data#/#pvc-1#", err: "element is empty"},
		{in: "nfs.example#data#a#pvc-1#destroy", err: "none of delete"},
	} {
		t.Run(tc.in, func(t *testing.T) {
			h, err := nfs.ParseHandle(tc.in)
			checkInvalid(t, err, tc.err)
			if tc.err != "" {
				return
			}
			got := []any{h.Export.String(), strings.Join(h.Export.Options, ","), h.ID, h.Dir, h.Legacy()}
			want := []any{tc.export, tc.options, tc.id, tc.dir, tc.legacy}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("handle (-want +got):\n%s", diff)
			}
		})
	}
}

// FuzzParseHandle: whatever is accepted formats to a handle that reads back as
// itself, never names a directory outside of the share, and never leaves the
// field of record ids.
func FuzzParseHandle(f *testing.F) {
	for _, s := range []string{"v1:10.0.0.1:/data::pvc-1", "v1:fd00%3A%3A1:/a%20b:soft:x-0123456789abcdef0123456789abcdef", "s#share#dir#uuid#delete", "s#share#dir", "v1:::::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, err := nfs.ParseHandle(s)
		if err != nil {
			return
		}
		again, err := nfs.ParseHandle(h.String())
		if err != nil {
			t.Fatalf("%q reads as %q, which does not read: %v", s, h, err)
		}
		if again.String() != h.String() || !again.Export.Equal(h.Export) || again.ID != h.ID || again.Dir != h.Dir {
			t.Fatalf("%q reads as %#v, and that as %#v", s, h, again)
		}
		if !h.Legacy() && h.String() != s {
			t.Fatalf("%q has a second form %q", s, h)
		}
		if err := nfs.CheckRecordID(h.ID); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzFormatHandle: every export and volume name give a handle that reads back as the same.
func FuzzFormatHandle(f *testing.F) {
	f.Add("10.0.0.1", "/data", "nfsvers=4.1", "pvc-1")
	f.Add("[fd00::1]", "/a:b%#c d", "soft,timeo=10", "Ünïcode / name")
	f.Fuzz(func(t *testing.T, server, share, options, name string) {
		e, err := nfs.NewExport(server, share, []string{options})
		if err != nil || name == "" {
			return
		}
		h := nfs.Handle{Export: e, ID: nfs.RecordID(name)}
		got, err := nfs.ParseHandle(h.String())
		if err != nil {
			t.Fatalf("%#v formats as %q: %v", h, h, err)
		}
		if !got.Export.Equal(e) || got.ID != h.ID || got.Legacy() {
			t.Fatalf("%#v formats as %q and reads as %#v", h, h, got)
		}
	})
}
