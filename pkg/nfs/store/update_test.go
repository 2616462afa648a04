package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func update(t testing.TB, s *Store, id string, change nfs.VolumeChange) nfs.Volume {
	t.Helper()
	v, err := s.UpdateVolume(t.Context(), id, change)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func modeOf(t testing.TB, p string) uint32 {
	t.Helper()
	st, err := os.Lstat(p)
	if err != nil {
		t.Fatal(err)
	}
	return nfs.UnixMode(st.Mode())
}

func TestUpdateVolume(t *testing.T) {
	d := t.TempDir()
	s := openStore(t, d)
	spec := volumeSpec("v", "a/v")
	want := create(t, s, spec)
	for _, step := range []struct {
		name   string
		change nfs.VolumeChange
		apply  func(*nfs.Volume)
		err    error
	}{
		{"nothing", nfs.VolumeChange{}, func(*nfs.Volume) {}, nil},
		{"what it has", nfs.VolumeChange{MinBytes: 1 << 30, OnDelete: new(nfs.Delete)}, func(*nfs.Volume) {}, nil},
		{"larger", nfs.VolumeChange{MinBytes: 2 << 30, MaxBytes: 2 << 30}, func(v *nfs.Volume) { v.CapacityBytes = 2 << 30 }, nil},
		{"again", nfs.VolumeChange{MinBytes: 2 << 30}, func(*nfs.Volume) {}, nil},
		{"never smaller", nfs.VolumeChange{MinBytes: 1}, func(*nfs.Volume) {}, nil},
		{"above the limit", nfs.VolumeChange{MinBytes: 1, MaxBytes: 1 << 30}, func(*nfs.Volume) {}, nfs.ErrOutOfRange},
		{"mode", nfs.VolumeChange{Mode: new(nfs.FileMode(0o2770))}, func(v *nfs.Volume) { v.Mode = nfs.FileMode(0o2770) }, nil},
		{"onDelete", nfs.VolumeChange{OnDelete: new(nfs.Archive)}, func(v *nfs.Volume) { v.OnDelete = nfs.Archive }, nil},
		{"retention", nfs.VolumeChange{ArchiveRetention: new(36 * time.Hour)}, func(v *nfs.Volume) { v.ArchiveRetention = 36 * time.Hour }, nil},
		{"all", nfs.VolumeChange{MinBytes: 3 << 30, OnDelete: new(nfs.Retain), Mode: new(fs.FileMode(0o700))},
			func(v *nfs.Volume) {
				v.CapacityBytes, v.OnDelete, v.ArchiveRetention, v.Mode = 3<<30, nfs.Retain, 0, 0o700
			}, nil},
		{"not a mode", nfs.VolumeChange{Mode: new(fs.ModeDir)}, func(*nfs.Volume) {}, nfs.ErrInvalid},
		{"not an onDelete", nfs.VolumeChange{OnDelete: new(nfs.OnDelete("burn"))}, func(*nfs.Volume) {}, nfs.ErrInvalid},
		{"retention of nothing", nfs.VolumeChange{ArchiveRetention: new(time.Hour)}, func(*nfs.Volume) {}, nfs.ErrInvalid},
		{"negative retention", nfs.VolumeChange{OnDelete: new(nfs.Archive), ArchiveRetention: new(-time.Hour)}, func(*nfs.Volume) {}, nfs.ErrInvalid},
		{"negative", nfs.VolumeChange{MinBytes: -1}, func(*nfs.Volume) {}, nfs.ErrInvalid},
	} {
		t.Run(step.name, func(t *testing.T) {
			step.apply(&want)
			got, err := s.UpdateVolume(t.Context(), "v", step.change)
			wantError(t, err, step.err)
			if diff := cmp.Diff(want, got); err == nil && diff != "" {
				t.Errorf("updated (-want +got):\n%s", diff)
			}
			if modeOf(t, d+"/a/v") != nfs.UnixMode(want.Mode) {
				t.Errorf("the directory has mode %o", modeOf(t, d+"/a/v"))
			}
			// What others see: another process, a listing, the create that made it.
			other := openStore(t, d)
			read, err := other.GetVolume(t.Context(), "v")
			if diff := cmp.Diff(want, read); err != nil || diff != "" {
				t.Errorf("get: %v (-want +got):\n%s", err, diff)
			}
			list, err := other.ListVolumes(t.Context(), "", 0)
			if diff := cmp.Diff([]nfs.Volume{want}, list); err != nil || diff != "" {
				t.Errorf("list: %v (-want +got):\n%s", err, diff)
			}
			asIs := with(spec, func(s *nfs.VolumeSpec) {
				s.OnDelete, s.ArchiveRetention, s.Mode = want.OnDelete, want.ArchiveRetention, want.Mode
			})
			if diff := cmp.Diff(want, create(t, other, asIs)); diff != "" {
				t.Errorf("created again (-want +got):\n%s", diff)
			}
			consistent(t, d)
		})
	}
	_, err := s.CreateVolume(t.Context(), spec)
	wantError(t, err, nfs.ErrConflict)
}

func TestUpdateRefused(t *testing.T) {
	d := t.TempDir()
	s := openStore(t, d)
	grow := nfs.VolumeChange{MinBytes: 2 << 30}
	_, err := s.UpdateVolume(t.Context(), "v", grow)
	wantError(t, err, nfs.ErrNotFound)
	if exists(filepath.Join(d, ownDir)) {
		t.Error("an update of nothing has written something")
	}
	create(t, s, volumeSpec("v", "v"))
	_, err = s.UpdateVolume(t.Context(), "w", grow)
	wantError(t, err, nfs.ErrNotFound, `"w"`)
	_, err = s.UpdateVolume(t.Context(), "../v", grow)
	wantError(t, err, nfs.ErrInvalid)
	_, err = openStore(t, d, func(o *Options) { o.InstanceID = "two" }).UpdateVolume(t.Context(), "v", grow)
	wantError(t, err, nfs.ErrForeign, "two")

	// Its directory is missing, or is something else.
	before := tree(t, filepath.Join(d, ownDir), nil)
	if err := os.Rename(d+"/v", d+"/elsewhere"); err != nil {
		t.Fatal(err)
	}
	_, err = s.UpdateVolume(t.Context(), "v", grow)
	wantError(t, err, nfs.ErrForeign, "missing", `"v"`)
	mustSymlink(t, "elsewhere", d+"/v")
	mode := fs.FileMode(0o777)
	_, err = s.UpdateVolume(t.Context(), "v", nfs.VolumeChange{Mode: &mode})
	wantError(t, err, nfs.ErrForeign, "symbolic link", `"v"`)
	if got := modeOf(t, d+"/elsewhere"); got != 0o755 {
		t.Errorf("the link's target has mode %o", got)
	}
	if diff := cmp.Diff(before, tree(t, filepath.Join(d, ownDir), nil)); diff != "" {
		t.Errorf("refused, and changed (-before +after):\n%s", diff)
	}
}

// What the change does not name is not touched, whoever has changed it.
func TestUpdateSparesWhatIsNotNamed(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("giving directories away takes root")
	}
	d := t.TempDir()
	s := openStore(t, d)
	one := uint32(1)
	create(t, s, with(volumeSpec("v", "v"), func(s *nfs.VolumeSpec) { s.UID, s.GID = &one, &one }))
	owner := func() string {
		st, err := os.Lstat(d + "/v")
		if err != nil {
			t.Fatal(err)
		}
		sys := st.Sys().(*syscall.Stat_t)
		return fmt.Sprintf("%d:%d %o", sys.Uid, sys.Gid, nfs.UnixMode(st.Mode()))
	}
	// As the kubelet does for a pod's fsGroup.
	if err := errors.Join(os.Chown(d+"/v", 1, 2000), os.Chmod(d+"/v", fs.ModeSetgid|0o775)); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		change nfs.VolumeChange
		want   string
	}{
		{nfs.VolumeChange{MinBytes: 2 << 30, OnDelete: new(nfs.Retain)}, "1:2000 2775"},
		{nfs.VolumeChange{UID: new(uint32(4711))}, "4711:2000 2775"},
		{nfs.VolumeChange{Mode: new(fs.FileMode(0o700))}, "4711:2000 700"},
		{nfs.VolumeChange{GID: new(uint32(0))}, "4711:0 700"},
		{nfs.VolumeChange{UID: new(uint32(5)), GID: new(uint32(6)), Mode: new(nfs.FileMode(0o6711))}, "5:6 6711"},
	} {
		update(t, s, "v", step.change)
		if got := owner(); got != step.want {
			t.Errorf("%+v: the directory is %s, want %s", step.change, got, step.want)
		}
	}
	// It holds what was asked for before, and the directory lost it since.
	if err := os.Chown(d+"/v", 0, 0); err != nil {
		t.Fatal(err)
	}
	if update(t, s, "v", nfs.VolumeChange{UID: new(uint32(5))}); owner() != "5:0 6711" {
		t.Errorf("again: %s", owner())
	}
}

