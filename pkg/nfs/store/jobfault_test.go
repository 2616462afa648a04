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
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// failing makes a store in which no file of a copy gets its times while the error is
// set.
func failing(t testing.TB, d string) (*Store, *atomic.Pointer[unix.Errno]) {
	t.Helper()
	var fail atomic.Pointer[unix.Errno]
	return openStore(t, d, quickLease, func(o *Options) {
		o.CopyWait = 200 * time.Millisecond
		o.hook = func(_ context.Context, what, p string) error {
			if errno := fail.Load(); errno != nil && what == "utimes" && strings.Contains(p, "/work/") && strings.Contains(p, "/data/") {
				return *errno
			}
			return nil
		}
	}), &fail
}

// A copy that fails for good says why, frees what it took, and begins anew when it
// is asked for again.
func TestJobGivenUp(t *testing.T) {
	t.Parallel()
	for errno, want := range map[unix.Errno]error{unix.ENOSPC: nfs.ErrFull, unix.EDQUOT: nfs.ErrFull, unix.EACCES: nfs.ErrPermission} {
		t.Run(errno.Error(), func(t *testing.T) {
			t.Parallel()
			d := t.TempDir()
			s, fail := failing(t, d)
			tree := sourceVolume(t, s, d)
			fail.Store(&errno)
			wantError(t, eventualError(t, s, "snap", "src"), want, `"snap"`, `"src"`)
			if v, err := s.GetSnapshot(t.Context(), "snap"); err != nil || v.Ready {
				t.Errorf("get: %+v, %v", v, err)
			}
			_, err := untilCreated(t, s, cloneSpec("copy", "copy", fromVolume))
			wantError(t, err, want, "copy volume")
			waitPurged(t, d)
			for _, name := range leftovers(t, d) {
				if strings.HasPrefix(name, "work/") && exists(filepath.Join(d, ownDir, name, dataName)) {
					t.Errorf("the data of %s was not removed", name)
				}
			}
			if b := s.Backlog(); b.JobsFailed < 2 {
				t.Errorf("the backlog: %+v", b)
			}
			// Another process is told the same, and does not try by itself.
			other, otherFail := failing(t, d)
			otherFail.Store(&errno)
			waitFor(t, "the other store to settle", func() (bool, string) { b := other.Backlog(); return b.Settled, fmt.Sprintf("%+v", b) })
			wantError(t, eventualError(t, other, "snap", "src"), want)

			otherFail.Store(nil)
			fail.Store(nil)
			var v nfs.Snapshot
			waitFor(t, "the snapshot to be ready", func() (bool, string) {
				var err error
				if v, err = s.CreateSnapshot(t.Context(), "snap", "src"); err != nil && !errors.Is(err, want) {
					t.Fatal(err)
				}
				return v.Ready, fmt.Sprintf("%+v, %v", v, err)
			})
			compareTrees(t, tree, scan(t, snapshotData(d, "snap"), nil), isNFS(t, d))
			waitFor(t, "the clone to be made", func() (bool, string) {
				_, err := s.CreateVolume(t.Context(), cloneSpec("copy", "copy", fromVolume))
				if err != nil && !errors.Is(err, want) && !errors.Is(err, nfs.ErrBusy) {
					t.Fatal(err)
				}
				return err == nil, fmt.Sprint(err)
			})
			compareTrees(t, tree, scan(t, d+"/copy", nil), isNFS(t, d))
			consistent(t, d)
		})
	}
}

// A failure that may pass is tried again without anybody asking.
func TestJobContinues(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	s, fail := failing(t, d)
	tree := sourceVolume(t, s, d)
	errno := unix.EIO
	fail.Store(&errno)
	v, err := s.CreateSnapshot(t.Context(), "snap", "src")
	if err != nil || v.Ready {
		t.Fatalf("%+v, %v", v, err)
	}
	fail.Store(nil)
	waitFor(t, "the snapshot to be ready", func() (bool, string) {
		v, err := s.GetSnapshot(t.Context(), "snap")
		return err == nil && v.Ready, fmt.Sprintf("%+v, %v", v, err)
	})
	compareTrees(t, tree, scan(t, snapshotData(d, "snap"), nil), isNFS(t, d))
}

