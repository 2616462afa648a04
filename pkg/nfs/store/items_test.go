package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// runTask runs the task to its end.
func runTask(t *testing.T, s *Store, which nfs.Task) (nfs.TaskState, error) {
	t.Helper()
	for {
		state, err := s.RunTask(t.Context(), which)
		if err != nil || state.Done {
			return state, err
		}
	}
}

func listItems(t testing.TB, s *Store, kind nfs.ItemKind) []nfs.Item {
	t.Helper()
	items, err := s.ListItems(t.Context(), kind, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	return items
}

func passive(o *Options) { o.Passive = true }

func TestListItems(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, passive)
	for _, kind := range []nfs.ItemKind{nfs.ItemVolume, nfs.ItemTrash, nfs.ItemArchive} {
		if items := listItems(t, s, kind); len(items) > 0 {
			t.Errorf("before the first volume: %+v", items)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, ownDir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("looking has made something: %v", err)
	}
	live := create(t, s, volumeSpec("live", "team/live"))
	create(t, s, with(volumeSpec("gone", "gone"), func(v *nfs.VolumeSpec) { v.OnDelete = nfs.Archive }))
	create(t, s, volumeSpec("trashed", "trashed"))
	mustWrite(t, dir+"/trashed/file", "x")
	remove(t, s, "gone")
	before := time.Now().Truncate(time.Second)
	remove(t, s, "trashed")
	other := openStore(t, dir, passive, func(o *Options) { o.InstanceID = "two" })
	create(t, other, volumeSpec("theirs", "theirs"))
	mustWrite(t, filepath.Join(dir, ownDir, "volumes/broken.json"), "{")
	mustWrite(t, filepath.Join(dir, ownDir, "trash/planted"), "")

	volumes := listItems(t, s, nfs.ItemVolume)
	if len(volumes) != 3 || volumes[0].Key != "broken" || !strings.Contains(volumes[0].Problem, "cannot be read") {
		t.Fatalf("volumes: %+v", volumes)
	}
	want := nfs.Item{Kind: nfs.ItemVolume, Key: "live", Path: "team/live", Volume: live, Driver: "csi.test", Instance: "one", Since: live.Created}
	if diff := cmp.Diff(want, volumes[1]); diff != "" {
		t.Errorf("live (-want +got):\n%s", diff)
	}
	if volumes[2].Key != "theirs" || volumes[2].Instance != "two" {
		t.Errorf("the other instance's volume: %+v", volumes[2])
	}
	if page, err := s.ListItems(t.Context(), nfs.ItemVolume, "broken", 1); err != nil || len(page) != 1 || page[0].Key != "live" {
		t.Errorf("a page after broken: %+v, %v", page, err)
	}

	trash := listItems(t, s, nfs.ItemTrash)
	if len(trash) != 3 || trash[1].Key != "planted" && trash[0].Key != "planted" {
		t.Fatalf("trash: %+v", trash)
	}
	for _, i := range trash {
		switch {
		case i.Key == "planted":
			if !strings.Contains(i.Problem, "by hand") || i.Path != ownDir+"/trash/planted" {
				t.Errorf("planted: %+v", i)
			}
		case i.Volume.Name == "trashed":
			if !exists(filepath.Join(dir, i.Path, "file")) || i.Since.Before(before) || time.Since(i.Since) > time.Minute || i.Problem != "" {
				t.Errorf("trashed: %+v", i)
			}
		}
	}

	archive := listItems(t, s, nfs.ItemArchive)
	if len(archive) != 1 || archive[0].Volume.Name != "gone" || !exists(filepath.Join(dir, archive[0].Path)) || archive[0].Problem != "" {
		t.Fatalf("archive: %+v", archive)
	}
	if err := os.Remove(filepath.Join(dir, archive[0].Path)); err != nil {
		t.Fatal(err)
	}
	if got := listItems(t, s, nfs.ItemArchive); len(got) != 1 || got[0].Path != "" || !strings.Contains(got[0].Problem, "missing") {
		t.Errorf("an archive without its directory: %+v", got)
	}
	_, err := s.ListItems(t.Context(), "odd", "", 0)
	wantError(t, err, nfs.ErrInvalid, "odd")
}

func TestListSnapshotItems(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	create(t, s, volumeSpec("v", "v"))
	mustWrite(t, dir+"/v/file", "12345")
	var ready nfs.Snapshot
	waitFor(t, "the snapshot to be ready", func() (bool, string) {
		var err error
		if ready, err = s.CreateSnapshot(t.Context(), "snap", "v"); err != nil {
			t.Fatal(err)
		}
		return ready.Ready, fmt.Sprintf("%+v", ready)
	})
	remove(t, s, "v")
	want := []nfs.Item{{Kind: nfs.ItemSnapshot, Key: "snap", Path: ownDir + "/snapshots/snap", Source: "v", Driver: "csi.test", Instance: "one",
		Since: ready.Created, Volume: nfs.Volume{ID: "snap", Name: "snap", CapacityBytes: 5, Created: ready.Created}}}
	if diff := cmp.Diff(want, listItems(t, s, nfs.ItemSnapshot)); diff != "" {
		t.Errorf("snapshots (-want +got):\n%s", diff)
	}
	if state, err := runTask(t, s, nfs.Task{Kind: nfs.TaskUsage, Item: nfs.ItemSnapshot, Key: "snap"}); err != nil || state.Seen < 3 {
		t.Errorf("%+v, %v", state, err)
	}
	if err := s.DeleteSnapshot(t.Context(), "snap"); err != nil {
		t.Fatal(err)
	}
	if got := listItems(t, s, nfs.ItemSnapshot); len(got) > 0 {
		t.Errorf("deleted: %+v", got)
	}
	waitPurged(t, dir)
}

// hookOn calls f before an operation on something with that last element.
func hookOn(op, base string, f func() error) hook {
	return func(_ context.Context, o, p string) error {
		if o == op && path.Base(p) == base {
			return f()
		}
		return nil
	}
}

// hidden returns the directories of deleted volumes beside where they were.
func hidden(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(dir + "/" + hiddenPrefix + "*")
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A deleted volume on another file system waits beside where it was.
func TestListHiddenTrash(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, passive, func(o *Options) {
		o.hook = func(_ context.Context, op, p string) error {
			if op == "rename" && p == "team/v" && len(hidden(t, dir+"/team")) == 0 {
				return unix.EXDEV
			}
			return nil
		}
	})
	create(t, s, volumeSpec("v", "team/v"))
	remove(t, s, "v")
	trash := listItems(t, s, nfs.ItemTrash)
	if len(trash) != 1 || !strings.HasPrefix(trash[0].Path, "team/"+hiddenPrefix) || !exists(filepath.Join(dir, trash[0].Path)) {
		t.Fatalf("trash: %+v", trash)
	}
	if state, err := runTask(t, s, nfs.Task{Kind: nfs.TaskOrphans}); err != nil || len(state.Items) > 0 {
		t.Errorf("orphans: %+v, %v", state, err)
	}
}

func TestMeasure(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, passive)
	create(t, s, volumeSpec("v", "v"))
	mustWrite(t, dir+"/v/a/file", strings.Repeat("x", 100_000))
	if err := os.Link(dir+"/v/a/file", dir+"/v/again"); err != nil {
		t.Fatal(err)
	}
	mustSymlink(t, "/etc", dir+"/v/out")
	var wantBytes int64
	for _, p := range []string{"v", "v/a", "v/a/file", "v/out"} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, p), &st); err != nil {
			t.Fatal(err)
		}
		wantBytes += st.Blocks * 512
	}
	state, err := runTask(t, s, nfs.Task{Kind: nfs.TaskUsage, Item: nfs.ItemVolume, Key: "v"})
	if err != nil || state.Seen != 5 || state.Bytes != wantBytes {
		t.Errorf("%+v, %v; want 5 and %d bytes", state, err, wantBytes)
	}
	deep := dir + "/v/deep"
	if err := os.MkdirAll(deep+strings.Repeat("/d", 300), 0o755); err != nil {
		t.Fatal(err)
	}
	remove(t, s, "v")
	state, err = runTask(t, s, nfs.Task{Kind: nfs.TaskUsage, Item: nfs.ItemTrash, Key: listItems(t, s, nfs.ItemTrash)[0].Key})
	if err != nil || state.Seen != 306 {
		t.Errorf("in the trash: %+v, %v", state, err)
	}
	_, err = runTask(t, s, nfs.Task{Kind: nfs.TaskUsage, Item: nfs.ItemVolume, Key: "v"})
	wantError(t, err, nfs.ErrNotFound)
	_, err = runTask(t, s, nfs.Task{Kind: "odd"})
	wantError(t, err, nfs.ErrInvalid)
}

