package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	mountutils "k8s.io/mount-utils"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func newMountPool(t *testing.T, options Options, mounts ...mountutils.MountInfo) (*MountPool, *fakeHost) {
	t.Helper()
	checkLeaks(t)
	host := &fakeHost{mounts: mounts, unmounted: make(chan string, 10)}
	pool, err := NewMountPool(t.Context(), host, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closePool(t, pool) })
	return pool, host
}

// asked returns what the fake mounter wrote to the target, and its pid.
func asked(t *testing.T, target string) (text, pid string) {
	t.Helper()
	b, err := os.ReadFile(target)
	if err != nil {
		t.Fatal(err)
	}
	i := bytes.LastIndexByte(b, ' ')
	return string(b[:i]), string(b[i+1:])
}

func nfsMount(point, source string) mountutils.MountInfo {
	return mountutils.MountInfo{MountPoint: point, Source: source, FsType: "nfs4"}
}

// Mounts, binds and probes of one server share a worker; other servers have theirs.
func TestMountsByServer(t *testing.T) {
	dir := t.TempDir()
	pool, host := newMountPool(t, testOptions(),
		mountutils.MountInfo{MountPoint: "/", Source: "/dev/sda", FsType: "ext4"},
		nfsMount("/stage/a", "10.0.0.2:/data/a"), nfsMount("/stage/c", "[fd00::1]:/data/c"), nfsMount(dir, "10.0.0.2:/usage"))
	target := func(name string) string { return filepath.Join(dir, name) }
	list := nfs.Export{Server: "10.0.0.1,10.0.0.2", Share: "/data", Options: []string{"vers=4.1"}}
	six := nfs.Export{Server: "fd00::1", Share: "/data"}
	for name, err := range map[string]error{
		"mount a": pool.Mount(t.Context(), list, "a", target("a"), false),
		"mount c": pool.Mount(t.Context(), six, "", target("c"), true),
		"bind a":  pool.Bind(t.Context(), "/stage/a", target("ba"), true),
		"bind c":  pool.Bind(t.Context(), "/stage/c/below", target("bc"), false),
		"bind l":  pool.Bind(t.Context(), "/stage/aa", target("bl"), false),
	} {
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	pids := map[string]string{}
	for name, want := range map[string]string{
		"a":  "mount 10.0.0.1,10.0.0.2:/data a [vers=4.1] false",
		"c":  "mount [fd00::1]:/data  [] true",
		"ba": "bind /stage/a true",
		"bc": "bind /stage/c/below false",
		"bl": "bind /stage/aa false",
	} {
		text, pid := asked(t, target(name))
		if text != want {
			t.Errorf("%s: the worker was asked %q, want %q", name, text, want)
		}
		pids[name] = pid
	}
	if pids["a"] != pids["ba"] || pids["c"] != pids["bc"] || pids["a"] == pids["c"] || pids["bl"] == pids["a"] || pids["bl"] == pids["c"] {
		t.Errorf("workers are not by server: %v", pids)
	}
	usage, err := pool.Usage(t.Context(), dir)
	if err != nil || fmt.Sprint(usage.TotalBytes) != pids["a"] {
		t.Errorf("usage from worker %d, %v; want %s", usage.TotalBytes, err, pids["a"])
	}
	if err := pool.Unmount(t.Context(), "/stage/a"); err != nil {
		t.Error(err)
	}
	if got := <-host.unmounted; got != "/stage/a" {
		t.Errorf("unmounted %s, want /stage/a", got)
	}
	if got, err := pool.List(); err != nil || len(got) != len(host.mounts) {
		t.Errorf("list: %v, %v", got, err)
	}
}

func TestHungMountCostsOnlyItsServer(t *testing.T) {
	dir := t.TempDir()
	pool, _ := newMountPool(t, testOptions(), nfsMount(filepath.Join(dir, "dead"), "dead:/data"))
	dead, healthy := nfs.Export{Server: "dead", Share: "/data"}, nfs.Export{Server: "healthy", Share: "/data"}
	target := filepath.Join(dir, "target")
	makeFIFO(t, target+".fifo")
	ctx, cancel := context.WithCancel(t.Context())
	hung := background(func() error { return pool.Mount(ctx, dead, "", target, false) })
	waitFor(t, "the mount hangs", func() bool { _, err := os.Stat(target + ".fifo.waiting"); return err == nil }, func() string { return "" })

	if err := pool.Mount(t.Context(), dead, "", target, false); !errors.Is(err, nfs.ErrBusy) {
		t.Errorf("second mount at the target: %v, want ErrBusy", err)
	}
	cancel()
	if err := <-hung; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller's mount: %v, want context.Canceled", err)
	}
	if err := pool.Mount(t.Context(), dead, "", target+"/", false); !errors.Is(err, nfs.ErrBusy) {
		t.Errorf("mount while the abandoned one still waits: %v, want ErrBusy", err)
	}
	if err := pool.Mount(t.Context(), healthy, "", filepath.Join(dir, "other"), false); err != nil {
		t.Errorf("mount of another server: %v", err)
	}
	var err error
	waitFor(t, "the breaker opens", func() bool {
		_, err = pool.Usage(t.Context(), filepath.Join(dir, "dead"))
		return errors.Is(err, nfs.ErrUnavailable)
	}, func() string { return err.Error() })
	wantUnavailable(t, "probe of the dead server", err, "^export unavailable: server dead: Mount got no answer in 2s")
	if err := pool.Mount(t.Context(), healthy, "", filepath.Join(dir, "other2"), false); err != nil {
		t.Errorf("mount of another server: %v", err)
	}
}

