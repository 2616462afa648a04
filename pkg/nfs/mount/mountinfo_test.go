package mount

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	mountutils "k8s.io/mount-utils"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// realMountInfo is of Linux 6.1 with NFS mounts of every version.
const realMountInfo = `21 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda rw,errors=remount-ro
22 21 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:2 master:3 - proc none rw
60 21 0:45 / /mnt/a rw,nosuid,relatime - nfs4 10.0.0.1:/export/xfs rw,vers=4.2,rsize=262144,wsize=262144,namlen=255,hard,proto=tcp,timeo=600,retrans=2,sec=sys,clientaddr=10.0.0.2,local_lock=none,addr=10.0.0.1
61 21 0:45 /vol//deleted /mnt/b ro,relatime - nfs4 10.0.0.1:/export/xfs/vol rw,vers=4.2,rsize=262144,wsize=262144,namlen=255,hard,proto=tcp,timeo=600,retrans=2,sec=sys,clientaddr=10.0.0.2,local_lock=none,addr=10.0.0.1
62 21 0:46 / /mnt/with\040space\011tab\012newline\134backslash#hash rw,relatime - nfs4 [fd00::1]:/export/a\040b#c rw,vers=4.1,rsize=1024,wsize=1024,namlen=255,soft,proto=tcp6,port=20490,timeo=600,retrans=2,sec=krb5p,clientaddr=fd00::2,local_lock=none,addr=fd00::1
63 21 0:47 / /mnt/no` + "\u00a0" + `break rw,noatime - nfs server:/export/three ro,vers=3,rsize=1024,wsize=1024,namlen=255,acregmin=0,acregmax=0,acdirmin=0,acdirmax=0,softerr,nocto,noac,nolock,noacl,nordirplus,proto=tcp,timeo=600,retrans=2,sec=sys,mountaddr=10.0.0.1,mountvers=3,mountport=635,mountproto=tcp,lookupcache=pos,local_lock=all,addr=10.0.0.1
64 60 0:48 / /mnt/a rw,relatime - tmpfs  rw,context="system_u:object_r:t:s0:c1,c2"
`

func parsed(t *testing.T) []mountutils.MountInfo {
	t.Helper()
	infos, err := parseMountInfo(realMountInfo)
	if err != nil {
		t.Fatal(err)
	}
	return infos
}