// A task that is asked for again is the same one; it ends with the store.
func TestTaskIsJoined(t *testing.T) {
	dir := t.TempDir()
	entered, release := make(chan struct{}, 9), make(chan struct{})
	s := openStore(t, dir, passive, func(o *Options) {
		o.hook = hookOn("list", ".", func() error { entered <- struct{}{}; <-release; return nil })
	})
	create(t, s, volumeSpec("v", "v"))
	mustMkdir(t, dir+"/stray")
	look := nfs.Task{Kind: nfs.TaskOrphans}
	for range 2 {
		if state, err := s.RunTask(t.Context(), look); err != nil || state.Done || state.Items != nil {
			t.Fatalf("%+v, %v", state, err)
		}
	}
	if len(entered) != 1 {
		t.Errorf("begun %d times", len(entered))
	}
	close(release)
	state, err := runTask(t, s, look)
	if err != nil || len(state.Items) != 1 || state.Items[0].Path != "stray" {
		t.Errorf("%+v, %v", state, err)
	}
	s.tasks.stop()
	_, err = s.RunTask(t.Context(), look)
	wantError(t, err, nfs.ErrUnavailable)
}

func TestOrphans(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, passive)
	create(t, s, volumeSpec("fine", "team/fine"))
	create(t, s, volumeSpec("lost", "team/lost"))
	create(t, s, with(volumeSpec("kept", "kept"), func(v *nfs.VolumeSpec) { v.OnDelete = nfs.Archive }))
	create(t, s, with(volumeSpec("left", "left"), func(v *nfs.VolumeSpec) { v.OnDelete = nfs.Retain }))
	create(t, s, volumeSpec("trashed", "trashed"))
	for _, id := range []string{"kept", "left", "trashed"} {
		remove(t, s, id)
	}
	if err := os.Remove(dir + "/team/lost"); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, dir+"/team/stray/deep/file", "x")
	mustWrite(t, dir+"/team/fine/sub/file", "x")
	mustWrite(t, dir+"/file", "x")
	mustSymlink(t, "/etc", dir+"/link")
	mustMkdir(t, dir+"/odd\xff")
	mustWrite(t, filepath.Join(dir, ownDir, "volumes/broken.json"), "{}")
	// Creates that were killed: with a directory, and before that.
	mustMkdir(t, dir+"/begun")
	mustSymlink(t, "b-1", filepath.Join(dir, ownDir, "dirs", claimName("begun")))
	mustSymlink(t, "c-1", filepath.Join(dir, ownDir, "dirs", claimName("nowhere")))
	before := tree(t, dir, nil)

	state, err := runTask(t, s, nfs.Task{Kind: nfs.TaskOrphans})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range state.Items {
		word := "?"
		for _, w := range []string{"no record tells", "not finished", "is missing", "cannot be read"} {
			if strings.Contains(i.Problem, w) {
				word = w
			}
		}
		got = append(got, fmt.Sprintf("%s %s: %s", i.Kind, i.Path, word))
	}
	want := []string{
		"claim .nfs-csi/dirs/" + claimName("nowhere") + ": not finished",
		"directory begun: not finished",
		"directory left: no record tells",
		"directory odd\xff: no record tells",
		"directory team/stray: no record tells",
		"record .nfs-csi/volumes/broken.json: cannot be read",
		"record .nfs-csi/volumes/lost.json: is missing",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("orphans (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, tree(t, dir, nil)); diff != "" {
		t.Errorf("looking has changed something (-before +after):\n%s", diff)
	}
}

