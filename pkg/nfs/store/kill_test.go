package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// job is what a child process of a test does: it is this test binary again.
type job struct {
	Dir    string
	Create *nfs.VolumeSpec   // or
	Delete string            // an id, or
	Update *nfs.VolumeChange // of the volume "pvc-1", or
	Hammer *hammerJob        // see hammer_test.go, or
	Copy   string            // the id of a copy, see copykill_test.go, or
	// SharedRounds are those of sharedHammer.
	SharedRounds, SharedSeed int
	// Expire waits for every archive that has a retention to be gone.
	Expire bool
	// Snapshot is the name of a snapshot of the volume "src" that is taken until it is
	// ready, and DeleteSnapshot the id of one.
	Snapshot, DeleteSnapshot string
	// WaitPurged waits for the trash to be empty at last.
	WaitPurged bool
	// KillAt is the file operation of the job before which the process kills
	// itself; 0 for none. With KillPurge those of the purge count, and no others, and
	// with KillAny all that the process does.
	KillAt             int
	KillPurge, KillAny bool
}

const jobEnv = "STORE_TEST_JOB"

type foregroundKey struct{}

// childMain runs the job in the environment, if there is one.
func childMain() bool {
	text := os.Getenv(jobEnv)
	if text == "" {
		return false
	}
	var j job
	err := json.Unmarshal([]byte(text), &j)
	if err == nil {
		err = j.run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

func (j job) run(ctx context.Context) error {
	if j.Copy != "" {
		return j.runCopy(ctx)
	}
	opts := testOptions
	quickLease(&opts)
	if j.Hammer != nil || j.SharedRounds > 0 {
		opts.purgeGrace = 0
	}
	ops := make(chan struct{}, 1<<20)
	opts.hook = func(ctx context.Context, op, path string) error {
		if j.KillAt == 0 || !j.KillAny && j.KillPurge == (ctx.Value(foregroundKey{}) != nil) {
			return nil
		}
		ops <- struct{}{}
		if len(ops) == j.KillAt {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	}
	root, err := os.OpenRoot(j.Dir)
	if err != nil {
		return err
	}
	s, err := Open(ctx, root, opts)
	if err != nil {
		return err
	}
	ctx = context.WithValue(ctx, foregroundKey{}, true)
	switch {
	case j.Create != nil:
		err = whileBusy(func() error {
			_, err := s.CreateVolume(ctx, *j.Create)
			return err
		})
	case j.Snapshot != "":
		err = j.takeSnapshot(ctx, s)
	case j.DeleteSnapshot != "":
		err = s.DeleteSnapshot(ctx, j.DeleteSnapshot)
	case j.Delete != "":
		err = s.DeleteVolume(ctx, j.Delete, "")
	case j.Update != nil:
		_, err = s.UpdateVolume(ctx, "pvc-1", *j.Update)
	case j.Hammer != nil:
		err = j.Hammer.run(ctx, s)
	case j.SharedRounds > 0:
		err = sharedHammer(ctx, s, j.Dir, j.SharedSeed, j.SharedRounds)
	}
	for (j.KillPurge || j.WaitPurged) && err == nil {
		left, globErr := filepath.Glob(filepath.Join(j.Dir, ownDir, "trash/*/*"))
		b := s.Backlog()
		if err = globErr; len(left) == 0 && (!j.Expire || b.Settled && b.NextExpiry.IsZero()) {
			break
		}
		if b := s.Backlog(); b.Failing > 0 {
			err = fmt.Errorf("the purge fails: %+v", b)
		}
		<-time.After(time.Millisecond)
	}
	return errors.Join(err, s.Close(), root.Close())
}

// runJob runs the job in a child and reports whether that was killed.
func runJob(t testing.TB, j job) (killed bool) {
	t.Helper()
	return runJobAs(t, j, os.Getuid())
}

func runJobAs(t testing.TB, j job, uid int) (killed bool) {
	t.Helper()
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	binary := os.Args[0]
	if uid != os.Getuid() { // who may not be allowed to reach the test binary
		binary = "/proc/self/fd/3"
	}
	cmd := exec.CommandContext(t.Context(), binary)
	if uid != os.Getuid() {
		f, err := os.Open(os.Args[0])
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = []*os.File{f}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	cmd.Env = append(os.Environ(), jobEnv+"="+string(text))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true
	}
	if err != nil {
		t.Fatalf("child: %v\n%s", err, out.String())
	}
	return false
}

// populated makes an export with neighbours of every kind and returns its path.
func populated(t testing.TB) string {
	t.Helper()
	dir := memDir(t)
	mustWrite(t, dir+"/someone's data/file", "theirs")
	mustWrite(t, dir+"/archived-old/file", "old")
	mustSymlink(t, "someone's data", dir+"/link")
	s := openStore(t, dir)
	for _, spec := range []nfs.VolumeSpec{
		volumeSpec("pvc-0", "pvc-0"), volumeSpec("pvc-11", "pvc-11"),
		volumeSpec("n1", "shared/n1"), volumeSpec("Odd #1", "odd #1 %41"),
	} {
		create(t, s, spec)
		mustWrite(t, filepath.Join(dir, spec.Dir, "sub/file"), spec.Name)
	}
	return dir
}

// neighbours is a tree of what none of the tests on the volume "pvc-1" may touch.
func neighbours(t testing.TB, dir string) []string {
	return tree(t, dir, func(p string) bool {
		return p == "pvc-1" || p == "team" || p == "shared/app" || strings.Contains(p, "pvc-1-") || strings.HasPrefix(p, "archived-pvc-1") ||
			strings.HasPrefix(p, ownDir+"/trash/") || strings.HasPrefix(p, ownDir+"/work/") || strings.HasPrefix(p, ownDir+"/archive/") ||
			p == ownDir+"/volumes/pvc-1.json" || strings.HasPrefix(p, ownDir+"/changes/pvc-1-") || p == ownDir+"/dirs/"+claimName("pvc-1") ||
			p == ownDir+"/dirs/"+claimName("team/app/pvc-1") || p == ownDir+"/dirs/"+claimName("shared/app/pvc-1")
	})
}

// killEach runs check after a child was killed before each single file operation
// of the job that prepare gives for a fresh export.
func killEach(t *testing.T, least int, prepare func(t *testing.T) job, check func(t *testing.T, dir string)) {
	for n := 1; ; n++ {
		killed := true
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			j := prepare(t)
			j.KillAt = n
			before := neighbours(t, j.Dir)
			killed = runJob(t, j)
			check(t, j.Dir)
			if diff := cmp.Diff(before, neighbours(t, j.Dir)); diff != "" {
				t.Errorf("neighbours changed (-before +after):\n%s", diff)
			}
			consistent(t, j.Dir)
		})
		if t.Failed() {
			return
		}
		if !killed {
			if n <= least {
				t.Fatalf("the job took %d file operations, want more than %d: is the hook called?", n-1, least)
			}
			t.Logf("%d file operations", n-1)
			return
		}
	}
}

func TestKillCreate(t *testing.T) {
	for _, dir := range []string{"pvc-1", "team/app/pvc-1", "shared/app/pvc-1"} {
		t.Run(strings.ReplaceAll(dir, "/", ":"), func(t *testing.T) {
			t.Parallel()
			spec := with(volumeSpec("pvc-1", dir), func(s *nfs.VolumeSpec) { s.Mode = 0o2770 | os.ModeSetgid })
			spec.Mode = nfs.FileMode(0o2770)
			if os.Getuid() == 0 {
				id := uint32(4711)
				spec.UID = &id
			}
			var before []string
			killEach(t, 8, func(t *testing.T) job {
				d := populated(t)
				before = tree(t, d, ignoreTimesOf)
				return job{Dir: d, Create: &spec}
			}, func(t *testing.T, d string) {
				s := openStore(t, d)
				create(t, s, spec)
				st, err := os.Stat(filepath.Join(d, dir))
				if err != nil || nfs.UnixMode(st.Mode()) != 0o2770 {
					t.Fatalf("the directory: %v, %v", st, err)
				}
				if spec.UID != nil && st.Sys().(*syscall.Stat_t).Uid != *spec.UID {
					t.Errorf("the owner is %d", st.Sys().(*syscall.Stat_t).Uid)
				}
				if entries, err := os.ReadDir(filepath.Join(d, dir)); err != nil || len(entries) != 0 {
					t.Errorf("in the directory: %v, %v", entries, err)
				}
				mustWrite(t, filepath.Join(d, dir, "file"), "use")
				checkWorkIsCleared(t, d)
				remove(t, s, "pvc-1")
				waitPurged(t, d)
				after := tree(t, d, func(p string) bool {
					// Documented: parents that a killed create has made stay.
					return dir != "pvc-1" && (p == "team" || p == "shared/app") || ignoreTimesOf(p)
				})
				if diff := cmp.Diff(before, after); diff != "" {
					t.Errorf("after all (-before +after):\n%s", diff)
				}
			})
		})
	}
}

func ignoreTimesOf(p string) bool {
	return strings.HasPrefix(p, ownDir+"/work/") || strings.HasPrefix(p, ownDir+"/trash/")
}

// checkWorkIsCleared has a new store find the temporary files an hour old.
func checkWorkIsCleared(t *testing.T, dir string) {
	t.Helper()
	work := filepath.Join(dir, ownDir, "work")
	entries, err := os.ReadDir(work)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) > 1 {
		t.Errorf("temporary files: %v", entries)
	}
	old := time.Now().Add(-workAge - time.Minute)
	for _, e := range entries {
		if err := os.Chtimes(filepath.Join(work, e.Name()), old, old); err != nil {
			t.Fatal(err)
		}
	}
	openStore(t, dir, withGrace)
	waitFor(t, "work/ to be cleared", func() (bool, string) {
		entries, err := os.ReadDir(work)
		return err == nil && len(entries) == 0, fmt.Sprint(entries, err)
	})
}

