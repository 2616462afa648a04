package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func TestDeleteIsIdempotent(t *testing.T) {
	for _, onDelete := range []nfs.OnDelete{nfs.Delete, nfs.Retain, nfs.Archive} {
		t.Run(string(onDelete), func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir)
			create(t, s, with(volumeSpec("v", "a/b"), func(s *nfs.VolumeSpec) { s.OnDelete = onDelete }))
			for range 3 {
				remove(t, s, "v")
			}
			if err := s.DeleteVolume(t.Context(), "never-there", "no/such/dir"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDeleteWithoutItsDirectory(t *testing.T) {
	for _, onDelete := range []nfs.OnDelete{nfs.Delete, nfs.Archive} {
		for _, gone := range []string{"a/b/v", "a/b", "a"} {
			t.Run(fmt.Sprintf("%s:%d", onDelete, strings.Count(gone, "/")), func(t *testing.T) {
				dir := t.TempDir()
				s := openStore(t, dir)
				create(t, s, with(volumeSpec("v", "a/b/v"), func(s *nfs.VolumeSpec) { s.OnDelete = onDelete }))
				if err := os.RemoveAll(filepath.Join(dir, gone)); err != nil {
					t.Fatal(err)
				}
				remove(t, s, "v")
				waitPurged(t, dir)
				if left := leftovers(t, dir); len(left) != 0 || exists(dir+"/a") {
					t.Errorf("left: %v, parent: %v", left, exists(dir+"/a"))
				}
			})
		}
	}
}

func TestDeleteRemovesOnlyParentsItMade(t *testing.T) {
	dir := t.TempDir()
	mustMkdir(t, dir+"/theirs")
	s := openStore(t, dir)
	create(t, s, volumeSpec("v", "theirs/ours/too/v"))
	create(t, s, volumeSpec("w", "theirs/ours/w"))
	remove(t, s, "v")
	if exists(dir+"/theirs/ours/too") || !exists(dir+"/theirs/ours/w") {
		t.Error("after the first delete")
	}
	remove(t, s, "w") // "ours" was made for v, and stays
	if !exists(dir + "/theirs/ours") {
		t.Error("after the second delete")
	}
}

func TestDeleteRefused(t *testing.T) {
	outside := t.TempDir()
	mustWrite(t, outside+"/secret", "s")
	tests := map[string]struct {
		prepare func(t *testing.T, dir string, s *Store)
		id, dir string
		want    error
		say     string
	}{
		"directory without a record": {func(t *testing.T, dir string, s *Store) { mustWrite(t, dir+"/data/f", "x") }, "v", "data", nfs.ErrForeign, "no record"},
		"symlink without a record":   {func(t *testing.T, dir string, s *Store) { mustSymlink(t, outside, dir+"/data") }, "v", "data", nfs.ErrForeign, "no record"},
		"another volume's directory": {func(t *testing.T, dir string, s *Store) { create(t, s, volumeSpec("w", "data")) }, "v", "data", nfs.ErrForeign, "no record"},
		"another instance": {func(t *testing.T, dir string, s *Store) {
			create(t, openStore(t, dir, func(o *Options) { o.InstanceID = "two" }), volumeSpec("v", "data"))
		}, "v", "", nfs.ErrForeign, `"two"`},
		"another driver": {func(t *testing.T, dir string, s *Store) {
			create(t, openStore(t, dir, func(o *Options) { o.DriverName = "other" }), volumeSpec("v", "data"))
		}, "v", "", nfs.ErrForeign, `"other"`},
		"unreadable record": {func(t *testing.T, dir string, s *Store) {
			create(t, s, volumeSpec("v", "data"))
			mustWrite(t, dir+"/.nfs-csi/volumes/v.json", "{")
		}, "v", "", nfs.ErrForeign, "volumes/v.json"},
		"directory became a symlink": {func(t *testing.T, dir string, s *Store) {
			create(t, s, volumeSpec("v", "data"))
			if err := os.Remove(dir + "/data"); err != nil {
				t.Fatal(err)
			}
			mustSymlink(t, outside, dir+"/data")
		}, "v", "", nfs.ErrForeign, "symbolic link"},
		"parent became a symlink": {func(t *testing.T, dir string, s *Store) {
			create(t, s, volumeSpec("v", "a/data"))
			mustMkdir(t, dir+"/b/data")
			if err := os.RemoveAll(dir + "/a"); err != nil {
				t.Fatal(err)
			}
			mustSymlink(t, "b", dir+"/a")
		}, "v", "", nfs.ErrForeign, "symbolic link"},
		"bad id":  {func(t *testing.T, dir string, s *Store) {}, "../volumes/v", "", nfs.ErrInvalid, ""},
		"bad dir": {func(t *testing.T, dir string, s *Store) {}, "v", "../x", nfs.ErrInvalid, ""},
		"share":   {func(t *testing.T, dir string, s *Store) {}, "v", ".", nfs.ErrInvalid, ""},
		"own dir": {func(t *testing.T, dir string, s *Store) {}, "v", ".nfs-csi", nfs.ErrInvalid, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir)
			tt.prepare(t, dir, s)
			before, beforeOutside := tree(t, dir, nil), tree(t, outside, nil)
			wantError(t, s.DeleteVolume(t.Context(), tt.id, tt.dir), tt.want, tt.say)
			if diff := cmp.Diff(before, tree(t, dir, nil)); diff != "" {
				t.Errorf("the export changed (-before +after):\n%s", diff)
			}
			if diff := cmp.Diff(beforeOutside, tree(t, outside, nil)); diff != "" {
				t.Errorf("outside changed (-before +after):\n%s", diff)
			}
		})
	}
}

// A claim that names another volume says that the directory is not this one's.
func TestDeleteLeavesAnotherVolumesDirectory(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	create(t, s, volumeSpec("v", "data"))
	mustWrite(t, dir+"/data/file", "w's")
	claim := filepath.Join(dir, ownDir, "dirs", claimName("data"))
	if err := os.Remove(claim); err != nil {
		t.Fatal(err)
	}
	w := volumeKey("w", time.Unix(1, 0))
	mustSymlink(t, w, claim)
	remove(t, s, "v")
	waitPurged(t, dir)
	if owner, err := os.Readlink(claim); err != nil || owner != w || !exists(dir+"/data/file") {
		t.Errorf("claim %q, %v; file there: %v", owner, err, exists(dir+"/data/file"))
	}
}

func TestDeleteDropsTheClaimOfAKilledCreate(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	create(t, s, volumeSpec("w", "w"))
	claim := filepath.Join(dir, ownDir, "dirs", claimName("data"))
	mustSymlink(t, volumeKey("v", time.Unix(1, 0)), claim)
	if err := s.DeleteVolume(t.Context(), "u", "data"); err != nil || !exists(claim) {
		t.Errorf("another volume's delete: %v, claim there: %v", err, exists(claim))
	}
	if err := s.DeleteVolume(t.Context(), "v", "data"); err != nil || exists(claim) {
		t.Errorf("its own delete: %v, claim there: %v", err, exists(claim))
	}
}

func TestArchive(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	base := strings.Repeat("ü", 120) + "x"
	spec := with(volumeSpec("v", "a/"+base), func(s *nfs.VolumeSpec) { s.OnDelete = nfs.Archive })
	const times = 4
	for n := range times {
		create(t, s, spec)
		mustWrite(t, filepath.Join(dir, spec.Dir, "file"), fmt.Sprint(n))
		remove(t, s, "v")
		remove(t, s, "v")
	}
	waitPurged(t, dir)
	entries, err := os.ReadDir(dir + "/a")
	if err != nil || len(entries) != times {
		t.Fatalf("archives: %v, %v", entries, err)
	}
	targets := map[string]bool{}
	for n, e := range entries { // their names sort by time
		if !utf8.ValidString(e.Name()) || len(e.Name()) > maxName || !strings.HasPrefix(e.Name(), "archived-üü") {
			t.Errorf("name %q", e.Name())
		}
		if data, err := os.ReadFile(filepath.Join(dir, "a", e.Name(), "file")); err != nil || string(data) != fmt.Sprint(n) {
			t.Errorf("archive %d holds %q, %v", n, data, err)
		}
		targets[e.Name()] = true
	}
	records := leftovers(t, dir)
	if len(records) != times {
		t.Fatalf("left: %v", records)
	}
	for _, name := range records {
		data, err := os.ReadFile(filepath.Join(dir, ownDir, name))
		if err != nil {
			t.Fatal(err)
		}
		a, err := decodeArchive(name, data)
		if err != nil || !targets[a.Target] || a.Volume.Dir != spec.Dir {
			t.Errorf("archive record %s: %+v, %v", name, a, err)
		}
		delete(targets, a.Target)
	}
}

func TestArchiveName(t *testing.T) {
	now := time.Date(2026, 7, 8, 9, 10, 11, 121314000, time.FixedZone("x", 3600)).UTC()
	if got, want := archiveName("data", "pvc-1", now), "archived-data-20260708T081011.121314Z-pvc-1"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, base := range []string{strings.Repeat("x", 255), strings.Repeat("🙂", 63) + "abc"} {
		got := archiveName(base, strings.Repeat("i", 63), now)
		if len(got) > maxName || len(got) < maxName-3 || !utf8.ValidString(got) {
			t.Errorf("%d bytes: %q", len(got), got)
		}
	}
}

// An archive that exists is never replaced, not even when the directory comes back.
func TestArchiveIsNotReplaced(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	create(t, s, with(volumeSpec("v", "v"), func(s *nfs.VolumeSpec) { s.OnDelete = nfs.Archive }))
	mustWrite(t, dir+"/v/file", "data")
	// Someone brings back the record and the directory, but leaves the archive.
	record := filepath.Join(dir, ownDir, "volumes/v.json")
	copyOf, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	claim := filepath.Join(dir, ownDir, "dirs", claimName("v"))
	remove(t, s, "v")
	waitPurged(t, dir)
	if err := os.WriteFile(record, copyOf, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := decodeRecord(record, copyOf)
	if err != nil {
		t.Fatal(err)
	}
	mustSymlink(t, r.key(), claim)
	mustWrite(t, dir+"/v/file", "brought back")
	before := tree(t, dir, nil)
	wantError(t, s.DeleteVolume(t.Context(), "v", ""), nfs.ErrBusy, "exists already")
	if diff := cmp.Diff(before, tree(t, dir, func(p string) bool { return strings.HasPrefix(p, ownDir+"/work/") })); diff != "" {
		t.Errorf("changed (-before +after):\n%s", diff)
	}
}

// withGrace makes a store leave alone, as it must, what another has just put in
// the trash: a pointer comes before the tree that it points to.
func withGrace(o *Options) { o.purgeGrace = 0 }

// The trash is on another file system of the server than the volume.
func TestDeleteAcrossFileSystems(t *testing.T) {
	// The hook of the first store refuses every rename of a directory, that of
	// the second only the first one.
	exdev := func(o *Options) {
		o.hook = func(ctx context.Context, op, p string) error {
			if op == "rename" && !strings.HasPrefix(p, ownDir) && ctx.Value(foregroundKey{}) != nil {
				return unix.EXDEV
			}
			return nil
		}
	}
	for _, dir := range []string{"v", "a/v"} {
		t.Run(strings.ReplaceAll(dir, "/", ":"), func(t *testing.T) {
			d := t.TempDir()
			create(t, openStore(t, d, withGrace), volumeSpec("v", dir))
			mustWrite(t, filepath.Join(d, dir, "sub/file"), "data")
			ctx := context.WithValue(t.Context(), foregroundKey{}, true)

			err := openStore(t, d, withGrace, exdev).DeleteVolume(ctx, "v", "")
			if !errors.Is(err, unix.EXDEV) {
				t.Fatal(err)
			}
			waitPurged(t, d)
			create(t, openStore(t, d, withGrace), volumeSpec("v", dir))
			mustWrite(t, filepath.Join(d, dir, "sub/file"), "data")
			renames := 0
			s := openStore(t, d, func(o *Options) {
				o.hook = func(ctx context.Context, op, p string) error {
					if op != "rename" || strings.HasPrefix(p, ownDir) || ctx.Value(foregroundKey{}) == nil {
						return nil
					}
					if renames++; renames == 1 {
						return unix.EXDEV
					}
					return nil
				}
			})
			if err := s.DeleteVolume(ctx, "v", ""); err != nil {
				t.Fatal(err)
			}
			waitPurged(t, d)
			entries, err := os.ReadDir(d)
			if err != nil || len(entries) != 1 && dir == "v" {
				t.Errorf("left: %v, %v", entries, err)
			}
			if left := leftovers(t, d); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// Killed at any operation of such a delete, the hidden directory is found again.
func TestKillDeleteAcrossFileSystems(t *testing.T) {
	eachOperation(t, func(t *testing.T, n int) bool {
		d := t.TempDir()
		create(t, openStore(t, d, withGrace), volumeSpec("v", "a/v"))
		mustWrite(t, filepath.Join(d, "a/v/sub/file"), "data")
		exdevFirst := func(o *Options) {
			next, renames := o.hook, 0
			o.hook = func(ctx context.Context, op, p string) error {
				if next != nil {
					if err := next(ctx, op, p); err != nil {
						return err
					}
				}
				if op == "rename" && p == "a/v" && ctx.Value(foregroundKey{}) != nil {
					if renames++; renames == 1 {
						return unix.EXDEV
					}
				}
				return nil
			}
		}
		died := dieAt(t, d, n, func(ctx context.Context, s *Store) { _ = s.DeleteVolume(ctx, "v", "") }, exdevFirst)
		ctx := context.WithValue(t.Context(), foregroundKey{}, true)
		if err := openStore(t, d, exdevFirst).DeleteVolume(ctx, "v", ""); err != nil {
			t.Fatal(err)
		}
		waitPurged(t, d)
		// Documented: the parent, not empty when the record went, may stay.
		if left := leftovers(t, d); len(left) != 0 || exists(d+"/a") && !died {
			t.Errorf("left: %v, the parent: %v", left, exists(d+"/a"))
		}
		if entries, err := os.ReadDir(d + "/a"); len(entries) != 0 {
			t.Errorf("in the parent: %v, %v", entries, err)
		}
		return died
	})
}