func TestParseMountInfo(t *testing.T) {
	infos := parsed(t)
	type line struct{ Place, Root, Type, Source string }
	var got []line
	for _, i := range infos {
		got = append(got, line{i.MountPoint, i.Root, i.FsType, i.Source})
	}
	want := []line{
		{"/", "/", "ext4", "/dev/vda"},
		{"/proc", "/", "proc", "none"},
		{"/mnt/a", "/", "nfs4", "10.0.0.1:/export/xfs"},
		{"/mnt/b", "/vol", "nfs4", "10.0.0.1:/export/xfs/vol"},
		{"/mnt/with space\ttab\nnewline\\backslash#hash", "/", "nfs4", "[fd00::1]:/export/a b#c"},
		{"/mnt/no\u00a0break", "/", "nfs", "server:/export/three"},
		{"/mnt/a", "/", "tmpfs", ""},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	wantProc := mountutils.MountInfo{ID: 22, ParentID: 21, Major: 0, Minor: 21, Root: "/", Source: "none", MountPoint: "/proc",
		OptionalFields: []string{"shared:2", "master:3"}, FsType: "proc",
		MountOptions: []string{"rw", "nosuid", "nodev", "noexec", "relatime"}, SuperOptions: []string{"rw"}}
	if diff := cmp.Diff(wantProc, infos[1]); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"rw", `context="system_u:object_r:t:s0:c1,c2"`}, infos[6].SuperOptions); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if top, ok := Find(infos, "/mnt/a/"); !ok || top.ID != 64 {
		t.Errorf("Find(/mnt/a) = %d, %v, want the upper mount, 64", top.ID, ok)
	}
	if _, ok := Find(infos, "/mnt"); ok {
		t.Error("Find(/mnt) finds what is mounted below it")
	}
	for _, bad := range []string{"x", "1 2 0:1 / / rw", "1 2 0:1 / /  - a b", "a 2 0:1 / / rw - a b c", "1 2 01 / / rw - a b c"} {
		if _, err := parseMountInfo(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func FuzzUnescape(f *testing.F) {
	f.Add(`a\040b\134`)
	f.Add(`\777\08`)
	f.Fuzz(func(t *testing.T, s string) {
		escaped := ""
		for _, c := range []byte(s) {
			if c <= ' ' || c == '\\' {
				escaped += string([]byte{'\\', '0' + c>>6, '0' + c>>3&7, '0' + c&7})
			} else {
				escaped += string([]byte{c})
			}
		}
		if got := unescape(escaped); got != s {
			t.Errorf("unescape(%q) = %q, want %q", escaped, got, s)
		}
		unescape(s)
	})
}

func TestResolveParent(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	mkdirs(t, dir, "real", "pods")
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(dir, "real", "pods", "target")); err != nil {
		t.Fatal(err)
	}
	infos := parsed(t)
	tests := map[string]string{
		dir + "/link/pods/target": dir + "/real/pods/target",
		dir + "/missing/target":   dir + "/missing/target",
		"/mnt/b/x/y":              "/mnt/b/x/y",
		"/mnt/b":                  "/mnt/b",
	}
	for in, want := range tests {
		if got := resolveParent(infos, in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestSameSource(t *testing.T) {
	infos := parsed(t)
	tests := []struct {
		name, place, server, share, dir string
		want                            bool
	}{
		{"address", "/mnt/b", "10.0.0.1", "/export/xfs", "vol", true},
		{"directory in the share", "/mnt/b", "10.0.0.1", "/export/xfs/vol", "", true},
		{"other directory", "/mnt/b", "10.0.0.1", "/export/xfs", "vo", false},
		{"no directory", "/mnt/b", "10.0.0.1", "/export/xfs", "", false},
		{"other server", "/mnt/b", "10.0.0.11", "/export/xfs", "vol", false},
		{"second address", "/mnt/b", "10.0.0.9,10.0.0.1", "/export/xfs", "vol", true},
		{"IPv6 in another spelling, odd name", "/mnt/with space\ttab\nnewline\\backslash#hash", "fd00:0::1", "/export", "a b#c", true},
		{"name", "/mnt/no\u00a0break", "Server.", "/export/three", "", true},
		{"address of the shared superblock", "/mnt/no\u00a0break", "10.0.0.1", "/export/three", "", true},
		{"unknown name", "/mnt/no\u00a0break", "other", "/export/three", "", false},
		{"not NFS", "/mnt/a", "10.0.0.1", "/export/xfs", "", false},
	}
	for _, tt := range tests {
		info, ok := Find(infos, tt.place)
		if !ok {
			t.Fatalf("%q is not in mountinfo", tt.place)
		}
		export := nfs.Export{Server: tt.server, Share: tt.share}
		if got := SameSource(info, export, tt.dir); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	m := New(Options{LookupAddress: func(context.Context, string, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("10.0.0.1")}, nil
	}})
	info, _ := Find(infos, "/mnt/b")
	if err := m.Match(t.Context(), info, nfs.Export{Server: "other", Share: "/export/xfs"}, "vol", true); err != nil {
		t.Errorf("another name of the same address: %v", err)
	}
	if err := m.Match(t.Context(), info, nfs.Export{Server: "other", Share: "/export"}, "vol", true); !errors.Is(err, nfs.ErrConflict) {
		t.Errorf("another share: error %v, want ErrConflict", err)
	}
}

func TestOptionsMatch(t *testing.T) {
	infos := parsed(t)
	const (
		rw     = "/mnt/b" // but for the mount, which is read-only
		six    = "/mnt/with space\ttab\nnewline\\backslash#hash"
		three  = "/mnt/no\u00a0break"
		anyway = "timeo=11,retrans=9,rsize=1,wsize=1,nconnect=3,port=5,x-a=b,bg,fsc"
	)
	tests := []struct {
		place, options string
		readOnly, want bool
	}{
		{rw, "", true, true},
		{rw, anyway, true, true},
		{rw, "", false, false},
		{rw, "ro", false, true},
		{rw, "vers=4", true, true},
		{rw, "vers=4.2,hard,sec=sys,proto=tcp", true, true},
		{rw, "vers=4.1", true, false},
		{rw, "vers=3", true, false},
		{rw, "soft", true, false},
		{rw, "softerr", true, false},
		{rw, "sec=krb5:sys", true, true},
		{rw, "sec=krb5", true, false},
		{rw, "proto=rdma", true, false},
		{rw, "nosuid", true, false},
		{rw, "noatime", true, false},
		{rw, "nocto", true, false},
		{rw, "noac", true, false},
		{rw, "actimeo=3", true, true},
		{rw, "actimeo=1", true, false},
		{rw, "acdirmax=60", true, true},
		{rw, "lookupcache=all", true, true},
		{rw, "lookupcache=none", true, false},
		{rw, "nolock,noacl,local_lock=all", true, true}, // version 4 has none of them
		{six, "soft,vers=4.1,proto=tcp6", false, true},
		{six, "soft,vers=4.1,proto=tcp", false, true},
		{six, "vers=4.1", false, false},
		{three, "vers=3,nolock,softerr,nocto,noac,noacl,nordirplus,lookupcache=positive,local_lock=all,noatime", true, true},
		{three, "vers=3,softerr", false, false}, // the superblock is read-only
		{three, "vers=3,softerr,local_lock=flock", true, false},
		{three, "vers=9", true, false},
	}
	for _, tt := range tests {
		info, ok := Find(infos, tt.place)
		if !ok {
			t.Fatalf("%q is not in mountinfo", tt.place)
		}
		err := OptionsMatch(info, nfs.Export{Options: []string{tt.options}}, tt.readOnly)
		if (err == nil) != tt.want {
			t.Errorf("%s %q readOnly=%v: error %v, want match %v", tt.place, tt.options, tt.readOnly, err, tt.want)
		}
		if err != nil && !errors.Is(err, nfs.ErrConflict) && tt.options != "vers=9" {
			t.Errorf("%s %q: error %v is not ErrConflict", tt.place, tt.options, err)
		}
	}
}

func TestMountRefs(t *testing.T) {
	infos, err := parseMountInfo(`1 0 8:1 / / rw - ext4 d rw
2 1 0:9 / /stage rw - nfs4 s:/x rw
3 1 0:9 / /pod\0401 rw - nfs4 s:/x rw
4 1 0:9 /sub /pod2 rw - nfs4 s:/x/sub rw
5 1 0:10 / /other rw - nfs4 s:/y rw
`)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string][]string{
		"/stage": {"/pod 1"}, "/pod 1": {"/stage"}, "/stage/sub": {"/pod2"}, "/pod2": nil, "/other": nil, "/etc": nil,
	}
	for in, want := range tests {
		if diff := cmp.Diff(want, mountRefs(infos, in)); diff != "" {
			t.Errorf("%s (-want +got)\n%s", in, diff)
		}
	}
}
