package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func TestChangeName(t *testing.T) {
	for _, n := range []uint64{1, 9, 10, 1<<64 - 1} {
		if got, ok := parseChangeName(changeName(n)); !ok || got != n {
			t.Errorf("%d is called %q, and that is %d, %v", n, changeName(n), got, ok)
		}
	}
	for _, name := range []string{"", ".json", "0.json", "01.json", "+1.json", "1", "1.json.json", "18446744073709551616.json", "x.json"} {
		if n, ok := parseChangeName(name); ok {
			t.Errorf("%q gives %d", name, n)
		}
	}
}

func changesDir(t testing.TB, d string) string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(d, ownDir, "changes/*"))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("changes: %v, %v", dirs, err)
	}
	return dirs[0]
}

// Changes that cannot be read are not passed over: onDelete is one of them.
func TestChangesDamaged(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"newer":    func(t *testing.T, dir string) { mustWrite(t, dir+"/v2-everything-else", "x") },
		"cut":      func(t *testing.T, dir string) { mustWrite(t, dir+"/7.json", `{"version": 1,`) },
		"a record": func(t *testing.T, dir string) { copyFile(t, dir+"/../../volumes/w.json", dir+"/2.json") },
		"a file":   func(t *testing.T, dir string) { removeAll(t, dir); mustWrite(t, dir, "x") },
		"a link":   func(t *testing.T, dir string) { removeAll(t, dir); mustSymlink(t, "../volumes", dir) },
		"one more": func(t *testing.T, dir string) { mustMkdir(t, dir+"/2.json") },
	} {
		t.Run(name, func(t *testing.T) {
			d := t.TempDir()
			s := openStore(t, d)
			create(t, s, volumeSpec("v", "v"))
			create(t, s, volumeSpec("w", "w"))
			update(t, s, "v", nfs.VolumeChange{OnDelete: new(nfs.Retain)})
			damage(t, changesDir(t, d))
			_, err := s.GetVolume(t.Context(), "v")
			wantError(t, err, nfs.ErrForeign, ownDir+"/changes/v-")
			wantError(t, s.DeleteVolume(t.Context(), "v", ""), nfs.ErrForeign)
			_, err = s.UpdateVolume(t.Context(), "v", nfs.VolumeChange{MinBytes: 2 << 30})
			wantError(t, err, nfs.ErrForeign)
			if list, err := s.ListVolumes(t.Context(), "", 0); err != nil || len(list) != 1 || s.Backlog().SkippedRecords != 1 {
				t.Errorf("list: %v, %v, %+v", list, err, s.Backlog())
			}
			if !exists(d + "/v") {
				t.Error("the directory is gone")
			}
		})
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, to, string(data))
}

func removeAll(t testing.TB, p string) {
	t.Helper()
	if err := os.RemoveAll(p); err != nil {
		t.Fatal(err)
	}
}

// However often a volume is changed, only what readers may need is kept.
func TestChangesAreFew(t *testing.T) {
	d := t.TempDir()
	s := openStore(t, d)
	create(t, s, volumeSpec("v", "v"))
	for n := range int64(20) {
		update(t, s, "v", nfs.VolumeChange{MinBytes: (n + 2) << 30})
	}
	// What the NFS client leaves of a file that is open somewhere when it is removed.
	mustWrite(t, changesDir(t, d)+"/.nfs00000000000004d200000001", "x")
	var names []string
	entries, err := os.ReadDir(changesDir(t, d))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if diff := cmp.Diff([]string{".nfs00000000000004d200000001", "19.json", "20.json"}, names); err != nil || diff != "" {
		t.Errorf("%v, (-want +got):\n%s", err, diff)
	}
	if v, err := s.GetVolume(t.Context(), "v"); err != nil || v.CapacityBytes != 21<<30 {
		t.Errorf("%+v, %v", v, err)
	}
	remove(t, s, "v")
	waitPurged(t, d)
	if left := leftovers(t, d); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A reader whose list of the changes is out of date reads the directory again.
func TestChangesGoWhileTheyAreRead(t *testing.T) {
	d := t.TempDir()
	other := openStore(t, d)
	create(t, other, volumeSpec("v", "v"))
	update(t, other, "v", nfs.VolumeChange{MinBytes: 2 << 30})
	changed := 0
	s := openStore(t, d, func(o *Options) {
		o.hook = func(_ context.Context, op, p string) error {
			if op == "read" && strings.Contains(p, "/changes/") && changed < 3 {
				changed++
				for range 2 {
					v, err := other.GetVolume(t.Context(), "v")
					if err == nil {
						_, err = other.UpdateVolume(t.Context(), "v", nfs.VolumeChange{MinBytes: v.CapacityBytes + 1<<30})
					}
					if err != nil {
						return fmt.Errorf("the other process: %w", err)
					}
				}
			}
			return nil
		}
	})
	if v, err := s.GetVolume(t.Context(), "v"); err != nil || v.CapacityBytes != 8<<30 || changed != 3 {
		t.Errorf("%+v, %v, after %d changes", v, err, changed)
	}
}

// On file systems without hard links records are symbolic links, which have no
// modes to mark.
func TestChangesWithoutHardLinks(t *testing.T) {
	d := t.TempDir()
	s := openStore(t, d, func(o *Options) {
		o.hook = func(_ context.Context, op, _ string) error {
			if op == "link" {
				return unix.EPERM
			}
			return nil
		}
	})
	create(t, s, volumeSpec("v", "a/v"))
	update(t, s, "v", nfs.VolumeChange{MinBytes: 2 << 30})
	want := update(t, s, "v", nfs.VolumeChange{OnDelete: new(nfs.Archive)})
	if got, err := openStore(t, d).GetVolume(t.Context(), "v"); err != nil || !cmp.Equal(want, got) || got.CapacityBytes != 2<<30 {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	remove(t, s, "v")
	waitPurged(t, d)
	if left := leftovers(t, d); len(left) != 1 || !strings.HasPrefix(left[0], "archive/v-") {
		t.Errorf("left: %v", left)
	}
}
