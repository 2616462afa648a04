package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func TestMain(m *testing.M) {
	if childMain() {
		return
	}
	goleak.VerifyTestMain(m)
}

var testOptions = Options{DriverName: "csi.test", InstanceID: "one", purgeGrace: -1, noYield: true}

// openStore opens a store on dir for the length of the test.
func openStore(t testing.TB, dir string, change ...func(*Options)) *Store {
	t.Helper()
	opts := testOptions
	for _, c := range change {
		c(&opts)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), root, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := root.Close(); err != nil {
			t.Errorf("close the root: %v", err)
		}
	})
	return s
}

// memDir is t.TempDir in memory, for tests that do something small again and again and
// would spend their time on waiting for a disk. Where TMPDIR asks for a file system,
// or there is none in memory, it is just that.
func memDir(t testing.TB) string {
	t.Helper()
	const memory, enough = "/dev/shm", 256 << 20
	var st unix.Statfs_t
	if err := unix.Statfs(memory, &st); err != nil || st.Type != unix.TMPFS_MAGIC || st.Bavail*uint64(st.Bsize) < enough || os.Getenv("TMPDIR") != "" {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(memory, "store-test-") //nolint:usetesting // which makes it on the disk
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// openError opens a store that must not open.
func openError(t *testing.T, dir string, opts Options) error {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	s, err := Open(t.Context(), root, opts)
	if err == nil {
		s.Close()
		t.Fatal("the store opened")
	}
	return err
}

func volumeSpec(name, dir string) nfs.VolumeSpec {
	return nfs.VolumeSpec{Name: name, Dir: dir, MinBytes: 1 << 30, OnDelete: nfs.Delete, Mode: nfs.DefaultMode,
		Claim: nfs.Claim{Namespace: "ns", Name: "pvc"}}
}

func with(spec nfs.VolumeSpec, change func(*nfs.VolumeSpec)) nfs.VolumeSpec {
	change(&spec)
	return spec
}

func create(t testing.TB, s *Store, spec nfs.VolumeSpec) nfs.Volume {
	t.Helper()
	v, err := s.CreateVolume(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func remove(t testing.TB, s *Store, id string) {
	t.Helper()
	if err := s.DeleteVolume(t.Context(), id, ""); err != nil {
		t.Fatal(err)
	}
	// What the purge does before long.
	for _, name := range s.purge.entriesFor(id) {
		if err := s.purge.complete(t.Context(), s.current(), name); err != nil && !errors.Is(err, errTakenOver) {
			t.Fatal(err)
		}
	}
}

// tree describes everything beneath dir: path, mode, and content or link text.
// Paths for which skip is true are left out, with what is beneath them.
func tree(t testing.TB, dir string, skip func(p string) bool) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		if skip != nil && skip(rel) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s %v", rel, st.Mode())
		switch {
		case st.Mode()&fs.ModeSymlink != 0:
			text, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + text
		case st.Mode().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q %v", data, st.ModTime().UnixNano())
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// leftovers returns what the store keeps of its own on the export.
func leftovers(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	for _, sub := range []string{"volumes", "changes", "dirs", "archive", "snapshots", "trash", "work"} {
		entries, err := os.ReadDir(filepath.Join(dir, ownDir, sub))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			if sub != "trash" || !isSlotName(e.Name()) {
				out = append(out, sub+"/"+e.Name())
			}
		}
	}
	return append(out, inTrash(t, dir)...)
}

// inTrash returns what is in the slots of the trash.
func inTrash(t testing.TB, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, ownDir, "trash/*/*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// waitPurged waits until the trash is empty.
func waitPurged(t testing.TB, dir string) {
	t.Helper()
	waitFor(t, "the trash to be empty", func() (bool, string) {
		// Twice: an entry may move from one slot to another meanwhile.
		left := append(inTrash(t, dir), inTrash(t, dir)...)
		return len(left) == 0, fmt.Sprint(left)
	})
}

func waitFor(t testing.TB, what string, done func() (bool, string)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, seen := done()
		if ok {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s; seen last: %s", what, seen)
		case <-tick.C:
		}
	}
}

func mustWrite(t testing.TB, p, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mustMkdir(t testing.TB, p string) {
	t.Helper()
	if err := os.MkdirAll(p, 0o755); err != nil {
		t.Fatal(err)
	}
}

func mustSymlink(t testing.TB, text, p string) {
	t.Helper()
	if err := os.Symlink(text, p); err != nil {
		t.Fatal(err)
	}
}

func exists(p string) bool {
	_, err := os.Lstat(p)
	return err == nil
}

func wantError(t *testing.T, err, want error, texts ...string) {
	t.Helper()
	if want == nil {
		if err != nil {
			t.Fatalf("got %v, want no error", err)
		}
		return
	}
	matches := 0
	for _, s := range nfs.Sentinels() {
		if errors.Is(err, s) {
			matches++
		}
	}
	if !errors.Is(err, want) || matches != 1 {
		t.Fatalf("got %v (which wraps %d sentinels), want %v alone", err, matches, want)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Fatalf("%q does not say %q", err, text)
		}
	}
}

func whileBusy(f func() error) error {
	for {
		if err := f(); !errors.Is(err, nfs.ErrBusy) {
			return err
		}
	}
}

// consistent checks the invariants of an export on which nothing is under way:
// each record has its directory and its claim, each claim its record, changes are those
// of a volume, and no volume lies in another.
func consistent(t testing.TB, dir string) {
	t.Helper()
	dirs, changed, groups := map[string]string{}, map[string]bool{}, map[string]string{}
	names, err := filepath.Glob(filepath.Join(dir, ownDir, "volumes", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		r, err := decodeRecord(name, data)
		if err != nil {
			t.Error(err)
			continue
		}
		if other := dirs[r.Dir]; other != "" && (r.Shared == "" || groups[r.Dir] != r.Shared) {
			t.Errorf("%q belongs to %q and %q", r.Dir, r.ID, other)
		}
		dirs[r.Dir], changed[volumeKey(r.ID, r.Changed)] = r.ID, true
		if r.Shared != "" {
			groups[r.Dir] = r.Shared
			if !exists(filepath.Join(dir, sharedDir, r.Shared, r.key())) {
				t.Errorf("%q has no reference in its group", r.ID)
			}
		}
		if st, err := os.Lstat(filepath.Join(dir, r.Dir)); err != nil || !st.IsDir() {
			t.Errorf("the directory of %q: %v", r.ID, err)
		}
		if owner, err := os.Readlink(filepath.Join(dir, ownDir, "dirs", claimName(r.Dir))); err != nil || owner != r.claim() {
			t.Errorf("the claim of %q: %q, %v", r.ID, owner, err)
		}
	}
	for d, id := range dirs {
		for p := parentOf(d); p != ""; p = parentOf(p) {
			if dirs[p] != "" {
				t.Errorf("%q at %q lies in %q", id, d, dirs[p])
			}
		}
	}
	changes, err := filepath.Glob(filepath.Join(dir, ownDir, "changes", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range changes {
		// The last and the one before that.
		entries, err := os.ReadDir(name)
		if err != nil || len(entries) > 2 || !changed[filepath.Base(name)] {
			t.Errorf("%s: %v, %v; of a volume: %v", name, entries, err, changed[filepath.Base(name)])
		}
	}
	claims, err := filepath.Glob(filepath.Join(dir, ownDir, "dirs", "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(claims) != len(dirs) {
		t.Errorf("%d claims for %d volumes", len(claims), len(dirs))
	}
	found, err := filepath.Glob(filepath.Join(dir, sharedDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != len(groups) {
		t.Errorf("groups %v for %v", found, groups)
	}
}
