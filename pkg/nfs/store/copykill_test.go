package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// runCopy is the job of a child that copies and kills itself.
func (j job) runCopy(ctx context.Context) error {
	var ops atomic.Int64
	h := func(ctx context.Context, _, _ string) error {
		if ops.Add(1) == int64(j.KillAt) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return ctx.Err()
	}
	open := func(at string) (*dir, error) {
		root, err := os.OpenRoot(at)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		return openShare(root, h)
	}
	src, err := open(j.Dir + "/source")
	if err != nil {
		return err
	}
	work, err := open(j.Dir + "/work")
	if err != nil {
		return err
	}
	_, err = newTreeCopy(src, work, j.Copy, copyOptions{concurrency: 4}).run(ctx)
	return errors.Join(err, src.f.Close(), work.f.Close())
}

// smallTree has one of everything that is copied in a way of its own.
func smallTree(t testing.TB, at string) {
	t.Helper()
	b := &treeBuilder{t: t, dir: at, root: os.Getuid() == 0}
	b.file("file", "content")
	b.file("set-id", "x")
	b.file("sub/large", strings.Repeat("0123456789abcdef", 40_000))
	b.file("sub/linked", "two names")
	b.must(os.Link(at+"/sub/linked", at+"/other-name"))
	b.must(os.Symlink("file", at+"/sub/symlink"))
	b.must(unix.Mkfifo(at+"/fifo", 0o600))
	f, err := os.Create(at + "/sub/sparse")
	b.must(err)
	_, err = f.WriteAt([]byte("data"), 1<<20)
	b.must(errors.Join(err, f.Truncate(2<<20), f.Close()))
	b.optional("user.x", unix.Setxattr(at+"/file", "user.x", []byte("y"), 0))
	if b.root {
		b.must(os.Chown(at+"/set-id", 1, 2))
		b.must(os.Chown(at+"/sub", 3, 4))
	}
	b.must(unix.Chmod(at+"/set-id", 0o6750))
	b.must(unix.Chmod(at+"/sub", 0o2500))
	long := []unix.Timespec{{Sec: 1e9, Nsec: 1}, {Sec: 1e9, Nsec: 2}}
	for _, p := range []string{"file", "set-id", "sub/large", "sub/linked", "sub/sparse", "fifo", "sub", "."} {
		b.must(unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(at, p), long, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// A copy is killed before each of its file operations, most of them by a second
// kill too, and then goes on.
func TestKillCopy(t *testing.T) {
	t.Parallel()
	at := memDir(t)
	b := openCopyBed(t, at, nil)
	smallTree(t, b.source())
	onNFS := isNFS(t, at)
	want := scan(t, b.source(), nil)
	step := 1
	if onNFS {
		step = 17 // To start a process takes a guest of the lab its time.
	}
	killed := true
	n := 1
	for ; killed; n += step {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			id := fmt.Sprint("id", n)
			killed = runJob(t, job{Dir: at, Copy: id, KillAt: n})
			if exists(fmt.Sprintf("%s/work/%s/%s", at, id, manifestName)) {
				// It is whole, but for the names in links/ that count as links.
				compareTrees(t, withoutLinks(want), withoutLinks(scan(t, b.data(id), nil)), onNFS)
			}
			runJob(t, job{Dir: at, Copy: id, KillAt: 1 + rand.IntN(n)})
			m := b.copy(t, id, copyOptions{})
			compareTrees(t, want, scan(t, b.data(id), nil), onNFS)
			if m.Notes.Changed != 0 || m.Notes.Vanished != 0 || m.entries() != int64(len(want)) {
				t.Errorf("the manifest: %+v", m)
			}
			removeAll(t, at+"/work/"+id)
		})
		if t.Failed() {
			return
		}
	}
	if n < 100 {
		t.Errorf("the copy took %d file operations: is the hook called?", n)
	}
	t.Logf("%d file operations", n)
}

func withoutLinks(tree map[string]node) map[string]node {
	out := map[string]node{}
	for p, n := range tree {
		n.SameAs = ""
		out[p] = n
	}
	return out
}

// What is complete is not copied again.
func TestCopyResumed(t *testing.T) {
	t.Parallel()
	at := t.TempDir()
	var opened atomic.Int64
	b := openCopyBed(t, at, func(_ context.Context, op, p string) error {
		if op == "create" && !strings.HasSuffix(p, ".new") && strings.Contains(p, "/data/") {
			opened.Add(1)
		}
		return nil
	})
	smallTree(t, b.source())
	want := scan(t, b.source(), nil)
	first := b.copy(t, "id", copyOptions{})
	if opened.Load() != 4 {
		t.Errorf("%d files were made, want 4", opened.Load())
	}
	job := at + "/work/id/"
	for _, change := range []struct {
		what  string
		do    func() error
		again int64
	}{
		{"nothing", func() error { return nil }, 0},
		{"a file is longer", func() error { return os.Truncate(job+"data/file", 100) }, 1},
		{"a file is missing", func() error { return os.Remove(job + "data/set-id") }, 1},
		{"a file was never completed", func() error { return os.WriteFile(job+"data/file", []byte("cONTENT"), 0) }, 1},
		{"something else is there", func() error {
			return errors.Join(os.Remove(job+"data/file"), os.Mkdir(job+"data/file", 0o700), os.WriteFile(job+"data/file/x", nil, 0o600),
				os.WriteFile(job+"data/sub/extra", nil, 0o600), os.Remove(job+"data/fifo"), os.Symlink("/", job+"data/fifo"))
		}, 1},
		{"the directory was completed", func() error { return os.Remove(job + "data/sub/sparse") }, 1},
		{"the machine was restarted", func() error {
			if isNFS(t, at) {
				return nil
			}
			return os.WriteFile(job+beganName, []byte(`{"version":1,"boot":"earlier","id":"id"}`), 0o600)
		}, map[bool]int64{false: 4}[isNFS(t, at)]},
	} {
		opened.Store(0)
		if err := errors.Join(change.do(), os.Remove(job+manifestName)); err != nil {
			t.Fatalf("%s: %v", change.what, err)
		}
		m := b.copy(t, "id", copyOptions{})
		compareTrees(t, want, scan(t, b.data("id"), nil), isNFS(t, at))
		if opened.Load() != change.again || m.treeCounts != first.treeCounts {
			t.Errorf("%s: %d files were made again, want %d; counts %+v, want %+v", change.what, opened.Load(), change.again, m.treeCounts, first.treeCounts)
		}
	}
}

// When written data was lost, nobody knows of which file.
func TestCopyLostWrites(t *testing.T) {
	t.Parallel()
	var lose, made atomic.Int64
	b := openCopyBed(t, t.TempDir(), func(_ context.Context, op, p string) error {
		switch {
		case op == "create" && p == "id/data/file":
			made.Add(1)
		case op == "sync" && p == "id" && lose.Add(-1) == 0:
			return unix.EIO
		}
		return nil
	})
	if isNFS(t, b.dir) {
		t.Skip("every file is synced there")
	}
	smallTree(t, b.source())
	want := scan(t, b.source(), nil)
	lose.Store(2) // The first is of began.json.
	_, err := newTreeCopy(b.src, b.work, "id", copyOptions{}).run(t.Context())
	wantError(t, err, nfs.ErrUnavailable)
	b.copy(t, "id", copyOptions{})
	if made.Load() != 2 {
		t.Errorf("a file was made %d times, want 2", made.Load())
	}
	compareTrees(t, want, scan(t, b.data("id"), nil), false)
}

// What is held in memory does not grow with a directory.
func TestCopyMemory(t *testing.T) { // Not in parallel: it looks at the heap.
	const entries = 20_000
	var base, most atomic.Uint64
	var lists atomic.Int64
	b := openCopyBed(t, t.TempDir(), func(_ context.Context, op, _ string) error {
		if op == "list" && lists.Add(1)%50 == 2 {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			base.CompareAndSwap(0, m.HeapAlloc)
			most.Store(max(most.Load(), m.HeapAlloc))
		}
		return nil
	})
	if isNFS(t, b.dir) {
		t.Skip("takes too long in the lab, and is the same there")
	}
	long := strings.Repeat("n", 240)
	for n := range entries {
		if err := os.WriteFile(fmt.Sprintf("%s/%s%d", b.source(), long, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if m := b.copy(t, "id", copyOptions{}); m.Files != entries {
		t.Errorf("the manifest: %+v", m)
	}
	if lists.Load() < 500 {
		t.Errorf("the directories were read in %d pieces: is the hook called?", lists.Load())
	}
	if grown := int64(most.Load()) - int64(base.Load()); grown > 1<<20 {
		t.Errorf("the heap grew by %d bytes, of %d to %d", grown, base.Load(), most.Load())
	}
}

// Random trees, copied in several attempts that are cancelled at random.
func TestCopyRandomTrees(t *testing.T) {
	t.Parallel()
	runs := 40
	if isNFS(t, t.TempDir()) {
		runs = 6
	}
	for seed := range runs {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			at := t.TempDir()
			random := rand.New(rand.NewPCG(uint64(seed), 2))
			var left atomic.Int64
			var cancel context.CancelFunc
			b := openCopyBed(t, at, func(context.Context, string, string) error {
				if left.Add(-1) == 0 {
					cancel()
				}
				return nil
			})
			randomTree(t, random, b.source(), 120)
			want := scan(t, b.source(), nil)
			for budget := int64(20); ; budget *= 2 {
				var ctx context.Context
				ctx, cancel = context.WithCancel(t.Context())
				left.Store(1 + random.Int64N(budget))
				_, err := newTreeCopy(b.src, b.work, "id", copyOptions{concurrency: 1 + random.IntN(40)}).run(ctx)
				cancel()
				if err == nil {
					break
				}
				if !errors.Is(err, context.Canceled) {
					t.Fatal(err)
				}
			}
			compareTrees(t, want, scan(t, b.data("id"), nil), isNFS(t, at))
		})
	}
}

func randomTree(t *testing.T, random *rand.Rand, at string, entries int) {
	t.Helper()
	dirs, files := []string{at}, []string{}
	b := &treeBuilder{t: t, dir: at}
	pick := func(of []string) string { return of[random.IntN(len(of))] }
	for n := range entries {
		p := fmt.Sprintf("%s/%d", pick(dirs), n)
		mode := uint32(random.IntN(0o10000))
		switch kind := random.IntN(10); {
		case kind < 3:
			b.must(os.Mkdir(p, 0o755))
			dirs = append(dirs, p)
		case kind < 7:
			b.must(os.WriteFile(p, make([]byte, random.IntN(1<<random.IntN(18))), 0o600))
			files = append(files, p)
		case kind < 8:
			b.must(os.Symlink(pick(dirs), p))
			continue
		case kind < 9 && len(files) > 0:
			b.must(os.Link(pick(files), p))
		default:
			b.must(unix.Mkfifo(p, 0o600))
		}
		if os.Getuid() != 0 {
			mode |= 0o700
		} else if random.IntN(2) == 0 {
			b.must(os.Lchown(p, random.IntN(1<<16), random.IntN(1<<16)))
		}
		b.must(unix.Chmod(p, mode))
		if random.IntN(2) == 0 {
			when := unix.Timespec{Sec: random.Int64N(1 << 31), Nsec: random.Int64N(1e9)}
			b.must(unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{when, when}, 0))
		}
	}
}
