package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func TestCreateVolume(t *testing.T) {
	long := strings.Repeat("x", 255)
	tests := []struct{ name, dir string }{
		{"pvc-1", "pvc-1"},
		{"nested", "team/app/data"},
		{"PVC of \"someone\" #1 / 100%", "with space, #hash and 100%"},
		{"unicode", "größe/数据/🙂"},
		{"long", long},
		{"long-nested", long + "/" + long},
		{strings.Repeat("n", 255), "named-long"},
	}
	for _, tt := range tests {
		t.Run(tt.dir[:min(len(tt.dir), 20)], func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir)
			spec := volumeSpec(tt.name, tt.dir)
			v := create(t, s, spec)
			want := nfs.Volume{ID: nfs.RecordID(tt.name), Name: tt.name, Dir: tt.dir, CapacityBytes: 1 << 30, OnDelete: nfs.Delete,
				Mode: nfs.DefaultMode, Claim: spec.Claim, Created: v.Created}
			if diff := cmp.Diff(want, v); diff != "" {
				t.Errorf("created (-want +got):\n%s", diff)
			}
			if st, err := os.Stat(filepath.Join(dir, tt.dir)); err != nil || !st.IsDir() || st.Mode().Perm() != nfs.DefaultMode {
				t.Errorf("the directory: %v, %v", st, err)
			}
			again := create(t, openStore(t, dir), spec)
			if diff := cmp.Diff(want, again); diff != "" {
				t.Errorf("created again (-want +got):\n%s", diff)
			}
			got, err := s.GetVolume(t.Context(), v.ID)
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("get: %v (-want +got):\n%s", err, diff)
			}
			wantLeft := []string{"volumes/" + v.ID + ".json", "dirs/" + claimName(tt.dir)}
			if diff := cmp.Diff(wantLeft, leftovers(t, dir)); diff != "" {
				t.Errorf("on the export (-want +got):\n%s", diff)
			}
			remove(t, s, v.ID)
			waitPurged(t, dir)
			if diff := cmp.Diff([]string(nil), leftovers(t, dir)); diff != "" {
				t.Errorf("left behind (-want +got):\n%s", diff)
			}
			if entries, _ := os.ReadDir(dir); len(entries) != 1 {
				t.Errorf("left behind: %v", entries)
			}
		})
	}
}

func TestCreateInvalid(t *testing.T) {
	ok := volumeSpec("v", "v")
	tests := map[string]nfs.VolumeSpec{
		"share itself":   with(ok, func(s *nfs.VolumeSpec) { s.Dir = "." }),
		"root":           with(ok, func(s *nfs.VolumeSpec) { s.Dir = "/" }),
		"empty dir":      with(ok, func(s *nfs.VolumeSpec) { s.Dir = "" }),
		"climbs":         with(ok, func(s *nfs.VolumeSpec) { s.Dir = "a/../b" }),
		"own directory":  with(ok, func(s *nfs.VolumeSpec) { s.Dir = ".nfs-csi/volumes" }),
		"archive":        with(ok, func(s *nfs.VolumeSpec) { s.Dir = "archived-x" }),
		"no name":        with(ok, func(s *nfs.VolumeSpec) { s.Name = "" }),
		"name not UTF-8": with(ok, func(s *nfs.VolumeSpec) { s.Name = "a\xff" }),
		"mode":           with(ok, func(s *nfs.VolumeSpec) { s.Mode = fs.ModeDir | 0o755 }),
		"onDelete":       with(ok, func(s *nfs.VolumeSpec) { s.OnDelete = "keep" }),
		"no onDelete":    with(ok, func(s *nfs.VolumeSpec) { s.OnDelete = "" }),
		"capacity":       with(ok, func(s *nfs.VolumeSpec) { s.MinBytes = -1 }),
		"range":          with(ok, func(s *nfs.VolumeSpec) { s.MaxBytes = 1 }),
		"element":        with(ok, func(s *nfs.VolumeSpec) { s.Dir = strings.Repeat("x", 256) }),
	}
	for name, spec := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := openStore(t, dir).CreateVolume(t.Context(), spec)
			wantError(t, err, nfs.ErrInvalid)
			if got := tree(t, dir, nil); len(got) != 1 {
				t.Errorf("something was written: %v", got)
			}
		})
	}
}