// A real, full file system.
func TestJobFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a tmpfs takes root")
	}
	d := t.TempDir()
	if err := unix.Mount("store-test", d, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(d, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := openStore(t, d)
	create(t, s, volumeSpec("src", "src"))
	for n := range 100 {
		mustWrite(t, fmt.Sprintf("%s/src/%d", d, n), strings.Repeat("x", 25_000)) // 2.8 MB on the disk
	}
	tree := scan(t, d+"/src", nil)
	wantError(t, eventualError(t, s, "snap", "src"), nfs.ErrFull, "free space")
	_, err := untilCreated(t, s, cloneSpec("copy", "copy", fromVolume))
	wantError(t, err, nfs.ErrFull)
	waitPurged(t, d)
	compareTrees(t, tree, scan(t, d+"/src", nil), isNFS(t, d))
	if err := unix.Mount("store-test", d, "tmpfs", unix.MS_REMOUNT, "size=16m"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the snapshot to be ready", func() (bool, string) {
		v, err := s.CreateSnapshot(t.Context(), "snap", "src")
		return err == nil && v.Ready, fmt.Sprintf("%+v, %v", v, err)
	})
	compareTrees(t, tree, scan(t, snapshotData(d, "snap"), nil), isNFS(t, d))
}

// Links that point out of the export, wherever the store looks for a job: none is
// followed, and what they point to stays as it is.
func TestJobPlanted(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"src/link", "src/sub/link", ownDir + "/snapshots", ownDir + "/work", ownDir + "/trash", ownDir + "/snapshots/snap", ownDir + "/work/snapshot_snap", ownDir + "/work/clone_copy", "copy"} {
		t.Run(strings.ReplaceAll(at, "/", ":"), func(t *testing.T) {
			t.Parallel()
			outside := t.TempDir()
			mustWrite(t, outside+"/data/file", "not ours")
			mustWrite(t, outside+"/record.json", "{}")
			before := tree(t, outside, nil)
			d := t.TempDir()
			t.Run("source", func(t *testing.T) { sourceVolume(t, openStore(t, d), d) })
			inSource := strings.HasPrefix(at, "src/")
			if !inSource && exists(filepath.Join(d, at)) {
				if err := os.RemoveAll(filepath.Join(d, at)); err != nil {
					t.Fatal(err)
				}
				mustSymlink(t, outside, filepath.Join(d, at))
				wantError(t, openError(t, d, testOptions), nfs.ErrForeign, at)
			} else {
				s := openStore(t, d, quickLease)
				mustSymlink(t, outside, filepath.Join(d, at))
				snapErr := func() error { _, err := s.CreateSnapshot(t.Context(), "snap", "src"); return err }()
				_, copyErr := untilCreated(t, s, cloneSpec("copy", "copy", fromVolume))
				if err := s.scanJobs(t.Context()); err != nil {
					t.Error(err)
				}
				if isSnapshot := strings.Contains(at, "snap"); isSnapshot != (snapErr != nil) || !inSource && isSnapshot == (copyErr != nil) {
					t.Errorf("the snapshot: %v; the copy: %v", snapErr, copyErr)
				}
				if inSource {
					rel, _ := filepath.Rel("src", at)
					if text, err := os.Readlink(filepath.Join(d, "copy", rel)); err != nil || text != outside {
						t.Errorf("the link in the copy: %q, %v", text, err)
					}
				}
				_ = s.DeleteSnapshot(t.Context(), "snap")
				_ = s.DeleteVolume(t.Context(), "copy", "")
			}
			if at != ownDir+"/trash" {
				waitPurged(t, d)
			}
			if after := tree(t, outside, nil); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("outside: %v, before %v", after, before)
			}
		})
	}
}

// A volume that is written to all the time can be snapshotted, and every file in the
// snapshot is as it was at some moment.
func TestSnapshotUnderLoad(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	s := openStore(t, d)
	create(t, s, volumeSpec("src", "src"))
	write := func(file, round int) {
		// Renamed into place, so that each file has one letter in it at any moment.
		p := fmt.Sprintf("%s/src/%d", d, file)
		if err := errors.Join(os.WriteFile(p+".new", []byte(strings.Repeat(string(rune('a'+round%26)), 10_000)), 0o600), os.Rename(p+".new", p)); err != nil {
			t.Error(err)
		}
	}
	const files = 50
	for n := range files {
		write(n, 0)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for round := 1; ctx.Err() == nil; round++ {
			write(round%files, round)
		}
	}()
	snapshot(t, s, "snap", "src")
	stop()
	<-ended
	for n := range files {
		data, err := os.ReadFile(fmt.Sprintf("%s/%d", snapshotData(d, "snap"), n))
		if os.IsNotExist(err) {
			continue // It was being replaced, which the manifest counts.
		}
		if err != nil || len(data) != 10_000 || strings.Trim(string(data), string(data[0])) != "" {
			t.Errorf("file %d has %d bytes of several writes, %v", n, len(data), err)
		}
	}
}

