package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// needLab skips a test that starts guests unless they are asked for.
func needLab(t *testing.T) {
	t.Helper()
	if os.Getenv("LAB") != "1" {
		t.Skip("starts virtual machines and needs root; run it with: LAB=1 go test ./test/lab/")
	}
}

// testLog sends the lab's lines to the test's log.
type testLog struct{ t *testing.T }

func (w testLog) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

func startLab(t *testing.T) *Lab {
	t.Helper()
	l, err := Start(t.Context(), Options{Name: "test", LogDir: t.TempDir(), Log: testLog{t}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		if _, err := os.Stat(l.dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the lab's directory is still there: %v", err)
		}
		if _, err := os.Stat(l.net.path()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the lab's network is still there: %v", err)
		}
	})
	return l
}

// trio is what most tests need: a server with every kind of export and two clients.
type trio struct {
	lab     *Lab
	server  *Server
	clients [2]*Guest
}

func startTrio(t *testing.T) *trio {
	t.Helper()
	x := &trio{lab: startLab(t)}
	var errs [3]error
	var wg sync.WaitGroup
	began := time.Now()
	wg.Go(func() {
		x.server, errs[2] = x.lab.StartServer(t.Context(), ServerSpec{Exports: []ExportSpec{
			{Path: "/export/tmpfs", FS: Tmpfs, SizeMB: 256},
			{Path: "/export/ext4", FS: Ext4},
			{Path: "/export/xfs", FS: XFS},
		}})
	})
	for i := range x.clients {
		wg.Go(func() {
			x.clients[i], errs[i] = x.lab.StartGuest(t.Context(), GuestSpec{Name: fmt.Sprintf("client%d", i+1)})
		})
	}
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	t.Logf("a server and two clients: %v", time.Since(began).Round(time.Millisecond))
	return x
}

// sh runs a line of shell and returns its output without the last newline.
func sh(t *testing.T, g *Guest, line string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := g.Output(ctx, "sh", "-ec", line)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimRight(out, "\n")
}

func TestLab(t *testing.T) {
	needLab(t)
	defer goleak.VerifyNone(t)
	t.Run("guests", func(t *testing.T) {
		x := startTrio(t)
		t.Run("commands", func(t *testing.T) { testCommands(t, x.clients[0]) })
		t.Run("files", func(t *testing.T) { testFiles(t, x) })
		t.Run("network", func(t *testing.T) { testNetwork(t, x) })
		t.Run("mounts", func(t *testing.T) { testMounts(t, x) })
		t.Run("faults", func(t *testing.T) { testFaults(t, x) })
		t.Run("shutdown", func(t *testing.T) { testShutdown(t, x) })
		t.Run("watchdog", func(t *testing.T) { testWatchdog(t, x.lab) })
	})
}