func TestCreateIncompatible(t *testing.T) {
	one := uint32(1)
	base := volumeSpec("v", "v")
	tests := map[string]struct {
		spec nfs.VolumeSpec
		say  string
	}{
		"larger":   {with(base, func(s *nfs.VolumeSpec) { s.MinBytes++ }), "capacity"},
		"smaller":  {with(base, func(s *nfs.VolumeSpec) { s.MinBytes, s.MaxBytes = 1, 2 }), "capacity"},
		"dir":      {with(base, func(s *nfs.VolumeSpec) { s.Dir = "w" }), `"v"`},
		"onDelete": {with(base, func(s *nfs.VolumeSpec) { s.OnDelete = nfs.Retain }), "onDelete"},
		"mode":     {with(base, func(s *nfs.VolumeSpec) { s.Mode = 0o700 }), "mountPermissions"},
		"uid":      {with(base, func(s *nfs.VolumeSpec) { s.UID = &one }), "uid"},
		"gid":      {with(base, func(s *nfs.VolumeSpec) { s.GID = &one }), "gid"},
	}
	dir := t.TempDir()
	s := openStore(t, dir)
	create(t, s, base)
	before := tree(t, dir, nil)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := s.CreateVolume(t.Context(), tt.spec)
			wantError(t, err, nfs.ErrConflict, tt.say)
		})
	}
	if diff := cmp.Diff(before, tree(t, dir, nil)); diff != "" {
		t.Errorf("changed (-before +after):\n%s", diff)
	}
	create(t, s, with(base, func(s *nfs.VolumeSpec) { s.MinBytes, s.MaxBytes = 1, 0 }))
}

