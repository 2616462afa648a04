package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

// A cluster lives in the process that started it. To keep one, that process runs
// in the background from its start: the one in the foreground shows its output,
// and holds it on a leash, so that it stops when the foreground does, whatever
// the reason. When the cluster is to stay, it drops the leash and the output.

// stateFile says which demo runs on this machine. That demo has it locked, so what
// a demo leaves that was killed means nothing.
const stateFile = "/run/nfs-csi-demo.json"

type state struct {
	PID    int
	Kept   string // what a person has to know of a kept cluster; empty before
	Socket string // where a kept cluster answers "demo server"
}

// claim makes this process the demo that runs, or says what to do about the one that does.
func claim(path string) (release func(), err error) {
	s, release, err := lock(path)
	if err != nil {
		return nil, err
	}
	if release == nil {
		if s.Kept != "" {
			return nil, fmt.Errorf("the cluster of an earlier demo is up: use it, or end it with `make demo-stop`\n%s", s.Kept)
		}
		return nil, fmt.Errorf("another demo runs (process %d): wait until it ends, or stop it with `make demo-stop`", s.PID)
	}
	if err := (state{PID: os.Getpid()}).write(path); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// lock locks the state, or returns that of the demo that has it.
func lock(path string) (state, func(), error) {
	once, cancel := context.WithCancel(context.Background())
	cancel()
	release, err := lab.LockFile(once, path)
	if err == nil {
		return state{}, release, nil
	}
	if !errors.Is(err, context.Canceled) {
		return state{}, nil, fmt.Errorf("look for a demo that runs: %w", err)
	}
	s, err := readState(path)
	return s, nil, err
}

func readState(path string) (s state, err error) {
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return s, fmt.Errorf("look for the demo that runs: %s: %w", path, err)
	}
	return s, nil
}

func (s state) write(path string) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	// In place: the lock is on this very file.
	return os.WriteFile(path, data, 0o600)
}

// stop ends the demo that runs, and returns when nothing of it is left.
func stop(ctx context.Context, out io.Writer) error {
	s, release, err := lock(stateFile)
	if err != nil {
		return err
	}
	if release == nil {
		fmt.Fprintf(out, "Stopping the demo (process %d).\n", s.PID)
		if err := unix.Kill(s.PID, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("stop process %d: %w", s.PID, err)
		}
		wait, cancel := context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
		if release, err = lab.LockFile(wait, stateFile); err != nil {
			return fmt.Errorf("process %d does not end: %w", s.PID, err)
		}
	}
	defer release()
	lab.RemoveLeftovers(ctx, out)
	fmt.Fprintln(out, "No demo runs.")
	return nil
}

// detach runs a demo as a process of its own, shows what it tells, and returns when
// it has ended, with its error, or when its cluster is kept. When ctx ends, so does the demo.
func detach(ctx context.Context, demo *exec.Cmd, path string, out io.Writer) error {
	leash, err := demo.StdinPipe()
	if err != nil {
		return err
	}
	defer leash.Close()
	output, err := demo.StdoutPipe()
	if err != nil {
		return err
	}
	demo.Stderr = demo.Stdout
	// Ctrl-C is for this process.
	demo.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := demo.Start(); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { leash.Close() })()
	if _, err := io.Copy(out, output); err != nil {
		leash.Close() // the terminal is gone
		_, _ = io.Copy(io.Discard, output)
	}
	if s, err := readState(path); err == nil && s.PID == demo.Process.Pid && s.Kept != "" {
		return nil
	}
	return demo.Wait()
}

// leash is how a demo in the background knows that the foreground has gone.
type leash struct {
	held    io.Reader
	dropped atomic.Bool
}

func newLeash(held io.Reader) *leash { return &leash{held: held} }

// context returns a context that ends with the leash, unless that was dropped before.
func (l *leash) context(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, l.held)
		if !l.dropped.Load() {
			cancel()
		}
	}()
	return ctx
}

// hold gives the prompt back and keeps the cluster until ctx ends.
func (d *demo) hold(ctx context.Context) error {
	socket := filepath.Join(d.cluster.Lab().StateDir(), "demo.sock")
	closeShell, err := serveShell(socket, d.cluster.Server().Output)
	if err != nil {
		return err
	}
	defer closeShell()
	kept := d.instructions()
	d.Say("The cluster stays up, and its two pods go on writing.\n%s", kept)
	if err := (state{PID: os.Getpid(), Kept: kept, Socket: socket}).write(stateFile); err != nil {
		return err
	}
	d.leash.dropped.Store(true)
	for _, fd := range []int{unix.Stdout, unix.Stderr} {
		if err := unix.Dup3(int(d.log.Fd()), fd, 0); err != nil {
			return fmt.Errorf("leave the terminal: %w", err)
		}
	}
	<-ctx.Done()
	return nil
}

func (d *demo) instructions() string {
	return fmt.Sprintf(`
   To use it, in a shell:

     export KUBECONFIG=%s
     export PATH=%s:%s:$PATH    # kubectl and helm

   For example:

     kubectl get pods,pvc,pv,volumesnapshots -o wide
     kubectl exec deployment/shared -- tail -n 4 /data/hosts
     bin/demo server ls -lA %s    # on the NFS server
     kubectl delete -f %s -f %s -f %s -f %s

   There is no registry; of images, pods can have busybox:1.37.
   To stop it: make demo-stop
`, d.cluster.Kubeconfig(), filepath.Dir(d.cluster.Tool("kubectl")), filepath.Dir(d.cluster.Tool("helm")), share, restoreFile, snapshotFile, podsFile, claimFile)
}