func testCommands(t *testing.T, g *Guest) {
	ctx := t.Context()
	t.Run("output and exit code", func(t *testing.T) {
		var stdout, stderr bytes.Buffer
		err := g.Run(ctx, Cmd{
			Args: []string{"sh", "-c", `echo "$WORD $(pwd)"; echo oops >&2; cat; exit 42`},
			Env:  []string{"WORD=hello"}, Dir: "/usr", Stdin: strings.NewReader("from stdin\n"),
			Stdout: &stdout, Stderr: &stderr,
		})
		var exit *ExitError
		if !errors.As(err, &exit) || exit.Code != 42 {
			t.Errorf("error %v, want exit code 42", err)
		}
		if got, want := stdout.String(), "hello /usr\nfrom stdin\n"; got != want {
			t.Errorf("stdout %q, want %q", got, want)
		}
		if got, want := stderr.String(), "oops\n"; got != want {
			t.Errorf("stderr %q, want %q", got, want)
		}
		if exit != nil && !strings.Contains(exit.Error(), "oops") {
			t.Errorf("error %q has not the output", exit)
		}
	})
	t.Run("no such program", func(t *testing.T) {
		var exit *ExitError
		if err := g.Run(ctx, Cmd{Args: []string{"no-such-program"}}); !errors.As(err, &exit) || exit.Code != 127 {
			t.Errorf("error %v, want exit code 127", err)
		}
	})
	t.Run("much output", func(t *testing.T) {
		const size = 8 << 20
		began := time.Now()
		out, err := g.Output(ctx, "head", "-c", fmt.Sprint(size), "/dev/zero")
		if err != nil || len(out) != size {
			t.Errorf("%d bytes and error %v, want %d", len(out), err, size)
		}
		t.Logf("%d MiB of output: %v", size>>20, time.Since(began).Round(time.Millisecond))
	})
	t.Run("much input", func(t *testing.T) {
		const size = 1 << 20
		var out bytes.Buffer
		began := time.Now()
		err := g.Run(ctx, Cmd{Args: []string{"wc", "-c"}, Stdin: bytes.NewReader(make([]byte, size)), Stdout: &out})
		if err != nil || strings.TrimSpace(out.String()) != fmt.Sprint(size) {
			t.Errorf("%q and error %v, want %d", out.String(), err, size)
		}
		t.Logf("%d MiB of input: %v", size>>20, time.Since(began).Round(time.Millisecond))
	})
	t.Run("signal", func(t *testing.T) {
		ready := make(chan struct{})
		p, err := g.Start(ctx, Cmd{
			Args:   []string{"sh", "-c", `trap "exit 7" TERM; echo ready; while :; do sleep 0.05; done`},
			Stdout: writerFunc(func([]byte) { close(ready) }),
		})
		if err != nil {
			t.Fatal(err)
		}
		<-ready
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		var exit *ExitError
		if err := p.Wait(ctx); !errors.As(err, &exit) || exit.Code != 7 {
			t.Errorf("error %v, want exit code 7", err)
		}
	})
	t.Run("context", func(t *testing.T) {
		short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		err := g.Run(short, Cmd{Args: []string{"sh", "-c", "sleep 4711; true"}})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want a deadline", err)
		}
		if out, err := g.Output(ctx, "pgrep", "-f", "sleep 4711"); err == nil {
			t.Errorf("the command or its child still runs: %s", out)
		}
	})
	t.Run("daemon", func(t *testing.T) {
		began := time.Now()
		out, err := g.Output(ctx, "sh", "-c", "sleep 30 & echo started")
		if err != nil || out != "started\n" || time.Since(began) > 5*time.Second {
			t.Errorf("output %q and error %v after %v", out, err, time.Since(began))
		}
	})
	t.Run("many at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				out, err := g.Output(ctx, "sh", "-c", fmt.Sprintf("echo %d; sleep 0.1; echo %d", i, i))
				if want := fmt.Sprintf("%d\n%d\n", i, i); err != nil || out != want {
					t.Errorf("output %q and error %v, want %q", out, err, want)
				}
			})
		}
		wg.Wait()
	})
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