// Nothing may be made of, or in, a directory that is not the volume's.
func TestCreateRefused(t *testing.T) {
	outside := t.TempDir()
	mustWrite(t, filepath.Join(outside, "secret"), "s")
	tests := map[string]struct {
		prepare func(t *testing.T, dir string, s *Store)
		dir     string
		want    error
		say     string
	}{
		"directory without a record": {func(t *testing.T, dir string, s *Store) { mustWrite(t, dir+"/data/file", "x") }, "data", nfs.ErrForeign, "no record"},
		"empty directory":            {func(t *testing.T, dir string, s *Store) { mustMkdir(t, dir+"/data") }, "data", nfs.ErrForeign, "no record"},
		"file":                       {func(t *testing.T, dir string, s *Store) { mustWrite(t, dir+"/data", "x") }, "data", nfs.ErrForeign, "file or a symbolic link"},
		"parent is a file":           {func(t *testing.T, dir string, s *Store) { mustWrite(t, dir+"/a", "x") }, "a/b", nfs.ErrForeign, "file or a symbolic link"},
		"symlink out":                {func(t *testing.T, dir string, s *Store) { mustSymlink(t, outside, dir+"/data") }, "data", nfs.ErrForeign, "symbolic link"},
		"dangling symlink":           {func(t *testing.T, dir string, s *Store) { mustSymlink(t, outside+"/new", dir+"/data") }, "data", nfs.ErrForeign, "symbolic link"},
		"parent is a symlink out":    {func(t *testing.T, dir string, s *Store) { mustSymlink(t, outside, dir+"/a") }, "a/b", nfs.ErrForeign, "symbolic link"},
		"parent is a symlink inside": {func(t *testing.T, dir string, s *Store) {
			mustMkdir(t, dir+"/other")
			mustSymlink(t, "other", dir+"/a")
		}, "a/b", nfs.ErrForeign, "symbolic link"},
		"another volume's directory":                 {func(t *testing.T, dir string, s *Store) { create(t, s, volumeSpec("first", "data")) }, "data", nfs.ErrConflict, `"first"`},
		"inside a volume":                            {func(t *testing.T, dir string, s *Store) { create(t, s, volumeSpec("first", "data")) }, "data/in/it", nfs.ErrConflict, `"first"`},
		"around a volume":                            {func(t *testing.T, dir string, s *Store) { create(t, s, volumeSpec("first", "a/b")) }, "a", nfs.ErrForeign, "no record"},
		"another volume's with a name that is no id": {func(t *testing.T, dir string, s *Store) { create(t, s, volumeSpec("First!", "data")) }, "data", nfs.ErrConflict, `"First!"`},
		"claimed, never made": {func(t *testing.T, dir string, s *Store) {
			create(t, s, volumeSpec("first", "other"))
			mustSymlink(t, volumeKey("killed", time.Unix(1, 0)), filepath.Join(dir, ownDir, "dirs", claimName("data")))
		}, "data", nfs.ErrConflict, "has not finished"},
		"own claim, data in the directory": {func(t *testing.T, dir string, s *Store) {
			create(t, s, volumeSpec("first", "other"))
			mustSymlink(t, volumeKey("v", time.Unix(1, 0)), filepath.Join(dir, ownDir, "dirs", claimName("data")))
			mustWrite(t, dir+"/data/file", "x")
		}, "data", nfs.ErrForeign, "no record"},
		"record of another instance": {func(t *testing.T, dir string, s *Store) {
			create(t, openStore(t, dir, func(o *Options) { o.InstanceID = "two" }), volumeSpec("v", "data"))
		}, "data", nfs.ErrForeign, `"two"`},
		"record of another driver": {func(t *testing.T, dir string, s *Store) {
			create(t, openStore(t, dir, func(o *Options) { o.DriverName = "csi.other" }), volumeSpec("v", "data"))
		}, "data", nfs.ErrForeign, `"csi.other"`},
		"directory of the volume is lost": {func(t *testing.T, dir string, s *Store) {
			create(t, s, volumeSpec("v", "data"))
			if err := os.Remove(dir + "/data"); err != nil {
				t.Fatal(err)
			}
		}, "data", nfs.ErrForeign, "data may be lost"},
		"record that cannot be read": {func(t *testing.T, dir string, s *Store) {
			create(t, s, volumeSpec("first", "other"))
			mustWrite(t, filepath.Join(dir, ownDir, "volumes/v.json"), `{"version":1}`)
		}, "data", nfs.ErrForeign, "volumes/v.json"},
		"record of a newer format": {func(t *testing.T, dir string, s *Store) {
			create(t, s, volumeSpec("first", "other"))
			mustWrite(t, filepath.Join(dir, ownDir, "volumes/v.json"), `{"version":2,"new":true}`)
		}, "data", nfs.ErrForeign, "version is 2"},
		"record is a symlink": {func(t *testing.T, dir string, s *Store) {
			create(t, s, volumeSpec("first", "other"))
			mustSymlink(t, outside+"/secret", filepath.Join(dir, ownDir, "volumes/v.json"))
		}, "data", nfs.ErrForeign, "volumes/v.json"},
		"record is a FIFO": {func(t *testing.T, dir string, s *Store) {
			create(t, s, volumeSpec("first", "other"))
			if err := syscall.Mkfifo(filepath.Join(dir, ownDir, "volumes/v.json"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "data", nfs.ErrForeign, "not a regular file"},
		"record is huge": {func(t *testing.T, dir string, s *Store) {
			create(t, s, volumeSpec("first", "other"))
			mustWrite(t, filepath.Join(dir, ownDir, "volumes/v.json"), strings.Repeat(" ", recordLimit+1))
		}, "data", nfs.ErrForeign, "65537 bytes"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir)
			tt.prepare(t, dir, s)
			before, beforeOutside := tree(t, dir, ownOnly), tree(t, outside, nil)
			left := leftovers(t, dir)
			_, err := s.CreateVolume(t.Context(), volumeSpec("v", tt.dir))
			wantError(t, err, tt.want, tt.say)
			if diff := cmp.Diff(before, tree(t, dir, ownOnly)); diff != "" {
				t.Errorf("the export changed (-before +after):\n%s", diff)
			}
			if name != "own claim, data in the directory" { // that claim is given up: it leads nowhere
				if diff := cmp.Diff(left, leftovers(t, dir)); diff != "" {
					t.Errorf("the store's own changed (-before +after):\n%s", diff)
				}
			}
			if diff := cmp.Diff(beforeOutside, tree(t, outside, nil)); diff != "" {
				t.Errorf("outside changed (-before +after):\n%s", diff)
			}
		})
	}
}

// ownOnly leaves the store's own directory out of a tree.
func ownOnly(p string) bool { return p == ownDir }

func TestOwnDirRefused(t *testing.T) {
	outside := t.TempDir()
	mustMkdir(t, outside+"/volumes")
	for name, prepare := range map[string]func(t *testing.T, dir string){
		"symlink": func(t *testing.T, dir string) { mustSymlink(t, outside, dir+"/.nfs-csi") },
		"file":    func(t *testing.T, dir string) { mustWrite(t, dir+"/.nfs-csi", "x") },
		"volumes symlink": func(t *testing.T, dir string) {
			mustMkdir(t, dir+"/.nfs-csi")
			mustSymlink(t, outside, dir+"/.nfs-csi/volumes")
		},
		"trash symlink": func(t *testing.T, dir string) {
			mustMkdir(t, dir+"/.nfs-csi/volumes")
			mustSymlink(t, outside, dir+"/.nfs-csi/trash")
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			prepare(t, dir)
			wantError(t, openError(t, dir, testOptions), nfs.ErrForeign, ".nfs-csi")
		})
	}
	if got := tree(t, outside, nil); len(got) != 2 {
		t.Errorf("outside changed: %v", got)
	}
}

