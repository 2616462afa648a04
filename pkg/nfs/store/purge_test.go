package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// trashEntry makes a directory in the trash, as if a store had been killed after
// putting it there, and returns its path.
func trashEntry(t testing.TB, dir, name string) string {
	t.Helper()
	for _, sub := range []string{"work", "dirs", "archive", "trash", "volumes"} {
		mustMkdir(t, filepath.Join(dir, ownDir, sub))
	}
	p := filepath.Join(dir, ownDir, "trash", name)
	mustMkdir(t, p)
	return p
}

func TestPurgeIsResumed(t *testing.T) {
	const files = 20000
	dir := t.TempDir()
	p := trashEntry(t, dir, "v.20200101T000000Z.0123456789ab.claim.1.0")
	for d := range 20 {
		mustMkdir(t, fmt.Sprintf("%s/%d", p, d))
		for f := range files / 20 {
			fd, err := unix.Open(fmt.Sprintf("%s/%d/%d", p, d, f), unix.O_CREAT|unix.O_WRONLY, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			unix.Close(fd)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	opts := testOptions
	opts.purgeGrace = 0 // it is old enough
	first, err := Open(t.Context(), root, opts)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the purge to be well under way", func() (bool, string) {
		b := first.Backlog()
		return b.RemovedFiles > 1000, fmt.Sprintf("%+v", b)
	})
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	removed := first.Backlog().RemovedFiles
	if !exists(p) || removed >= files {
		t.Fatalf("closed too late to be a test: %d removed", removed)
	}
	second := openStore(t, dir)
	waitPurged(t, dir)
	waitFor(t, "the backlog to be empty", func() (bool, string) {
		b := second.Backlog()
		return b.Entries == 0, fmt.Sprintf("%+v", b)
	})
	if got, want := removed+second.Backlog().RemovedFiles, uint64(files+20+1); got != want {
		t.Errorf("%d removed, want %d", got, want)
	}
}

func TestTwoPurgers(t *testing.T) {
	dir := t.TempDir()
	p := trashEntry(t, dir, "v.20200101T000000Z.0123456789ab.claim.1.0")
	for d := range 30 {
		for f := range 50 {
			mustWrite(t, fmt.Sprintf("%s/%d/sub/%d", p, d, f), "")
		}
	}
	a, b := openStore(t, dir), openStore(t, dir)
	waitPurged(t, dir)
	waitFor(t, "both backlogs to be empty", func() (bool, string) {
		return a.Backlog().Entries == 0 && b.Backlog().Entries == 0, fmt.Sprintf("%+v %+v", a.Backlog(), b.Backlog())
	})
	if got, want := a.Backlog().RemovedFiles+b.Backlog().RemovedFiles, uint64(30*52+1); got != want {
		t.Errorf("%d removed, want %d", got, want)
	}
}

// What another process has put in the trash a moment ago may have to go back.
func TestPurgeLeavesGrace(t *testing.T) {
	dir := t.TempDir()
	young := trashEntry(t, dir, "v."+time.Now().UTC().Format(trashTime)+".0123456789ab.claim.1.0")
	future := trashEntry(t, dir, "v."+time.Now().Add(time.Hour).UTC().Format(trashTime)+".0123456789ab.claim.1.0")
	old := trashEntry(t, dir, "v.20200101T000000Z.0123456789ab.claim.1.0")
	s := openStore(t, dir, func(o *Options) { o.purgeGrace = 0 })
	create(t, s, volumeSpec("w", "w"))
	remove(t, s, "w")
	waitFor(t, "the old entry and the store's own to go", func() (bool, string) {
		b := s.Backlog()
		return b.Entries == 2 && !exists(old), fmt.Sprintf("%+v", b)
	})
	if !exists(young) || !exists(future) {
		t.Errorf("young there: %v, future there: %v", exists(young), exists(future))
	}
	short := openStore(t, dir, func(o *Options) { o.purgeGrace = 10 * time.Millisecond })
	waitFor(t, "a short grace to end", func() (bool, string) { return !exists(young) && !exists(future), fmt.Sprintf("%+v", short.Backlog()) })
}

func TestPurgeNeverFollowsLinks(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	mustWrite(t, outside+"/secret", "s")
	mustWrite(t, dir+"/neighbour/file", "x")
	p := trashEntry(t, dir, "v.20200101T000000Z.0123456789ab.claim.1.0")
	trash := filepath.Dir(p)
	mustSymlink(t, outside, p+"/out")
	mustSymlink(t, outside+"/secret", p+"/file-out")
	mustSymlink(t, "../../../neighbour", p+"/beside")
	mustSymlink(t, outside, trash+"/w.20200101T000000Z.0123456789ab.claim.1.0")
	mustSymlink(t, outside, trash+"/planted")
	// Pointers may name nothing but what the driver hides, and nothing outside.
	foreign := []string{"neighbour", outside, ".", "../" + filepath.Base(outside)}
	for n, text := range foreign {
		mustSymlink(t, text, fmt.Sprintf("%s/p%d.20200101T000000Z.0123456789ab.claim.1.0%s", trash, n, pointerSuffix))
	}
	mustMkdir(t, outside+"/"+hiddenPrefix+"x")
	mustSymlink(t, outside+"/"+hiddenPrefix+"x", trash+"/q1.20200101T000000Z.0123456789ab.claim.1.0.at")
	mustSymlink(t, "../"+filepath.Base(outside)+"/"+hiddenPrefix+"x", trash+"/q2.20200101T000000Z.0123456789ab.claim.1.0.at")
	mustSymlink(t, outside, dir+"/link")
	mustSymlink(t, "link/"+hiddenPrefix+"x", trash+"/q3.20200101T000000Z.0123456789ab.claim.1.0.at")
	before := tree(t, outside, nil)

	s := openStore(t, dir)
	waitFor(t, "everything but the pointers to go", func() (bool, string) {
		entries, err := os.ReadDir(trash)
		if err != nil {
			t.Fatal(err)
		}
		b := s.Backlog()
		return len(entries) == b.Failing && b.Entries == b.Failing && !exists(p), fmt.Sprint(entries, b)
	})
	if diff := cmp.Diff(before, tree(t, outside, nil)); diff != "" {
		t.Errorf("outside changed (-before +after):\n%s", diff)
	}
	if !exists(dir + "/neighbour/file") {
		t.Error("the neighbour is gone")
	}
}

// As another user than root, directories that deny everything are in the way.
func TestPurgeOddTree(t *testing.T) {
	dir := t.TempDir()
	p := trashEntry(t, dir, "v.20200101T000000Z.0123456789ab.claim.1.0")
	mustWrite(t, p+"/denied/file", "x")
	mustWrite(t, p+"/readonly/sub/file", "x")
	mustMkdir(t, p+"/readonly/denied-too")
	if err := syscall.Mkfifo(p+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	mustMkdir(t, p+"/"+strings.Repeat("é", 127))
	deep := p
	for range 3 * maxDepth {
		deep += "/d"
	}
	mustWrite(t, deep+"/bottom", "x")
	if err := os.Chmod(filepath.Dir(deep), 0o500); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"denied", "readonly/denied-too", "readonly"} {
		mode := os.FileMode(0)
		if name == "readonly" {
			mode = 0o555
		}
		if err := os.Chmod(p+"/"+name, mode); err != nil {
			t.Fatal(err)
		}
	}
	if os.Getuid() != 0 {
		s := openStore(t, dir)
		waitFor(t, "the tree to go", func() (bool, string) { return !exists(p), fmt.Sprintf("%+v", s.Backlog()) })
		return
	}
	const nobody = 65534
	err := filepath.Walk(dir, func(p string, _ os.FileInfo, err error) error {
		return errors.Join(err, os.Lchown(p, nobody, nobody))
	})
	if err != nil {
		t.Fatal(err)
	}
	for up := dir; up != os.TempDir() && up != "/"; up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	runJobAs(t, job{Dir: dir, WaitPurged: true}, nobody)
	if exists(p) {
		t.Errorf("left: %v", tree(t, p, nil))
	}
}

// What cannot be removed is tried again, with growing patience, and does not
// keep the purge from the rest.
func TestPurgeRetries(t *testing.T) {
	dir := t.TempDir()
	p := trashEntry(t, dir, "v.20200101T000000Z.0123456789ab.claim.1.0")
	mustWrite(t, p+"/stubborn", "x")
	mustWrite(t, p+"/willing", "x")
	var tries atomic.Int64
	var free atomic.Bool
	s := openStore(t, dir, func(o *Options) {
		o.hook = func(ctx context.Context, op, path string) error {
			if strings.HasSuffix(path, "/stubborn") && !free.Load() {
				tries.Add(1)
				return unix.EPERM
			}
			return nil
		}
	})
	create(t, s, volumeSpec("w", "w"))
	remove(t, s, "w")
	waitFor(t, "the rest to go", func() (bool, string) {
		b := s.Backlog()
		return b.Failing == 1 && b.Entries == 1 && !exists(p+"/willing"), fmt.Sprintf("%+v", b)
	})
	if n := tries.Load(); n > 3 {
		t.Errorf("%d tries in a moment", n)
	}
	free.Store(true)
	waitFor(t, "the next try", func() (bool, string) {
		b := s.Backlog()
		return b.Entries == 0 && !exists(p), fmt.Sprintf("%+v", b)
	})
	if firstBackoff<<20 < lastBackoff || backoff(0) != firstBackoff || backoff(1) != 2*firstBackoff || backoff(1000) != lastBackoff {
		t.Error("backoff:", backoff(0), backoff(1), backoff(1000))
	}
}

func TestPurgeRate(t *testing.T) {
	dir := t.TempDir()
	p := trashEntry(t, dir, "v.20200101T000000Z.0123456789ab.claim.1.0")
	for n := range 60 {
		mustWrite(t, fmt.Sprintf("%s/%d", p, n), "")
	}
	start := time.Now()
	openStore(t, dir, func(o *Options) { o.PurgeRate = 100 })
	waitPurged(t, dir)
	// Each takes a token: 60 files that are unlinked, the directory twice; 10 are there at the start.
	if took := time.Since(start); took < 450*time.Millisecond {
		t.Errorf("62 operations at 100 per second took only %v", took)
	}
}

func TestPurgeIsBounded(t *testing.T) {
	dir := t.TempDir()
	p := trashEntry(t, dir, "v.20200101T000000Z.0123456789ab.claim.1.0")
	for n := range 300 {
		mustWrite(t, fmt.Sprintf("%s/%d/%d/x", p, n%10, n), "")
	}
	var running, most atomic.Int64
	meet := make(chan struct{})
	openStore(t, dir, func(o *Options) {
		o.PurgeConcurrency = 3
		o.hook = func(ctx context.Context, op, path string) error {
			if op != "unlink" {
				return nil
			}
			most.Store(max(most.Load(), running.Add(1)))
			select { // so that they meet
			case meet <- struct{}{}:
			case <-meet:
			case <-time.After(10 * time.Millisecond):
			}
			running.Add(-1)
			return nil
		}
	})
	waitPurged(t, dir)
	if got := most.Load(); got < 2 || got > 3 {
		t.Errorf("%d at once, want 3 at most and more than 1", got)
	}
}

// A volume still in use while it is purged cannot lead the purge astray.
func TestPurgeOfAChangingTree(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	mustWrite(t, outside+"/secret", "s")
	p := trashEntry(t, dir, "v.20200101T000000Z.0123456789ab.claim.1.0")
	for n := range 200 {
		mustWrite(t, fmt.Sprintf("%s/%d/x", p, n), "")
	}
	openStore(t, dir, func(o *Options) {
		o.hook = func(ctx context.Context, op, path string) error {
			// Just before a directory is opened, it becomes a link to elsewhere.
			if op == "open" && strings.Count(path, "/") > 2 && !strings.HasSuffix(path, ".old") {
				target := filepath.Join(dir, path)
				if err := os.Rename(target, target+".old"); err == nil {
					_ = os.Symlink(outside, target)
				}
			}
			return nil
		}
	})
	waitPurged(t, dir)
	if !exists(outside + "/secret") {
		t.Error("the purge followed a link")
	}
}

// While the store has other work, the purge hardly moves, but it does move.
func TestPurgeGivesWay(t *testing.T) {
	dir := t.TempDir()
	busy, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s := openStore(t, dir, func(o *Options) {
		o.noYield = false
		o.hook = func(ctx context.Context, op, path string) error {
			if ctx.Value(foregroundKey{}) != nil {
				once.Do(func() { close(busy) })
				<-release
			}
			return nil
		}
	})
	create(t, s, volumeSpec("v", "v"))
	done := make(chan error)
	go func() {
		_, err := s.ListVolumes(context.WithValue(t.Context(), foregroundKey{}, true), "z", 0)
		done <- err
	}()
	<-busy
	const name, files = "v.20200101T000000Z.0123456789ab.claim.1.0", 12
	for n := range files {
		mustWrite(t, filepath.Join(dir, ownDir, "trash", name, fmt.Sprint(n)), "")
	}
	start := time.Now()
	s.purge.confirm(name)
	waitFor(t, "all files to go", func() (bool, string) {
		b := s.Backlog()
		return b.RemovedFiles >= files, fmt.Sprintf("%+v", b)
	})
	if took, least := time.Since(start), files*patience/DefaultPurgeConcurrency; took < least {
		t.Errorf("%d files removed in %v beside other work, want %v at least", files, took, least)
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	waitPurged(t, dir)
}

func TestTrashName(t *testing.T) {
	r := &record{ID: "pvc.1-a", Dir: "ns/data", ParentsCreated: 2, Created: time.Unix(1, 2)}
	name := newTrashName(r)
	for _, name := range []string{name, name + pointerSuffix} {
		got, ok := parseTrashName(name)
		if !ok || got.id != r.ID || got.claim != claimName(r.Dir) || got.created != r.Created.UnixNano() || got.parents != 2 || time.Since(got.since) > time.Minute {
			t.Errorf("parse(%q) = %+v, %t", name, got, ok)
		}
	}
	for _, name := range []string{
		"", ".", "....", "v.20200101T000000Z.0123456789ab", "v.20200101T000000Z.r.c.1.-1", "v.20200101T000000Z.r.c.1.x", "v.20200101T000000Z.r.c.x.1",
		"v.yesterday.r.c.1.0", "V.20200101T000000Z.r.c.1.0", ".20200101T000000Z.r.c.1.0",
	} {
		if got, ok := parseTrashName(name); ok {
			t.Errorf("parse(%q) = %+v", name, got)
		}
	}
}

// A delete that was killed between its record and its claim leaves the claim to
// the purge, which must not take that of a volume made since.
func TestPurgeCompletesDelete(t *testing.T) {
	trashed := func(id, dir string) string { return newTrashName(&record{ID: id, Dir: dir}) }
	for name, tt := range map[string]struct {
		claims  []string
		entry   string
		created []nfs.VolumeSpec
		want    []string // claims that stay
	}{
		"its own":                         {[]string{"old"}, trashed("old", "data"), nil, nil},
		"of a create that is at work":     {[]string{"new"}, trashed("old", "data"), nil, []string{"new"}},
		"of a volume that was made again": {nil, trashed("old", "data"), []nfs.VolumeSpec{volumeSpec("old", "data")}, []string{"old"}},
		"of another volume":               {nil, trashed("old", "data"), []nfs.VolumeSpec{volumeSpec("new", "data")}, []string{"new"}},
		"of nobody":                       {nil, trashed("old", "data"), nil, nil},
		"no id":                           {[]string{"../x"}, trashed("old", "data"), nil, []string{"../x"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := t.TempDir()
			s := openStore(t, d)
			create(t, s, volumeSpec("neighbour", "neighbour"))
			for _, spec := range tt.created {
				create(t, s, spec)
			}
			s.purge.stop()
			for _, id := range tt.claims {
				mustSymlink(t, id, filepath.Join(d, ownDir, "dirs", claimName("data")))
			}
			mustMkdir(t, filepath.Join(d, ownDir, "trash", tt.entry))
			s.purge = startPurger(t.Context(), s)
			waitPurged(t, d)
			var got []string
			if text, err := os.Readlink(filepath.Join(d, ownDir, "dirs", claimName("data"))); err == nil {
				got = append(got, text)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("claims (-want +got):\n%s", diff)
			}
		})
	}
}

// A delete may be killed just after it moved another volume's directory by
// mistake. The purge must not remove that.
func TestPurgeSparesMissingVolume(t *testing.T) {
	d := t.TempDir()
	s := openStore(t, d)
	create(t, s, volumeSpec("new", "data"))
	mustWrite(t, filepath.Join(d, "data/file"), "precious")
	s.purge.stop()
	entry := filepath.Join(d, ownDir, "trash", newTrashName(&record{ID: "old", Dir: "data"}))
	if err := os.Rename(filepath.Join(d, "data"), entry); err != nil {
		t.Fatal(err)
	}
	s.purge = startPurger(t.Context(), s)
	waitFor(t, "the purge to refuse the entry", func() (bool, string) {
		b := s.Backlog()
		return b.Failing == 1, fmt.Sprintf("%+v", b)
	})
	if data, err := os.ReadFile(filepath.Join(entry, "file")); err != nil || string(data) != "precious" {
		t.Errorf("the entry holds %q, %v", data, err)
	}
}

// What a delete has moved stays in the trash until its record has gone: whoever
// finds that it should not have been deleted can bring it back so far.
func TestPurgeWaitsForRecord(t *testing.T) {
	d := t.TempDir()
	s := openStore(t, d)
	create(t, s, volumeSpec("v", "data"))
	mustWrite(t, filepath.Join(d, "data/file"), "x")
	r, err := s.current().record(t.Context(), "v")
	if err != nil {
		t.Fatal(err)
	}
	entry := filepath.Join(d, ownDir, "trash", newTrashName(r))
	s.purge.stop()
	if err := os.Rename(filepath.Join(d, "data"), entry); err != nil {
		t.Fatal(err)
	}
	s.purge = startPurger(t.Context(), s)
	waitFor(t, "the purge to see the entry", func() (bool, string) {
		b := s.Backlog()
		return b.Entries == 1 && b.Failing == 0, fmt.Sprintf("%+v", b)
	})
	create(t, s, volumeSpec("other", "other"))
	remove(t, s, "other")
	waitFor(t, "the purge to remove another", func() (bool, string) {
		b := s.Backlog()
		return b.Entries == 1 && b.RemovedFiles > 0, fmt.Sprintf("%+v", b)
	})
	if !exists(entry + "/file") {
		t.Error("the purge did not wait for the record")
	}
	remove(t, s, "v")
	waitPurged(t, d)
}