func testFiles(t *testing.T, x *trio) {
	g := x.clients[0]
	sh(t, g, "echo result > /out/result.txt")
	got, err := os.ReadFile(filepath.Join(x.lab.OutDir(), "result.txt"))
	if err != nil || string(got) != "result\n" {
		t.Errorf("result %q and error %v", got, err)
	}
	script := filepath.Join(t.TempDir(), "script")
	for _, word := range []string{"one", "two"} {
		if err := os.WriteFile(script, []byte("#!/bin/sh\necho "+word+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := g.PutFile(t.Context(), script, "/opt/dir/script"); err != nil {
			t.Fatal(err)
		}
		if got := sh(t, g, "/opt/dir/script"); got != word {
			t.Errorf("the script says %q, want %q", got, word)
		}
	}
	if got := sh(t, g, GuestPath(script)); got != "two" {
		t.Errorf("the script in /host says %q, want two", got)
	}
	// Writing in the guest leaves the host alone, and so does a mount of the host's files.
	probe := "/usr/lab-probe"
	sh(t, g, "echo x > "+probe)
	sh(t, g, "mkdir -p /mnt/host && mount -t hostfs -o /usr none /mnt/host && ! touch /mnt/host/lab-probe 2>&1; umount /mnt/host")
	if _, err := os.Stat(probe); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the guest wrote to the host: %v", err)
	}
	for _, dir := range []string{"/tmp", "/run", "/var/lib", "/var/lib/kubelet", "/etc", "/mnt/new"} {
		sh(t, g, "mkdir -p "+dir+" && touch "+dir+"/probe && rm "+dir+"/probe")
	}
	if got := sh(t, g, "grep ' / / ' /proc/self/mountinfo"); !strings.Contains(got, "shared:") {
		t.Errorf("the root mount is not shared: %s", got)
	}
}

func testNetwork(t *testing.T, x *trio) {
	for _, g := range x.clients {
		if got := sh(t, g, "hostname"); got != g.Name() {
			t.Errorf("host name %q, want %q", got, g.Name())
		}
		for _, other := range []string{"server", "client1", "client2", "host", x.server.IPv4(), x.server.IPv6()} {
			sh(t, g, "busybox ping -c1 -W5 "+other)
		}
		sh(t, g, "busybox ping6 -c1 -W5 server")
	}
}

func testMounts(t *testing.T, x *trio) {
	for _, export := range []string{"tmpfs", "ext4", "xfs"} {
		for _, options := range []string{"vers=3,nolock", "vers=4.0", "vers=4.1", "vers=4.2"} {
			servers := []string{"server"}
			if export == "xfs" {
				servers = append(servers, "["+x.server.IPv6()+"]")
			}
			for _, server := range servers {
				t.Run(fmt.Sprintf("%s %s %s", export, options, server), func(t *testing.T) {
					source := fmt.Sprintf("%s:/export/%s", server, export)
					word := strings.ReplaceAll(t.Name(), "/", "_")
					for _, g := range x.clients {
						sh(t, g, fmt.Sprintf("mkdir -p /mnt/x && mount -t nfs -o %s,noac '%s' /mnt/x", options, source))
					}
					sh(t, x.clients[0], fmt.Sprintf("echo '%s' > /mnt/x/file && sync /mnt/x/file", word))
					if got := sh(t, x.clients[1], "cat /mnt/x/file"); got != word {
						t.Errorf("the other client reads %q, want %q", got, word)
					}
					if got := sh(t, x.server.Guest, "cat /export/"+export+"/file"); got != word {
						t.Errorf("the server reads %q, want %q", got, word)
					}
					for _, g := range x.clients {
						sh(t, g, "umount /mnt/x")
					}
				})
			}
		}
	}
	t.Run("reflink", func(t *testing.T) {
		g := x.clients[0]
		sh(t, g, "mount -t nfs -o vers=4.2 server:/export/xfs /mnt/x && head -c 8M /dev/urandom > /mnt/x/a && "+
			"cp --reflink=always /mnt/x/a /mnt/x/b && cmp /mnt/x/a /mnt/x/b; umount /mnt/x")
	})
}

func testFaults(t *testing.T, x *trio) {
	ctx := t.Context()
	g := x.clients[0]
	sh(t, g, "mount -t nfs -o vers=4.2,soft,timeo=10,retrans=1 server:/export/xfs /mnt/x && echo before > /mnt/x/kept")
	// alive does I/O that cannot be answered from a cache.
	alive := func(ctx context.Context) error {
		return g.Run(ctx, Cmd{Args: []string{"sh", "-ec", "date +%N > /mnt/x/alive; sync /mnt/x/alive"}})
	}
	mustLive := func(t *testing.T) {
		t.Helper()
		// A soft mount gives up during the grace period, so ask again.
		deadline := time.Now().Add(45 * time.Second)
		for {
			err := alive(ctx)
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("the mount does not come back: %v", err)
			}
		}
	}
	mustHang := func(t *testing.T) {
		t.Helper()
		short, cancel := context.WithTimeout(ctx, 4*time.Second)
		defer cancel()
		if err := alive(short); err == nil {
			t.Fatal("the mount works without its server")
		}
	}
	mustLive(t)
	t.Run("StopNFS", func(t *testing.T) {
		if err := x.server.StopNFS(ctx); err != nil {
			t.Fatal(err)
		}
		mustHang(t)
		sh(t, g, "busybox ping -c1 -W5 server")
		if err := x.server.StartNFS(ctx); err != nil {
			t.Fatal(err)
		}
		mustLive(t)
	})
	t.Run("CutNetwork", func(t *testing.T) {
		if err := x.server.CutNetwork(ctx); err != nil {
			t.Fatal(err)
		}
		sh(t, g, "! busybox ping -c1 -W1 server")
		sh(t, x.server.Guest, "true")
		mustHang(t)
		if err := x.server.RestoreNetwork(ctx); err != nil {
			t.Fatal(err)
		}
		mustLive(t)
	})
	t.Run("Freeze", func(t *testing.T) {
		before := sh(t, x.server.Guest, "cat /proc/uptime")
		if err := x.server.Freeze(); err != nil {
			t.Fatal(err)
		}
		sh(t, g, "! busybox ping -c1 -W1 server")
		mustHang(t)
		if err := x.server.Thaw(); err != nil {
			t.Fatal(err)
		}
		mustLive(t)
		t.Logf("uptime of the server %s before, %s after", before, sh(t, x.server.Guest, "cat /proc/uptime"))
	})
	t.Run("Kill", func(t *testing.T) {
		sh(t, x.server.Guest, "echo gone > /export/tmpfs/gone")
		p, err := x.server.Start(ctx, Cmd{Args: []string{"sleep", "1000"}})
		if err != nil {
			t.Fatal(err)
		}
		kernel, address := x.server.vm.kernelPID, x.server.IPv4()
		if err := x.server.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(ctx); !errors.Is(err, errGone) {
			t.Errorf("the command of the killed guest: %v", err)
		}
		if err := syscall.Kill(-kernel, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("processes are left: %v", err)
		}
		if err := x.server.Run(ctx, Cmd{Args: []string{"true"}}); err == nil {
			t.Error("a command of a killed guest succeeds")
		}
		began := time.Now()
		if err := x.server.Restart(ctx); err != nil {
			t.Fatal(err)
		}
		t.Logf("server again after %v", time.Since(began).Round(time.Millisecond))
		if x.server.IPv4() != address {
			t.Errorf("address %s, want %s", x.server.IPv4(), address)
		}
		began = time.Now()
		mustLive(t)
		t.Logf("mount again after %v", time.Since(began).Round(time.Millisecond))
		if got := sh(t, g, "cat /mnt/x/kept"); got != "before" {
			t.Errorf("the disk has %q", got)
		}
		sh(t, x.server.Guest, "! test -e /export/tmpfs/gone")
	})
	sh(t, g, "umount /mnt/x")
}