func TestOpenWritesNothing(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	if _, err := s.GetVolume(t.Context(), "v"); !errors.Is(err, nfs.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	if v, err := s.ListVolumes(t.Context(), "", 0); err != nil || len(v) != 0 {
		t.Errorf("list: %v, %v", v, err)
	}
	if err := s.DeleteVolume(t.Context(), "v", ""); err != nil {
		t.Errorf("delete: %v", err)
	}
	if err := s.DeleteVolume(t.Context(), "v", "v"); err != nil {
		t.Errorf("delete with a directory: %v", err)
	}
	if got := tree(t, dir, nil); len(got) != 1 {
		t.Errorf("something was written: %v", got)
	}
}

func TestOptions(t *testing.T) {
	for name, opts := range map[string]Options{
		"no driver":   {},
		"concurrency": {DriverName: "d", PurgeConcurrency: -1},
		"rate":        {DriverName: "d", PurgeRate: -1},
	} {
		t.Run(name, func(t *testing.T) { wantError(t, openError(t, t.TempDir(), opts), nfs.ErrInvalid) })
	}
}

func TestMode(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	for _, mode := range []uint32{0o755, 0o700, 0o777, 0o1777, 0o2775, 0o6755, 0o555, 0o000} {
		t.Run(formatMode(mode), func(t *testing.T) {
			dir := t.TempDir()
			v := create(t, openStore(t, dir), with(volumeSpec("v", "a/v"), func(s *nfs.VolumeSpec) { s.Mode = nfs.FileMode(mode) }))
			st, err := os.Stat(dir + "/a/v")
			if err != nil {
				t.Fatal(err)
			}
			if got := nfs.UnixMode(st.Mode()); got != mode {
				t.Errorf("the mode is %04o, want %04o", got, mode)
			}
			if nfs.UnixMode(v.Mode) != mode {
				t.Errorf("the volume says %v", v.Mode)
			}
		})
	}
}

func TestSetgidParentIsNotInherited(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, fs.ModeSetgid|0o755); err != nil {
		t.Fatal(err)
	}
	create(t, openStore(t, dir), volumeSpec("v", "v"))
	if st, err := os.Stat(dir + "/v"); err != nil || nfs.UnixMode(st.Mode()) != 0o755 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

func TestOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("giving a directory to another user takes root")
	}
	uid, gid := uint32(1234), uint32(4321)
	dir := t.TempDir()
	s := openStore(t, dir)
	v := create(t, s, with(volumeSpec("v", "v"), func(s *nfs.VolumeSpec) { s.UID, s.GID, s.Mode = &uid, &gid, nfs.FileMode(0o6770) }))
	st, err := os.Stat(dir + "/v")
	if err != nil {
		t.Fatal(err)
	}
	sys := st.Sys().(*syscall.Stat_t)
	if sys.Uid != uid || sys.Gid != gid || nfs.UnixMode(st.Mode()) != 0o6770 {
		t.Errorf("owner %d:%d, mode %04o", sys.Uid, sys.Gid, nfs.UnixMode(st.Mode()))
	}
	if got, err := s.GetVolume(t.Context(), "v"); err != nil || *got.UID != uid || *got.GID != gid || !got.Created.Equal(v.Created) {
		t.Errorf("get: %+v, %v", got, err)
	}
	if st, err := os.Stat(dir); err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("the share's owner changed: %v, %v", st, err)
	}
}

func TestCreateWhileDeletedOrStale(t *testing.T) {
	// The store's own directories are removed and made anew behind its back.
	dir := t.TempDir()
	s := openStore(t, dir)
	create(t, s, volumeSpec("v", "v"))
	if err := os.RemoveAll(filepath.Join(dir, ownDir)); err != nil {
		t.Fatal(err)
	}
	_, err := s.GetVolume(t.Context(), "v")
	wantError(t, err, nfs.ErrStale)
	_, err = s.GetVolume(t.Context(), "v")
	wantError(t, err, nfs.ErrNotFound)
	create(t, s, volumeSpec("w", "w"))
}