// dieAt runs f as long as the n-th file operation of it has not come, and then
// never again: for the file system that is what SIGKILL is, without the cost of
// a process. It reports whether it came to that.
func dieAt(t testing.TB, dir string, n int, f func(ctx context.Context, s *Store), change ...func(*Options)) (died bool) {
	t.Helper()
	ops := 0
	s := openStore(t, dir, append([]func(*Options){withGrace, func(o *Options) {
		o.hook = func(ctx context.Context, op, path string) error {
			if ctx.Value(foregroundKey{}) == nil {
				return nil
			}
			if ops++; ops == n {
				died = true
				runtime.Goexit()
			}
			return nil
		}
	}}, change...)...)
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(context.WithValue(t.Context(), foregroundKey{}, true), s)
	}()
	<-done
	return died
}

// A create is killed, its retry too, and the next succeeds.
func TestKillCreateTwice(t *testing.T) {
	t.Parallel()
	spec := volumeSpec("pvc-1", "pvc-1")
	createVolume := func(ctx context.Context, s *Store) {
		if _, err := s.CreateVolume(ctx, spec); err != nil {
			t.Error(err)
		}
	}
	for n := 1; ; n++ {
		for m := 1; ; m++ {
			var diedFirst, diedThen bool
			t.Run(fmt.Sprintf("%d+%d", n, m), func(t *testing.T) {
				d := memDir(t)
				diedFirst = dieAt(t, d, n, createVolume)
				diedThen = dieAt(t, d, m, createVolume)
				s := openStore(t, d)
				create(t, s, spec)
				consistent(t, d)
				remove(t, s, "pvc-1")
				waitPurged(t, d)
				for _, name := range leftovers(t, d) {
					if !strings.HasPrefix(name, "work/") {
						t.Errorf("left %s", name)
					}
				}
			})
			switch {
			case t.Failed() || !diedFirst:
				return
			case diedThen:
				continue
			}
			break
		}
	}
}