func testShutdown(t *testing.T, x *trio) {
	sh(t, x.server.Guest, "echo flushed > /export/ext4/flushed")
	if err := x.server.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if x.server.Running() {
		t.Error("the server still runs")
	}
	if err := x.server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := sh(t, x.server.Guest, "cat /export/ext4/flushed"); got != "flushed" {
		t.Errorf("the disk has %q", got)
	}
}

// testWatchdog: a guest that stands still is ended, and what waits for it hears why.
func testWatchdog(t *testing.T, l *Lab) {
	l.watchdog = watchdog{interval: 300 * time.Millisecond, kick: 8, reset: 20, death: 300 * time.Millisecond, undead: 3}
	hung := filepath.Join(t.TempDir(), "hung")
	t.Setenv(hungVariable, hung)
	mustHang := func(t *testing.T, g *Guest, err error, want string) {
		t.Helper()
		if !errors.Is(err, errHung) || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one that says it hung, and %q", err, want)
		}
		if g.Running() {
			t.Error("it runs still")
		}
		if said, err := os.ReadFile(hung); err != nil || !strings.Contains(string(said), want) {
			t.Errorf("%s says %q (%v), want %q", hungVariable, said, err, want)
		}
		if err := os.Remove(hung); err != nil {
			t.Error(err)
		}
	}
	t.Run("file system", func(t *testing.T) {
		s, err := l.StartServer(t.Context(), ServerSpec{Name: "stuck", Exports: []ExportSpec{{Path: "/export/ext4", FS: Ext4}}})
		if err != nil {
			t.Fatal(err)
		}
		sh(t, s.Guest, "fsfreeze -f /export/ext4")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err = s.Run(ctx, Cmd{Args: []string{"touch", "/export/ext4/file"}})
		mustHang(t, s.Guest, err, "task:touch")
	})
	for _, tt := range []struct {
		name string
		stop func(g *Guest) error
		want string
	}{
		{"kernel", func(g *Guest) error { return syscall.Kill(g.vm.kernelPID, syscall.SIGSTOP) }, "its kernel does not answer"},
		{"agent", func(g *Guest) error {
			// The agent is the parent of all commands; its answer about this one cannot come.
			_, err := g.Start(t.Context(), Cmd{Args: []string{"sh", "-c", "kill -STOP $PPID"}})
			return err
		}, "its kernel answers"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, err := l.StartGuest(t.Context(), GuestSpec{Name: "still"})
			if err != nil {
				t.Fatal(err)
			}
			if err := tt.stop(g); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err = g.Run(ctx, Cmd{Args: []string{"sleep", "1000"}})
			mustHang(t, g, err, tt.want)
		})
	}
}