// A volume is deleted as it was changed to be, and nothing of the change stays.
func TestDeleteAfterUpdate(t *testing.T) {
	t.Parallel()
	for _, from := range []nfs.OnDelete{nfs.Delete, nfs.Retain, nfs.Archive} {
		for _, to := range []nfs.OnDelete{nfs.Delete, nfs.Retain, nfs.Archive} {
			t.Run(string(from)+":"+string(to), func(t *testing.T) {
				d := t.TempDir()
				s := openStore(t, d)
				spec := with(volumeSpec("pvc-1", "a/pvc-1"), func(s *nfs.VolumeSpec) { s.OnDelete = from })
				create(t, s, spec)
				mustWrite(t, d+"/a/pvc-1/sub/file", "data")
				change := nfs.VolumeChange{MinBytes: 2 << 30, OnDelete: &to}
				if to == nfs.Archive {
					change.ArchiveRetention = new(time.Hour)
				}
				update(t, openStore(t, d), "pvc-1", change)
				remove(t, s, "pvc-1")
				waitPurged(t, d)
				spec.OnDelete = to
				checkDeleted(t, s, d, spec, nil)
				if to != nfs.Archive {
					return
				}
				names, err := filepath.Glob(filepath.Join(d, ownDir, "archive/*"))
				if err != nil || len(names) != 1 {
					t.Fatalf("archives: %v, %v", names, err)
				}
				data, err := os.ReadFile(names[0])
				if err != nil {
					t.Fatal(err)
				}
				if a, err := decodeArchive(names[0], data); err != nil || a.Volume.CapacityBytes != 2<<30 || a.Volume.ArchiveRetention != "1h0m0s" {
					t.Errorf("the archive's record: %+v, %v", a, err)
				}
			})
		}
	}
}

// A volume of the same name has nothing of the changes of one that was deleted.
func TestChangesAreOfOneVolume(t *testing.T) {
	d := t.TempDir()
	s := openStore(t, d, withGrace)
	want := create(t, s, volumeSpec("v", "v"))
	update(t, s, "v", nfs.VolumeChange{MinBytes: 2 << 30})
	s.purge.stop() // the changes of the first stay
	if err := s.DeleteVolume(t.Context(), "v", ""); err != nil {
		t.Fatal(err)
	}
	got := create(t, s, volumeSpec("v", "v"))
	if want.Created = got.Created; !cmp.Equal(want, got) {
		t.Errorf("made again: %+v", got)
	}
	update(t, s, "v", nfs.VolumeChange{OnDelete: new(nfs.Retain)})
	startPurger(t.Context(), s)
	waitPurged(t, d)
	if got, err := s.GetVolume(t.Context(), "v"); err != nil || got.CapacityBytes != 1<<30 || got.OnDelete != nfs.Retain {
		t.Errorf("after the purge of the first: %+v, %v", got, err)
	}
	consistent(t, d)
}