func TestKillDelete(t *testing.T) {
	for _, onDelete := range []nfs.OnDelete{nfs.Delete, nfs.Retain, nfs.Archive} {
		for _, dir := range []string{"pvc-1", "team/app/pvc-1", "shared/app/pvc-1"} {
			t.Run(fmt.Sprintf("%s:%s", onDelete, strings.ReplaceAll(dir, "/", ":")), func(t *testing.T) {
				t.Parallel()
				spec := with(volumeSpec("pvc-1", dir), func(s *nfs.VolumeSpec) { s.OnDelete = onDelete })
				var base []string
				killEach(t, 4, func(t *testing.T) job {
					d := populated(t)
					s := openStore(t, d)
					base = leftovers(t, d)
					create(t, s, spec)
					mustWrite(t, filepath.Join(d, dir, "sub/file"), "data")
					return job{Dir: d, Delete: "pvc-1"}
				}, func(t *testing.T, d string) {
					s := openStore(t, d)
					remove(t, s, "pvc-1")
					waitPurged(t, d)
					checkDeleted(t, s, d, spec, base)
				})
			})
		}
	}
}

// checkDeleted checks that the volume is gone as its onDelete says, that of the
// store's own only base is left, and that its place is free.
func checkDeleted(t *testing.T, s *Store, d string, spec nfs.VolumeSpec, base []string) {
	t.Helper()
	if _, err := s.GetVolume(t.Context(), "pvc-1"); !errors.Is(err, nfs.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	var left []string
	for _, name := range leftovers(t, d) {
		if !strings.HasPrefix(name, "archive/pvc-1-") && !strings.HasPrefix(name, "work/") {
			left = append(left, name)
		}
	}
	if diff := cmp.Diff(base, left); diff != "" {
		t.Errorf("of the store's own (-want +left):\n%s", diff)
	}
	place := filepath.Join(d, spec.Dir)
	archives, err := filepath.Glob(filepath.Join(filepath.Dir(place), "archived-pvc-1-*"))
	if err != nil {
		t.Fatal(err)
	}
	switch spec.OnDelete {
	case nfs.Retain:
		if data, err := os.ReadFile(place + "/sub/file"); err != nil || string(data) != "data" {
			t.Errorf("retained: %q, %v", data, err)
		}
		_, err := s.CreateVolume(t.Context(), spec)
		wantError(t, err, nfs.ErrForeign)
		return
	case nfs.Archive:
		if len(archives) != 1 {
			t.Fatalf("archives: %v", archives)
		}
		if data, err := os.ReadFile(archives[0] + "/sub/file"); err != nil || string(data) != "data" {
			t.Errorf("archived: %q, %v", data, err)
		}
	default:
		if len(archives) != 0 || exists(place) || spec.Dir != "pvc-1" && exists(filepath.Dir(place)) {
			t.Errorf("left: archives %v, place %v, parent %v", archives, exists(place), exists(filepath.Dir(place)))
		}
	}
	// Its place is free, for a volume of another name as well.
	other := spec
	other.Name, other.OnDelete = "pvc-1-again", nfs.Delete
	create(t, s, other)
	remove(t, s, "pvc-1-again")
	waitPurged(t, d)
}

// Purging is killed at each operation, and a new store ends it.
func TestKillPurge(t *testing.T) {
	t.Parallel()
	spec := volumeSpec("pvc-1", "pvc-1")
	killEach(t, 10, func(t *testing.T) job {
		d := populated(t)
		create(t, openStore(t, d), spec)
		mustWrite(t, d+"/pvc-1/a/file", "x")
		mustWrite(t, d+"/pvc-1/file", "x")
		return job{Dir: d, Delete: "pvc-1", KillPurge: true}
	}, func(t *testing.T, d string) {
		s := openStore(t, d)
		remove(t, s, "pvc-1") // it may have been killed before the delete itself
		waitPurged(t, d)
		if exists(d+"/pvc-1") || exists(filepath.Join(d, ownDir, "dirs", claimName("pvc-1"))) {
			t.Error("something is left")
		}
	})
}
