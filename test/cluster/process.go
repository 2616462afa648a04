package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

// process is a program on the host, in the lab's network namespace. It ends with this process,
// however that ends.
type process struct {
	name string
	log  string
	host *os.Process
	done chan struct{}
	err  error // how it ended; set before done is closed
}

// startProcess starts a program; its output goes to a log.
func startProcess(netns, log string, args ...string) (*process, error) {
	p := &process{name: filepath.Base(args[0]), log: log, done: make(chan struct{})}
	started := make(chan error, 1)
	lab.OnThread(func() { p.own(netns, args, started) })
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	return p, nil
}

// own stays with the process until it ends. Its thread is in the lab's network namespace, which the
// child inherits, and the child dies with the thread.
func (p *process) own(netns string, args []string, started chan<- error) {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		started <- err
		return
	}
	defer log.Close()
	if err := enterNetns(netns); err != nil {
		started <- err
		return
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	// A session of its own: Ctrl-C is for the cluster, which then ends its processes in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		started <- err
		return
	}
	p.host = cmd.Process
	started <- nil
	if p.err = cmd.Wait(); p.err == nil {
		p.err = errors.New("exit status 0")
	}
	close(p.done)
}

// netnsPath is the file of a namespace by its name, or a path as it is.
func netnsPath(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join("/run/netns", name)
}

// enterNetns takes the calling thread, which must be one of lab.OnThread, into a network namespace.
func enterNetns(name string) error {
	f, err := os.Open(netnsPath(name))
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", name, err)
	}
	return nil
}

// ended returns why the process does not run any more, or nil.
func (p *process) ended() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended: %w; the end of %s:\n%s", p.name, p.err, p.log, tailOf(p.log, 15))
	default:
		return nil
	}
}

// kill ends the process at once: nothing of its state is kept.
func (p *process) kill() error {
	if err := p.host.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", p.name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(10 * time.Second):
		return fmt.Errorf("%s (process %d) does not end", p.name, p.host.Pid)
	}
}

// tailOf returns the last lines of a file.
func tailOf(path string, n int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
