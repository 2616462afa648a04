package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/test/lab/internal/wire"
)

// memoryDir is where the guests' kernels put their memory: a deleted file, which must be on a
// tmpfs to be fast.
const memoryDir = "/dev/shm"

// vm is one run of a guest, from its start to the end of its last process. Its goroutines end
// with it: gone is closed after them.
type vm struct {
	name       string
	kernelPID  int
	supervisor *exec.Cmd
	serial     net.Conn // to the agent in the guest
	log        string   // path of the guest's log
	out        *wire.Queue[*wire.Frame]
	window     *wire.WindowWriter // writes what is in out
	hello      chan struct{}      // closed when the agent answers
	gone       chan struct{}

	printf   func(format string, args ...any)
	watchdog watchdog
	alone    bool // nothing in it waits for another machine

	heard     atomic.Bool  // a frame has come since the watchdog looked
	pongs     atomic.Int64 // that have come
	frozen    atomic.Bool
	resetting atomic.Bool

	consoleMu   sync.Mutex
	consolePath string // of the kernel's management console
	netns       string // path of the lab's network namespace

	controlMu sync.Mutex
	control   net.Conn // to the supervisor
	answers   *bufio.Reader

	mu        sync.Mutex
	processes map[uint32]*Process
	lastID    uint32
	ended     bool
	cause     error // why the lab ended it, if not because it was told to
	exitErr   error // set before gone is closed
}

type vmOptions struct {
	name     string
	agent    string
	kernel   string
	netns    string
	log      string
	args     []string // for the kernel
	writable []string // host directories that the kernel may write
	cpu      int      // the only one that the guest runs on
	console  string   // where the kernel makes the socket of its management console
	watchdog watchdog
	alone    bool // nothing in it waits for another machine
	printf   func(format string, args ...any)
}

// startVM starts a guest's kernel under its supervisor.
func startVM(o vmOptions) (*vm, error) {
	// The first descriptor that the supervisor passes on is 3 in the kernel.
	args := []string{"supervise"}
	for _, dir := range o.writable {
		args = append(args, "-rw", dir)
	}
	args = append(args, "--", o.kernel,
		"rootfstype=hostfs", "rootflags=/", "ro", "init="+o.agent, "noreboot", "panic=-1",
		"quiet", "loglevel=5", "con=null", "con0=null,fd:1", "ssl=null", "ssl0=fd:3",
	)
	args = append(args, o.args...)

	log, err := os.OpenFile(o.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	fmt.Fprintf(log, runMark+"%s: start of guest %s\n", time.Now().Format(time.RFC3339), o.name)
	netns, err := os.Open(o.netns)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	defer netns.Close()

	v := &vm{
		name: o.name, log: o.log, out: wire.NewQueue[*wire.Frame](), processes: make(map[uint32]*Process),
		hello: make(chan struct{}), gone: make(chan struct{}),
		printf: o.printf, watchdog: o.watchdog, alone: o.alone, consolePath: o.console, netns: o.netns,
	}
	var theirSerial, theirControl *os.File
	if v.serial, theirSerial, err = socketPair("serial"); err != nil {
		return nil, err
	}
	defer theirSerial.Close()
	if v.control, theirControl, err = socketPair("control"); err != nil {
		v.serial.Close()
		return nil, err
	}
	defer theirControl.Close()
	v.answers = bufio.NewReader(v.control)
	v.window = wire.NewWindowWriter(v.serial)

	// A guest is one CPU made of many processes that take turns. Where the host
	// moves those between CPUs, each turn costs an interrupt from one to the other.
	v.supervisor = exec.Command("taskset", append([]string{"--cpu-list", strconv.Itoa(o.cpu), o.agent}, args...)...)
	v.supervisor.Stdout, v.supervisor.Stderr = log, log
	v.supervisor.ExtraFiles = []*os.File{theirControl, netns, theirSerial}
	v.supervisor.Env = append(os.Environ(), "TMPDIR="+memoryDir)
	// Its own session: Ctrl-C is for the lab, which then ends its guests in order.
	v.supervisor.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := v.supervisor.Start(); err != nil {
		v.serial.Close()
		v.control.Close()
		return nil, fmt.Errorf("start supervisor: %w", err)
	}
	go v.run()
	if v.kernelPID, err = v.readPID(); err != nil {
		v.control.Close() // the supervisor kills
		<-v.gone
		return nil, err
	}
	return v, nil
}

// run owns the instance: it ends when the supervisor does, after the other goroutines.
func (v *vm) run() {
	var wg sync.WaitGroup
	wg.Go(v.read)
	wg.Go(v.write)
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() { v.watch(ctx) })
	err := v.supervisor.Wait()
	cancel()
	v.serial.Close()
	v.control.Close()
	v.out.Close()
	v.window.Close()
	wg.Wait()
	v.mu.Lock()
	v.exitErr = err
	v.ended = true
	processes := v.processes
	v.processes = nil
	v.mu.Unlock()
	for _, p := range processes {
		p.frames.Close()
	}
	close(v.gone)
}

