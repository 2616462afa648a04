package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/test/lab/internal/wire"
)

// errGone is why commands fail whose guest ends.
var errGone = errors.New("the guest has ended")

// Cmd is a command for a guest. Args[0] is looked up in the guest's PATH. The command has ended when
// its process has; a child that it leaves behind loses the output soon after, so let a daemon write
// to a file.
type Cmd struct {
	Args []string
	Env  []string // KEY=value, added to PATH, HOME, LANG and TERM
	Dir  string   // default /
	// Stdin is read until its end or the command's. Big data is better brought by PutFile.
	Stdin          io.Reader
	Stdout, Stderr io.Writer // written to as output comes; nil drops it
}

// ExitError is returned for a command that ran and did not succeed.
type ExitError struct {
	Guest  string
	Args   []string
	Code   int            // 128+n if signal n ended it, 127 if it could not be started
	Signal syscall.Signal // 0 unless a signal ended it
	Output string         // the end of its output and errors
}

func (e *ExitError) Error() string {
	msg := fmt.Sprintf("guest %s: %s: exit code %d", e.Guest, strings.Join(e.Args, " "), e.Code)
	if e.Signal != 0 {
		msg = fmt.Sprintf("guest %s: %s: %v", e.Guest, strings.Join(e.Args, " "), e.Signal)
	}
	if out := strings.TrimSpace(e.Output); out != "" {
		msg += ": " + out
	}
	return msg
}

// Process is a command that runs in a guest.
type Process struct {
	vm      *vm
	id      uint32
	args    []string
	builtin bool // a function of the agent's
	frames  *wire.Queue[*wire.Frame]
	done    chan struct{}
	err     error // set before done is closed
}

// Run runs a command to its end. When ctx ends first, the command and its children are killed.
func (g *Guest) Run(ctx context.Context, c Cmd) error {
	p, err := g.Start(ctx, c)
	if err != nil {
		return err
	}
	return p.finish(ctx)
}

// Output runs a command and returns its standard output.
func (g *Guest) Output(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	err := g.Run(ctx, Cmd{Args: args, Stdout: &out})
	return out.String(), err
}

// Start starts a command and returns without waiting for it. It runs until it ends, or is
// signalled, or the guest ends; ctx is only for the start.
func (g *Guest) Start(ctx context.Context, c Cmd) (*Process, error) {
	if len(c.Args) == 0 {
		return nil, fmt.Errorf("guest %s: command without arguments", g.name)
	}
	return g.start(ctx, c, &wire.Command{Args: c.Args, Env: c.Env, Dir: c.Dir, Stdin: c.Stdin != nil})
}

// builtin runs one of the agent's own functions.
func (g *Guest) builtin(ctx context.Context, name string, stdin io.Reader, stdout io.Writer, args ...string) error {
	c := Cmd{Args: append([]string{name}, args...), Stdin: stdin, Stdout: stdout}
	p, err := g.start(ctx, c, &wire.Command{Builtin: name, Args: args, Stdin: stdin != nil})
	if err != nil {
		return err
	}
	return p.finish(ctx)
}

func (g *Guest) start(ctx context.Context, c Cmd, w *wire.Command) (*Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("guest %s: %s: %w", g.name, strings.Join(c.Args, " "), err)
	}
	v, err := g.instance()
	if err != nil {
		return nil, err
	}
	p := &Process{vm: v, args: c.Args, builtin: w.Builtin != "", frames: wire.NewQueue[*wire.Frame](), done: make(chan struct{})}
	if err := v.start(p, w); err != nil {
		return nil, fmt.Errorf("guest %s: %s: %w", g.name, strings.Join(c.Args, " "), err)
	}
	go p.pump(c.Stdout, c.Stderr)
	if c.Stdin != nil {
		// Like os/exec, this cannot end a Read of the caller's; it ends at the next.
		go p.feed(c.Stdin)
	}
	return p, nil
}

// pump writes the command's output and ends with the command.
func (p *Process) pump(stdout, stderr io.Writer) {
	defer close(p.done)
	tail := new(tail)
	var writeErr error
	write := func(w io.Writer, data []byte) {
		_, _ = tail.Write(data)
		if w == nil || writeErr != nil {
			return
		}
		if _, err := w.Write(data); err != nil {
			writeErr = p.wrap(fmt.Errorf("write its output: %w", err))
		}
	}
	for {
		f, ok := p.frames.Get()
		if !ok {
			p.err = p.wrap(p.vm.why())
			return
		}
		switch f.Kind {
		case wire.Stdout:
			write(stdout, f.Data)
		case wire.Stderr:
			write(stderr, f.Data)
		case wire.Exit:
			p.err = p.exitError(f.Exit, tail)
			if p.err == nil {
				p.err = writeErr
			}
			return
		}
	}
}

func (p *Process) exitError(s *wire.ExitStatus, tail *tail) error {
	if s.Code == 0 && s.Signal == 0 && s.Err == "" {
		return nil
	}
	if s.Err != "" {
		_, _ = tail.Write([]byte(s.Err))
	}
	return &ExitError{
		Guest: p.vm.name, Args: p.args, Code: s.Code, Signal: syscall.Signal(s.Signal), Output: tail.String(),
	}
}

func (p *Process) wrap(err error) error {
	return fmt.Errorf("guest %s: %s: %w", p.vm.name, strings.Join(p.args, " "), err)
}

func (p *Process) feed(r io.Reader) {
	for {
		buf := make([]byte, wire.MaxData)
		n, err := r.Read(buf)
		select {
		case <-p.done:
			return
		default:
		}
		if n > 0 {
			p.vm.out.Put(&wire.Frame{Kind: wire.Stdin, ID: p.id, Data: buf[:n]})
		}
		if err != nil {
			p.vm.out.Put(&wire.Frame{Kind: wire.StdinEOF, ID: p.id})
			return
		}
	}
}

// Signal sends a signal to the process itself, not to its children.
func (p *Process) Signal(sig syscall.Signal) error { return p.signal(sig, false) }

// Kill kills the process and its children, as far as they stayed in its process group.
func (p *Process) Kill() error { return p.signal(syscall.SIGKILL, true) }

func (p *Process) signal(sig syscall.Signal, group bool) error {
	if !p.vm.running() {
		return p.wrap(errGone)
	}
	p.vm.out.Put(&wire.Frame{Kind: wire.Signal, ID: p.id, Num: int(sig), Group: group})
	return nil
}

// Done is closed when the process has ended and its output is written.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end of the process: nil, an *ExitError, or why it is not known. When ctx
// ends first the process runs on.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return p.wrap(ctx.Err())
	}
}

// finish waits for the end and kills the process when ctx ends first.
func (p *Process) finish(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
	}
	_ = p.Kill()
	select {
	case <-p.done:
		return p.wrap(ctx.Err())
	case <-time.After(p.vm.watchdog.death):
		return p.wrap(fmt.Errorf("%w; %w", ctx.Err(), p.vm.hangs(p)))
	}
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - tailSize; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