// What is made while orphans are looked for is none.
func TestOrphansMeanwhile(t *testing.T) {
	dir := t.TempDir()
	var s *Store
	busy := false
	s = openStore(t, dir, passive, func(o *Options) {
		o.hook = hookOn("list", ".", func() error {
			if !busy {
				busy = true
				create(t, s, volumeSpec("new", "new"))
				create(t, s, volumeSpec("nested", "parent/nested"))
			}
			return nil
		})
	})
	create(t, s, volumeSpec("v", "v"))
	if state, err := runTask(t, s, nfs.Task{Kind: nfs.TaskOrphans}); err != nil || len(state.Items) > 0 || !busy {
		t.Errorf("%+v, %v", state, err)
	}
}

func TestPurgeTrash(t *testing.T) {
	dir := t.TempDir()
	p := trashEntry(t, dir, "v")
	mustWrite(t, p+"/stubborn", "x")
	refuse := make(chan struct{})
	s := openStore(t, dir, func(o *Options) {
		o.hook = hookOn("unlink", "stubborn", func() error {
			select {
			case <-refuse:
				return nil
			default:
				return unix.EPERM
			}
		})
	})
	state := func(retry bool) nfs.TrashState {
		st, err := s.PurgeTrash(t.Context(), retry)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	waitFor(t, "the entry to fail", func() (bool, string) {
		st := state(true) // again and again, in spite of the pauses
		s.purge.mu.Lock()
		defer s.purge.mu.Unlock()
		for _, e := range s.purge.entries {
			return e.failures > 3, fmt.Sprintf("%+v, %d failures", st, e.failures)
		}
		return false, "no entry"
	})
	items := listItems(t, s, nfs.ItemTrash)
	if len(items) != 1 || !strings.Contains(items[0].Problem, "stubborn") {
		t.Errorf("it does not say why: %+v", items)
	}
	if st := state(false); st.Settled || st.Entries != 1 || st.Failing != 1 || !st.Oldest.Equal(deletedAt(path.Base(p))) {
		t.Errorf("%+v", st)
	}
	close(refuse)
	state(true)
	waitFor(t, "the trash to be empty", func() (bool, string) {
		st := state(false)
		return st.Settled && st.Oldest.IsZero() && st.Removed >= 2, fmt.Sprintf("%+v", st)
	})
}

// What another process has in the trash is followed, and seen though it came after
// this one had looked.
func TestPurgeTrashOfOthers(t *testing.T) {
	dir := t.TempDir()
	release := make(chan struct{})
	other := openStore(t, dir, func(o *Options) {
		o.hook = hookOn("unlink", "stubborn", func() error { <-release; return nil })
	})
	create(t, other, volumeSpec("v", "v"))
	mustWrite(t, dir+"/v/stubborn", "x")
	s := openStore(t, dir, func(o *Options) { o.purgeGrace = time.Hour })
	state := func(retry bool) nfs.TrashState {
		st, err := s.PurgeTrash(t.Context(), retry)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	waitFor(t, "the trash to be read", func() (bool, string) { st := state(false); return st.Settled, fmt.Sprintf("%+v", st) })
	remove(t, other, "v")
	if st := state(true); st.Settled {
		t.Errorf("it takes an old look for a new one: %+v", st)
	}
	waitFor(t, "the other's entry", func() (bool, string) {
		st := state(false)
		return st.Entries == 1 && !st.Oldest.IsZero(), fmt.Sprintf("%+v", st)
	})
	close(release)
	waitFor(t, "the end", func() (bool, string) { st := state(false); return st.Settled, fmt.Sprintf("%+v", st) })
}
