//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/test/lab/internal/wire"
)

// job is one command that the lab started.
type job struct {
	agent   *agent
	id      uint32
	command *wire.Command
	stdin   *wire.Queue[[]byte]
	started chan struct{} // closed when process is set, or will never be
	process *os.Process
}

func newJob(a *agent, id uint32, c *wire.Command) *job {
	j := &job{agent: a, id: id, command: c, stdin: wire.NewQueue[[]byte](), started: make(chan struct{})}
	if !c.Stdin {
		j.stdin.Close()
	}
	return j
}

func (j *job) run() {
	stdout, stderr := j.agent.output(j.id, wire.Stdout), j.agent.output(j.id, wire.Stderr)
	var status wire.ExitStatus
	if j.command.Builtin != "" {
		close(j.started)
		if err := j.agent.builtin(j.command, queueReader(j.stdin), stdout); err != nil {
			fmt.Fprintln(stderr, err)
			status.Code = 1
		}
	} else {
		status = j.exec(stdout, stderr)
	}
	j.stdin.Close()
	j.agent.finish(j.id, status)
}

func (j *job) exec(stdout, stderr io.Writer) wire.ExitStatus {
	// LookPath below uses this process's PATH, which is commandEnv's.
	cmd := exec.Command(j.command.Args[0], j.command.Args[1:]...)
	cmd.Env = commandEnv(j.command.Env)
	cmd.Dir = j.command.Dir
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	failed := func(code int, err error) wire.ExitStatus {
		close(j.started)
		return wire.ExitStatus{Code: code, Err: err.Error()}
	}
	outPipe, err := newOutputPipe()
	if err != nil {
		return failed(126, err)
	}
	errPipe, err := newOutputPipe()
	if err != nil {
		outPipe.failed()
		return failed(126, err)
	}
	cmd.Stdout, cmd.Stderr = outPipe.w, errPipe.w
	var stdin io.WriteCloser
	if j.command.Stdin {
		stdin, err = cmd.StdinPipe()
	}
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		outPipe.failed()
		errPipe.failed()
		return failed(127, err)
	}
	outPipe.started(stdout)
	errPipe.started(stderr)
	j.process = cmd.Process
	close(j.started)
	if stdin != nil {
		go func() { // ends when run closes the queue
			defer stdin.Close()
			_, _ = io.Copy(stdin, queueReader(j.stdin))
		}()
	}
	err = cmd.Wait()
	outPipe.expire()
	errPipe.expire()
	outPipe.wait()
	errPipe.wait()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return wire.ExitStatus{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal())}
	}
	status := wire.ExitStatus{Code: cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		status.Err = err.Error()
	}
	return status
}

// signal is called by the line's reader, which must not wait for long: starting takes
// milliseconds.
func (j *job) signal(sig unix.Signal, group bool) {
	<-j.started
	if j.process == nil {
		return
	}
	if group {
		_ = unix.Kill(-j.process.Pid, sig)
		return
	}
	_ = j.process.Signal(sig)
}

// queueReader reads the chunks of a queue until it is closed.
func queueReader(q *wire.Queue[[]byte]) io.Reader { return &chunkReader{q: q} }

type chunkReader struct {
	q    *wire.Queue[[]byte]
	rest []byte
}

func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		chunk, ok := r.q.Get()
		if !ok {
			return 0, io.EOF
		}
		r.rest = chunk
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
