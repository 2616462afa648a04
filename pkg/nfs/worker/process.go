package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// window is the flow-control window of the connection in bytes, room for any
// message in one go.
const window = 1 << 20

// process is one running worker and the connection to it.
type process struct {
	cmd    *exec.Cmd
	conn   *grpc.ClientConn
	socket net.Conn // under conn, which closes it only once it has dialled
	// exited is closed once the process has been waited for: it is no zombie,
	// and its mounts are gone.
	exited chan struct{}

	mu sync.Mutex
	// ended is why the pool ended it; nil while nobody did.
	ended error
	// status is how it exited; set before exited is closed.
	status string

	// inflight counts the calls on it; the keeper's mutex guards it.
	inflight int
}

// Self is the command that runs this executable's worker subcommand, with a
// runtime tuned to be small: a worker holds little and mostly waits. It needs one
// processor at a time, and does not wake threads for a second; but see whileCopying.
func Self() *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", "worker") //nolint:noctx // its life is the pool's to manage, not one context's
	cmd.Env = []string{"GOMEMLIMIT=16MiB", "GOGC=50", "GOMAXPROCS=1"}
	return cmd
}

// startProcess starts the command with one end of a socketpair as descriptor 3
// and connects to the other end. It touches no server.
func startProcess(cmd *exec.Cmd) (*process, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair for a worker: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "worker"), os.NewFile(uintptr(fds[1]), "worker")
	defer theirs.Close()
	socket, err := net.FileConn(ours)
	_ = ours.Close() // FileConn works on a duplicate.
	if err != nil {
		return nil, fmt.Errorf("socket of a worker: %w", err)
	}
	conn, err := connect(socket)
	if err != nil {
		_ = socket.Close()
		return nil, fmt.Errorf("connection to a worker: %w", err)
	}

	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	// A group of its own keeps a Ctrl-C in a terminal from ending workers
	// before the driver has drained.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := startDrowsy(cmd); err != nil {
		_ = conn.Close()
		_ = socket.Close()
		return nil, fmt.Errorf("start of a worker: %w", err)
	}
	return &process{cmd: cmd, conn: conn, socket: socket, exited: make(chan struct{})}, nil
}

// TimerSlack is by how much the sleeps of a worker may be late. Go's runtime has a
// thread that looks every 20 microseconds, while anything runs, for system calls
// that take long. In a worker all calls take long, and the looking took more of
// the processor than the work.
const TimerSlack = time.Millisecond

// startDrowsy starts the command with TimerSlack, which a process has from the
// thread that forks it and keeps over execve(2) (see PR_SET_TIMERSLACK).
func startDrowsy(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(TimerSlack.Nanoseconds()), 0, 0, 0); err == nil {
		// Zero is the thread's own default.
		defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }()
	}
	return cmd.Start()
}

// connect returns a client on the one socket. It never reconnects: a worker
// that has lost its connection ends.
func connect(socket net.Conn) (*grpc.ClientConn, error) {
	var once sync.Once
	dial := func(context.Context, string) (net.Conn, error) {
		var c net.Conn
		once.Do(func() { c = socket })
		if c == nil {
			return nil, errors.New("the worker has ended")
		}
		return c, nil
	}
	conn, err := grpc.NewClient("passthrough:///worker",
		grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// An idle client would close the connection, and that ends the worker.
		grpc.WithIdleTimeout(0),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		// Fixed windows: to size them, gRPC would send pings along with every call.
		grpc.WithInitialWindowSize(window),
		grpc.WithInitialConnWindowSize(window),
	)
	if err != nil {
		return nil, err
	}
	conn.Connect()
	return conn, nil
}

// reap waits for the process and closes the connection. Each process has one
// goroutine that runs it.
func (p *process) reap() {
	err := p.cmd.Wait()
	p.mu.Lock()
	p.status = "exit status 0"
	if err != nil {
		p.status = err.Error()
	}
	p.mu.Unlock()
	p.disconnect()
	close(p.exited)
}

// disconnect makes every call on the process fail, and the worker exit by itself.
func (p *process) disconnect() {
	_ = p.conn.Close()
	_ = p.socket.Close()
}

// claim records why the process is ended, unless it has ended or somebody else
// is ending it; then it returns false.
func (p *process) claim(why error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended != nil || p.status != "" {
		return false
	}
	p.ended = why
	return true
}

// end closes the connection. It never waits.
func (p *process) end(why error) {
	p.claim(why)
	p.disconnect()
}

// kill is end with SIGKILL, which also ends threads that wait for a server.
func (p *process) kill(why error) {
	p.end(why)
	// It fails only when the process has been waited for.
	_ = p.cmd.Process.Kill()
}

// stop ends the process: at first by closing the connection, after the grace
// period by SIGKILL. It waits for at most twice the grace period; a process
// that is stuck in the kernel longer than that is left to its reaper.
func (p *process) stop(why error, grace time.Duration) error {
	p.end(why)
	if p.waitExited(grace) {
		return nil
	}
	p.kill(why)
	if p.waitExited(grace) {
		return nil
	}
	return fmt.Errorf("worker process %d is still there %s after SIGKILL: the kernel is taking down its mount, and goes on by itself", p.cmd.Process.Pid, grace)
}

func (p *process) waitExited(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-p.exited:
		return true
	case <-timer.C:
		return false
	}
}

// alive reports whether the process takes calls.
func (p *process) alive() bool {
	select {
	case <-p.exited:
		return false
	default:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended == nil
}

// why says what ended the process: what the pool did, or how it exited.
func (p *process) why() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.ended != nil:
		return p.ended
	case p.status != "":
		return fmt.Errorf("its worker ended by itself (%s); the log around this time says why", p.status)
	}
	return errors.New("its worker closed the connection")
}