// A process that cannot reach the server for longer than its lease stops, and another
// takes over, for as long as the first is stuck.
func TestLeaseTakenOver(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	if isNFS(t, d) {
		t.Skip("here both are one client, which keeps what one has open and the other removes, so that the copy is not complete before the first ends")
	}
	other := openStore(t, d, quickLease)
	want := sourceVolume(t, other, d)
	stuck, unstick := make(chan struct{}), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(unstick) })
	var hanging atomic.Bool
	var late atomic.Int64
	s := openStore(t, d, quickLease, func(o *Options) {
		o.hook = func(ctx context.Context, op, p string) error {
			if op == "create" && filepath.Base(p) == "large" && hanging.CompareAndSwap(false, true) {
				close(stuck)
			}
			if hanging.Load() && strings.Contains(p, "snapshot_snap") {
				<-unstick // As the kernel does, whatever the context says.
				late.Add(1)
			}
			return nil
		}
	})
	t.Cleanup(goOn) // or the store cannot be closed
	if _, err := s.CreateSnapshot(t.Context(), "snap", "src"); err != nil {
		t.Fatal(err)
	}
	<-stuck
	began := time.Now()
	v := snapshot(t, other, "snap", "src")
	if took := time.Since(began); took < 600*time.Millisecond {
		t.Errorf("the job was taken over after %s", took)
	}
	waitFor(t, "the second process to end", func() (bool, string) { b := other.Backlog(); return b.Jobs == 0, fmt.Sprintf("%+v", b) })
	before := scan(t, filepath.Join(d, ownDir, "snapshots"), nil)
	goOn()
	waitFor(t, "the first process to give up", func() (bool, string) { b := s.Backlog(); return b.Jobs == 0, fmt.Sprintf("%+v", b) })
	if late.Load() == 0 {
		t.Error("nothing was stuck")
	}
	compareTrees(t, want, scan(t, snapshotData(d, v.ID), nil), isNFS(t, d))
	compareTrees(t, before, scan(t, filepath.Join(d, ownDir, "snapshots"), nil), isNFS(t, d))
}

func TestLeaseName(t *testing.T) {
	for name, want := range map[string]leaseState{
		"lease.1": {n: 1, held: true}, "free.18446744073709551615": {n: 1<<64 - 1},
		"lease.": {}, "lease.-1": {}, "lease.01": {}, "free.1x": {}, "data": {}, "Lease.1": {}, "lease.18446744073709551616": {},
	} {
		got, ok := parseLease(name)
		if ok != (want.n > 0) || ok && got != want {
			t.Errorf("%q: %+v, %v; want %+v", name, got, ok, want)
		}
	}
}

// Of many that see one state, one replaces it, every time.
func TestLeaseSwap(t *testing.T) {
	t.Parallel()
	d := openTestDir(t, t.TempDir(), nil)
	state := leaseState{}
	for range 50 {
		type result struct {
			next leaseState
			err  error
		}
		results := make(chan result)
		for range 8 {
			go func() {
				next, err := state.swap(t.Context(), d, true)
				results <- result{next, err}
			}()
		}
		var won []leaseState
		for range 8 {
			r := <-results
			if r.err == nil {
				won = append(won, r.next)
			} else if !isLost(r.err) {
				t.Error(r.err)
			}
		}
		if len(won) != 1 || won[0].n != state.n+1 {
			t.Fatalf("after %+v: %+v", state, won)
		}
		state = won[0]
		if now, err := readLease(t.Context(), d); err != nil || now != state {
			t.Fatalf("read: %+v, %v; want %+v", now, err, state)
		}
	}
}

// Who looks at an export sees deleted snapshots in the trash, takes nothing of a volume
// that is still being copied for an orphan, and ends no copy.
func TestLookAtCopies(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	s, fail := failing(t, d)
	sourceVolume(t, s, d)
	snapshot(t, s, "snap", "src")
	errno := unix.EIO
	fail.Store(&errno)
	if _, err := s.CreateVolume(t.Context(), cloneSpec("copy", "copy", fromVolume)); !errors.Is(err, nfs.ErrBusy) {
		t.Fatalf("the copy: %v", err)
	}
	looker := openStore(t, d, passive)
	if state, err := runTask(t, looker, nfs.Task{Kind: nfs.TaskOrphans}); err != nil || len(state.Items) > 0 {
		t.Errorf("orphans: %+v, %v", state, err)
	}
	if b := looker.Backlog(); b.Jobs > 0 {
		t.Errorf("it is at work: %+v", b)
	}
	if err := looker.DeleteSnapshot(t.Context(), "snap"); err != nil {
		t.Fatal(err)
	}
	items := listItems(t, looker, nfs.ItemTrash)
	found := false
	for _, item := range items {
		found = found || isTree(item.Key) && strings.HasPrefix(item.Key, "snap.") && time.Since(item.Since) < time.Hour && exists(filepath.Join(d, item.Path, manifestName))
	}
	if !found {
		t.Errorf("in the trash: %+v", items)
	}
}