func (v *vm) readPID() (int, error) {
	if err := v.control.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return 0, err
	}
	line, err := v.answers.ReadString('\n')
	if err != nil {
		return 0, fmt.Errorf("supervisor: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "pid ")))
	if err != nil {
		return 0, fmt.Errorf("supervisor: %w", err)
	}
	return pid, nil
}

// waitReady returns when the agent in the guest answers.
func (v *vm) waitReady(ctx context.Context) error {
	select {
	case <-v.hello:
		return nil
	case <-v.gone:
		return fmt.Errorf("it ended while starting: %w", errors.Join(errGone, v.exitErr))
	case <-ctx.Done():
		return fmt.Errorf("its agent does not answer: %w", ctx.Err())
	}
}

func (v *vm) running() bool {
	if v == nil {
		return false
	}
	select {
	case <-v.gone:
		return false
	default:
		return true
	}
}

func (v *vm) ready() bool {
	if !v.running() {
		return false
	}
	select {
	case <-v.hello:
		return true
	default:
		return false
	}
}

// read hands the agent's frames to their processes.
func (v *vm) read() {
	dec := wire.NewDecoder(v.serial)
	for {
		f, err := dec.Decode()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.ECONNRESET) {
				v.end(fmt.Errorf("%w: nothing that it says can be understood: %w", errGone, err))
			}
			return // the guest has ended or is about to
		}
		v.heard.Store(true)
		switch f.Kind {
		case wire.Hello:
			close(v.hello)
			continue
		case wire.Pong:
			v.pongs.Add(1)
			continue
		case wire.Ack:
			v.window.Acknowledge(f.Num)
			continue
		}
		v.mu.Lock()
		p := v.processes[f.ID]
		if f.Kind == wire.Exit {
			delete(v.processes, f.ID)
		}
		v.mu.Unlock()
		if p == nil {
			continue
		}
		p.frames.Put(f)
		if f.Kind == wire.Exit {
			p.frames.Close()
		}
	}
}

// write sends what is queued, so that a frozen guest holds up nobody.
func (v *vm) write() {
	enc := wire.NewEncoder(v.window)
	for {
		f, ok := v.out.Get()
		if !ok || enc.Encode(f) != nil {
			return
		}
	}
}

// start gives a process its id and sends it to the agent.
func (v *vm) start(p *Process, c *wire.Command) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ended {
		return errGone
	}
	v.lastID++
	p.id = v.lastID
	v.processes[p.id] = p
	v.out.Put(&wire.Frame{Kind: wire.Start, ID: p.id, Command: c})
	return nil
}

// order gives the supervisor a command and waits for its answer.
func (v *vm) order(command string) error {
	v.controlMu.Lock()
	defer v.controlMu.Unlock()
	if err := v.control.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	if _, err := fmt.Fprintln(v.control, command); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	answer, err := v.answers.ReadString('\n')
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	if answer = strings.TrimSpace(answer); answer != "ok" {
		return fmt.Errorf("%s: %s", command, answer)
	}
	return nil
}

// kill ends all processes of the guest and returns when there are none.
func (v *vm) kill() error {
	if v == nil {
		return nil
	}
	v.control.Close() // the supervisor takes the end of file for the command to kill
	select {
	case <-v.gone:
		return nil
	case <-time.After(30 * time.Second):
		return fmt.Errorf("guest %s: its processes do not end (supervisor %d)", v.name, v.supervisor.Process.Pid)
	}
}

// socketPair returns a connected pair: our end, and a file to pass to a child.
func socketPair(name string) (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make %s socket: %w", name, err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	conn, err := net.FileConn(ours)
	ours.Close() // FileConn has made its own descriptor
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make %s socket: %w", name, err)
	}
	return conn, theirs, nil
}
