package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/connectivity"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/mount"
)

// The tests in this file work on the export LAB_EXPORT of the NFS server
// LAB_SERVER, and ask on standard output for faults of it: see TestLab.

// callTimeout is the pool's deadline where a server will not answer.
const callTimeout = 5 * time.Second

func realExport(t *testing.T, options ...string) nfs.Export {
	t.Helper()
	server := os.Getenv("LAB_SERVER")
	if server == "" {
		t.Skip("needs a real NFS server; run it with: LAB=1 go test ./pkg/nfs/worker/ -run TestLab")
	}
	e, err := nfs.NewExport(server, os.Getenv("LAB_EXPORT"), options)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func realOptions() Options {
	return Options{Command: command("system"), CallTimeout: callTimeout, StartTimeout: 2 * callTimeout,
		// An NFS client that ends may have to ask its server up to ten times, a second apart.
		StopTimeout: 10 * time.Second, StatusInterval: 500 * time.Millisecond,
		MinBackoff: time.Second, MaxBackoff: 4 * time.Second, Spare: true}
}

func spec(name string) nfs.VolumeSpec {
	return nfs.VolumeSpec{Name: name, Dir: name, MinBytes: 1 << 20, OnDelete: nfs.Delete, Mode: nfs.DefaultMode}
}

func TestRealStore(t *testing.T) {
	e := realExport(t)
	pool := newStorePool(t, StoreOptions{Options: realOptions(), InstanceID: "lab"})
	began := time.Now()
	s, err := pool.Open(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("first Open: %s", time.Since(began))
	var ids []string
	for i := range 20 {
		began := time.Now()
		v, err := s.CreateVolume(t.Context(), spec(fmt.Sprintf("pvc-%d", i)))
		if err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 {
			t.Logf("create: %s", time.Since(began))
		}
		ids = append(ids, v.ID)
	}
	defer func() {
		for _, id := range ids {
			if err := s.DeleteVolume(t.Context(), id, ""); err != nil {
				t.Error(err)
			}
		}
	}()
	began = time.Now()
	const gets = 100
	for range gets {
		if _, err := s.GetVolume(t.Context(), "pvc-3"); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("get: %s each", time.Since(began)/gets)
	if volumes, err := s.ListVolumes(t.Context(), "", 0); err != nil || len(volumes) != 20 {
		t.Errorf("%d volumes listed, %v; want 20", len(volumes), err)
	}

	k := pool.keeper(e, false)
	defer pool.release(k)
	k.mu.Lock()
	process := filepath.Join("/proc", strconv.Itoa(k.current.cmd.Process.Pid))
	k.mu.Unlock()

	want := "CapInh:0000000000000000 CapPrm:000000000000001b CapEff:000000000000001b CapBnd:0000000000000000 CapAmb:0000000000000000 NoNewPrivs:1"
	threads, err := filepath.Glob(process + "/task/*/status")
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads of the worker: %v, %v", threads, err)
	}
	for _, file := range threads {
		status, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := capabilities(string(status)); got != want {
			t.Errorf("%s:\n%s, want\n%s", file, got, want)
		}
		if !strings.Contains(string(status), "Umask:\t0000") {
			t.Errorf("%s: the umask is not 0:\n%s", file, status)
		}
	}
	for _, file := range []string{process + "/mountinfo", "/proc/self/mountinfo"} {
		if text, err := os.ReadFile(file); err != nil || strings.Contains(string(text), " nfs") {
			t.Errorf("%s: %v, it shows an NFS mount:\n%s", file, err, text)
		}
	}
	status, err := os.ReadFile(process + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	var kib int
	if _, err := fmt.Sscan(rest, &kib); err != nil || kib > 24<<10 {
		t.Errorf("the worker has %d KiB resident (%v), want at most 24 MiB", kib, err)
	}
	t.Logf("worker: %d KiB resident, %d threads", kib, len(threads))
}

func TestRealRefusals(t *testing.T) {
	for _, tc := range []struct {
		name  string
		share string
		opts  []string
		want  error
	}{
		{"no such share", "/export/nothing", nil, nfs.ErrNoExport},
		{"unknown option", "", []string{"bogus"}, nfs.ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := realExport(t, tc.opts...)
			if tc.share != "" {
				e.Share = tc.share
			}
			pool := newStorePool(t, StoreOptions{Options: realOptions()})
			_, err := pool.Open(t.Context(), e)
			if !errors.Is(err, tc.want) {
				t.Errorf("open: %v, want %v", err, tc.want)
			}
			t.Log(err)
		})
	}
}

func TestRealMissingCapability(t *testing.T) {
	e := realExport(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	options := realOptions()
	options.Command = func() *exec.Cmd {
		cmd := exec.Command("setpriv", "--inh-caps=-sys_admin", "--bounding-set=-sys_admin", self)
		cmd.Env = append(os.Environ(), roleEnv+"=system")
		return cmd
	}
	pool := newStorePool(t, StoreOptions{Options: options})
	_, err = pool.Open(t.Context(), e)
	if !errors.Is(err, nfs.ErrPermission) || !strings.Contains(err.Error(), "CAP_SYS_ADMIN") ||
		!strings.Contains(err.Error(), "securityContext.capabilities.add: [SYS_ADMIN]") {
		t.Errorf("open without the capability: %v", err)
	}
}

// A server that is down, or does not answer at all, while volumes are made.
func TestRealServerFails(t *testing.T) {
	for _, tc := range []struct{ name, fault, repair string }{
		{"NFS stopped", "stop", "start"},
		{"network cut", "cut", "restore"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := realExport(t)
			pool := newStorePool(t, StoreOptions{Options: realOptions(), InstanceID: "lab"})
			s, err := pool.Open(t.Context(), e)
			if err != nil {
				t.Fatal(err)
			}
			// Writers are in every kind of file operation when it happens.
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			slowest := make(chan time.Duration)
			for w := range 4 {
				go func() {
					var worst time.Duration
					for i := 0; ctx.Err() == nil; i++ {
						began := time.Now()
						v, err := s.CreateVolume(ctx, spec(fmt.Sprintf("%s-%d-%d", tc.fault, w, i)))
						if err == nil {
							err = s.DeleteVolume(ctx, v.ID, "")
						}
						worst = max(worst, time.Since(began))
						if err != nil && !errors.Is(err, nfs.ErrUnavailable) && ctx.Err() == nil {
							t.Errorf("while the server fails: %v, want ErrUnavailable", err)
						}
						if err != nil {
							<-time.After(10 * time.Millisecond)
						}
					}
					slowest <- worst
				}()
			}
			k := pool.keeper(e, false)
			defer pool.release(k)
			k.mu.Lock()
			first := k.current
			k.mu.Unlock()

			fault(t, tc.fault)
			began := time.Now()
			waitFor(t, "the worker is killed", func() bool { return countersOf(pool, e).kills > 0 }, func() string { return "no kill counted" })
			t.Logf("killed %s after the fault", time.Since(began))
			if !first.waitExited(10 * time.Second) {
				state, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", first.cmd.Process.Pid))
				t.Logf("the kernel still holds the worker 10 s after SIGKILL:\n%.200s", state)
			} else {
				t.Logf("gone %s after the fault", time.Since(began))
			}
			fast := time.Now()
			_, err = s.GetVolume(t.Context(), "pvc-1")
			t.Logf("next call after %s: %v", time.Since(fast), err)
			if !errors.Is(err, nfs.ErrUnavailable) {
				t.Errorf("next call: %v, want ErrUnavailable", err)
			}

			fault(t, tc.repair)
			began = time.Now()
			deadline := time.After(2 * time.Minute)
			for {
				_, err = s.GetVolume(t.Context(), "nothing-of-that-name")
				if errors.Is(err, nfs.ErrNotFound) {
					break
				}
				select {
				case <-deadline:
					t.Fatalf("no recovery in 2 min: %v", err)
				case <-time.After(100 * time.Millisecond):
				}
			}
			t.Logf("recovered %s after the repair", time.Since(began))
			cancel()
			var worst time.Duration
			for range 4 {
				worst = max(worst, <-slowest)
			}
			// A create and a delete may each wait for the start of a worker and for an answer.
			if limit := 2*(2*callTimeout+callTimeout) + 5*time.Second; worst > limit {
				t.Errorf("a create and delete took %s, want at most %s", worst, limit)
			}
			t.Logf("slowest create and delete: %s", worst)
			waitFor(t, "every former worker is gone", func() bool {
				pool.mu.Lock()
				defer pool.mu.Unlock()
				return len(pool.processes) <= 2 // The one that serves, and the spare.
			}, func() string { return fmt.Sprintf("%d processes", len(pool.processes)) })
		})
	}
}

func TestRealMounts(t *testing.T) {
	e := realExport(t)
	host := mount.New(mount.Options{})
	checkLeaks(t)
	pool, err := NewMountPool(t.Context(), host, realOptions())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closePool(t, pool) })
	// Mounts of the worker are seen by everybody in this mount namespace.
	stage, publish := t.TempDir(), t.TempDir()
	waitFor(t, "there is a spare", func() bool {
		pool.pool.mu.Lock()
		defer pool.pool.mu.Unlock()
		return pool.spare != nil
	}, func() string { return "" })

	began := time.Now()
	if err := pool.Mount(t.Context(), e, "", stage, false); err != nil {
		t.Fatal(err)
	}
	t.Logf("first mount: %s", time.Since(began))
	var binds []time.Duration
	for range 20 {
		began := time.Now()
		if err := pool.Bind(t.Context(), stage, publish, true); err != nil {
			t.Fatal(err)
		}
		binds = append(binds, time.Since(began))
		if err := pool.Unmount(t.Context(), publish); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(binds)
	t.Logf("bind: %s", binds[len(binds)/2])
	for range 3 {
		began := time.Now()
		again := t.TempDir()
		if err := pool.Mount(t.Context(), e, "", again, false); err != nil {
			t.Fatal(err)
		}
		t.Logf("another mount: %s", time.Since(began))
		if err := pool.Unmount(t.Context(), again); err != nil {
			t.Fatal(err)
		}
	}
	if err := pool.Bind(t.Context(), stage, publish, true); err != nil {
		t.Fatal(err)
	}
	if usage, err := pool.Usage(t.Context(), publish); err != nil || usage.TotalBytes < 200<<20 || usage.TotalBytes > 300<<20 {
		t.Errorf("usage: %+v, %v; want the export's 256 MiB", usage, err)
	}
	if err := os.WriteFile(filepath.Join(publish, "file"), nil, 0o600); err == nil {
		t.Error("the read-only bind can be written to")
	}

	fault(t, "stop")
	began = time.Now()
	_, err = pool.Usage(t.Context(), publish)
	wantUnavailable(t, "usage", err, "Usage got no answer in 5s")
	t.Logf("usage failed after %s", time.Since(began))
	began = time.Now()
	_, err = pool.Usage(t.Context(), publish)
	wantUnavailable(t, "usage", err, "next try in")
	if took := time.Since(began); took > time.Second {
		t.Errorf("the breaker took %s", took)
	}
	for _, target := range []string{publish, stage} {
		began := time.Now()
		if err := pool.Unmount(t.Context(), target); err != nil {
			t.Errorf("unmount with a dead server: %v", err)
		}
		t.Logf("unmount with a dead server: %s", time.Since(began))
	}
	fault(t, "start")
	waitFor(t, "mounts work again", func() bool {
		err = pool.Mount(t.Context(), e, "", stage, false)
		return err == nil
	}, func() string { return err.Error() })
	if err := pool.Unmount(t.Context(), stage); err != nil {
		t.Error(err)
	}
}

// What a worker adds to the first volume on an export, against a bare mount by
// this process.
func TestRealStartCost(t *testing.T) {
	e := realExport(t)
	mounter := mount.New(mount.Options{})
	const rounds = 5
	options := StoreOptions{Options: realOptions(), DriverName: "test.csi"}
	var bare, first, create []time.Duration
	for i := range rounds {
		began := time.Now()
		root, err := mounter.Detached(t.Context(), e, "", false)
		if err != nil {
			t.Fatal(err)
		}
		bare = append(bare, time.Since(began))
		if err := root.Close(); err != nil {
			t.Fatal(err)
		}

		pool, err := NewStorePool(t.Context(), options)
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the spare is ready", func() bool {
			pool.mu.Lock()
			spare := pool.spare
			pool.mu.Unlock()
			if spare == nil {
				return false
			}
			// It serves: the connection is ready only after the worker's first words.
			return spare.conn.GetState() == connectivity.Ready
		}, func() string { return "no spare" })
		began = time.Now()
		s, err := pool.Open(t.Context(), e)
		if err != nil {
			t.Fatal(err)
		}
		first = append(first, time.Since(began))
		if _, err := s.CreateVolume(t.Context(), spec(fmt.Sprintf("cost-%d", i))); err != nil {
			t.Fatal(err)
		}
		create = append(create, time.Since(began))
		closePool(t, pool)
	}
	t.Logf("bare mounts %v, first opens %v, opens and creates %v", bare, first, create)
	// The quickest of each is the one that nothing else on the machine slowed down.
	if got, limit := slices.Min(create), slices.Min(bare)*3/2+150*time.Millisecond; got > limit {
		t.Errorf("the first create takes %s, want at most %s: a bare mount takes %s", got, limit, slices.Min(bare))
	}

	// Only now: a server makes the next client wait while it takes back what it
	// had delegated to the one that was here before.
	pool := newStorePool(t, options)
	s, err := pool.Open(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	for i := range rounds {
		if err := s.DeleteVolume(t.Context(), nfs.RecordID(fmt.Sprintf("cost-%d", i)), ""); err != nil {
			t.Error(err)
		}
	}
}