// Nothing may appear at a place that was unmounted.
func TestUnmountGivesUpHungMount(t *testing.T) {
	options := testOptions()
	options.CallTimeout = time.Hour
	pool, host := newMountPool(t, options)
	target := filepath.Join(t.TempDir(), "target")
	makeFIFO(t, target+".fifo")
	e := nfs.Export{Server: "srv", Share: "/data"}
	hung := background(func() error { return pool.Mount(t.Context(), e, "", target, false) })
	waitFor(t, "the mount hangs", func() bool { _, err := os.Stat(target + ".fifo.waiting"); return err == nil }, func() string { return "" })

	if err := pool.Unmount(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	if got := <-host.unmounted; got != target {
		t.Errorf("unmounted %s, want %s", got, target)
	}
	wantUnavailable(t, "the mount given up", <-hung, "a mount that is not wanted any more")
	// The worker is gone: opening the other end of the FIFO wakes nobody.
	if err := os.Remove(target + ".fifo"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(target); err == nil {
		t.Error("the mount was made after the unmount")
	}
	// It is not held against the server.
	if err := pool.Mount(t.Context(), e, "", target, false); err != nil {
		t.Errorf("mount after that: %v", err)
	}
}

func TestOneProbePerMount(t *testing.T) {
	dir := t.TempDir()
	pool, _ := newMountPool(t, testOptions(), nfsMount(dir, "srv:/data"))
	fifo := filepath.Join(dir, "fifo")
	makeFIFO(t, fifo)
	usage := func(ctx context.Context) func() error {
		return func() error {
			_, err := pool.Usage(ctx, dir)
			return err
		}
	}
	first := background(usage(t.Context()))
	waitFor(t, "the probe hangs", func() bool { _, err := os.Stat(fifo + ".waiting"); return err == nil }, func() string { return "" })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	wantUnavailable(t, "caller in a hurry", usage(ctx)(), "got no answer in the caller's time")
	second := background(usage(t.Context()))
	wantUnavailable(t, "first", <-first, "Usage got no answer in 2s")
	wantUnavailable(t, "second", <-second, "Usage got no answer in 2s")
	probes, err := os.ReadFile(filepath.Join(dir, "probes"))
	if err != nil || len(probes) != 1 {
		t.Errorf("%d probes were made, %v; want 1", len(probes), err)
	}
}

func TestIdleMountWorkerIsStopped(t *testing.T) {
	options := testOptions()
	options.IdleTimeout = 100 * time.Millisecond
	pool, _ := newMountPool(t, options)
	target := filepath.Join(t.TempDir(), "target")
	if err := pool.Mount(t.Context(), nfs.Export{Server: "srv", Share: "/data"}, "", target, false); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "worker and keeper go", func() bool {
		pool.pool.mu.Lock()
		defer pool.pool.mu.Unlock()
		return len(pool.processes) == 0 && len(pool.keepers) == 0
	}, func() string { return "one is still there" })
}

func TestServerOf(t *testing.T) {
	for source, want := range map[string]string{
		"srv.example:/data":     "srv.example",
		"10.0.0.1:/a:/b":        "10.0.0.1",
		"[fd00::1]:/":           "fd00::1",
		"[fe80::1%eth0]:/data]": "fe80::1%eth0",
	} {
		if got := serverOf(source); got != want {
			t.Errorf("serverOf(%q) = %q, want %q", source, got, want)
		}
	}
}
