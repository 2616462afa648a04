package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// trashEntry puts the empty directory of a deleted volume "gone/<id>" into the
// trash, as if another process had been killed after that, and returns its path.
func trashEntry(t testing.TB, dir, id string) string {
	t.Helper()
	p := trashRecord(t, dir, newRecord(testOptions, volumeSpec(id, "gone/"+id), 0, time.Unix(1, 0).UTC()))
	mustMkdir(t, p)
	return p
}

// trashRecord decides the delete of a volume, and leaves it at that.
func trashRecord(t testing.TB, dir string, r *record) (entry string) {
	t.Helper()
	for _, sub := range []string{"work", "dirs", "archive", "trash", "volumes"} {
		mustMkdir(t, filepath.Join(dir, ownDir, sub))
	}
	data, err := encode(r)
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(dir, ownDir, "trash", "20200101T000000Z.0123456789ab", newEntryName(r.ID, r.Created))
	mustWrite(t, p+recordSuffix, string(data))
	return p
}

func TestPurgeIsResumed(t *testing.T) {
	const files = 20000
	dir := t.TempDir()
	p := trashEntry(t, dir, "v")
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
	first, err := Open(t.Context(), root, testOptions)
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
	if len(inTrash(t, dir)) == 0 || removed >= files {
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
	p := trashEntry(t, dir, "v")
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

func TestPurgeNeverFollowsLinks(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	mustWrite(t, outside+"/secret", "s")
	mustWrite(t, dir+"/neighbour/file", "x")
	p := trashEntry(t, dir, "v")
	mustSymlink(t, outside, p+"/out")
	mustSymlink(t, outside+"/secret", p+"/file-out")
	mustSymlink(t, "../../../../neighbour", p+"/beside")
	trash := filepath.Join(dir, ownDir, "trash")
	// The directory of a volume may have become anything.
	mustSymlink(t, outside, trashRecord(t, dir, newRecord(testOptions, volumeSpec("w", "gone"), 0, time.Unix(2, 0))))
	// A link beside it is not what the driver hides, and no way out.
	q := newRecord(testOptions, volumeSpec("q", "gone"), 0, time.Unix(3, 0))
	mustSymlink(t, outside, dir+"/"+hiddenPrefix+path.Base(trashRecord(t, dir, q)))
	mustSymlink(t, outside, dir+"/link")
	trashRecord(t, dir, newRecord(testOptions, volumeSpec("r", "link/gone"), 0, time.Unix(4, 0)))
	mustSymlink(t, outside, trash+"/planted")
	mustSymlink(t, outside, trash+"/20200101T000001Z.0123456789ab")
	mustSymlink(t, outside, path.Dir(p)+"/planted")
	before := tree(t, outside, nil)

	s := openStore(t, dir)
	waitFor(t, "everything but what is planted to go", func() (bool, string) {
		b := s.Backlog()
		return b.Failing == 4 && b.Entries == 4 && !exists(p), fmt.Sprintf("%+v", b)
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
	p := trashEntry(t, dir, "v")
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
	p := trashEntry(t, dir, "v")
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
	p := trashEntry(t, dir, "v")
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
	p := trashEntry(t, dir, "v")
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
	p := trashEntry(t, dir, "v")
	for n := range 200 {
		mustWrite(t, fmt.Sprintf("%s/%d/x", p, n), "")
	}
	openStore(t, dir, func(o *Options) {
		o.hook = func(ctx context.Context, op, path string) error {
			// Just before a directory is opened, it becomes a link to elsewhere.
			if op == "open" && strings.Count(path, "/") > 3 && !strings.HasSuffix(path, ".old") {
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
	const files = 12
	for p, n := trashEntry(t, dir, "w"), 0; n < files; n++ {
		mustWrite(t, filepath.Join(p, fmt.Sprint(n)), "")
	}
	start := time.Now()
	s.purge.wakeUp()
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
