//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/test/lab/internal/wire"
)

// serialLine is the guest's end of the line to the lab.
const serialLine = "/dev/ttyS0"

// agent runs commands for the lab.
type agent struct {
	mu  sync.Mutex // guards enc and jobs
	enc *wire.Encoder

	jobs map[uint32]*job
	nfs  nfsServer
}

// serve answers the lab until the line is hung up, which means that the lab is gone.
func serve(line string) error {
	f, err := openRaw(line)
	if err != nil {
		return err
	}
	defer f.Close()
	a := &agent{enc: wire.NewEncoder(f), jobs: make(map[uint32]*job)}
	a.send(&wire.Frame{Kind: wire.Hello})
	dec := wire.NewDecoder(wire.AckReader{R: f, Ack: func(n int) {
		a.send(&wire.Frame{Kind: wire.Ack, Num: n})
	}})
	for {
		frame, err := dec.Decode()
		if errors.Is(err, io.EOF) {
			fmt.Println("lab agent: the lab hung up")
			return nil
		}
		if err != nil {
			return err
		}
		a.handle(frame)
	}
}

func (a *agent) handle(f *wire.Frame) {
	if f.Kind == wire.Ping {
		a.send(&wire.Frame{Kind: wire.Pong})
		return
	}
	if f.Kind == wire.Start {
		j := newJob(a, f.ID, f.Command)
		a.mu.Lock()
		a.jobs[f.ID] = j
		a.mu.Unlock()
		go j.run()
		return
	}
	a.mu.Lock()
	j := a.jobs[f.ID]
	a.mu.Unlock()
	if j == nil {
		return // it has just ended
	}
	switch f.Kind {
	case wire.Stdin:
		j.stdin.Put(f.Data)
	case wire.StdinEOF:
		j.stdin.Close()
	case wire.Signal:
		j.signal(unix.Signal(f.Num), f.Group)
	}
}

// finish sends a job's last frame.
func (a *agent) finish(id uint32, status wire.ExitStatus) {
	a.mu.Lock()
	delete(a.jobs, id)
	a.mu.Unlock()
	a.send(&wire.Frame{Kind: wire.Exit, ID: id, Exit: &status})
}

func (a *agent) send(f *wire.Frame) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.enc.Encode(f); err != nil {
		// The reader sees the same and ends the agent.
		fmt.Fprintf(os.Stderr, "lab agent: %v\n", err)
	}
}

// output returns a writer that sends what is written to it as frames of the kind.
func (a *agent) output(id uint32, kind wire.Kind) io.Writer {
	return frameWriter{a, id, kind}
}

type frameWriter struct {
	a    *agent
	id   uint32
	kind wire.Kind
}

func (w frameWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		chunk := p[:min(len(p), wire.MaxData)]
		w.a.send(&wire.Frame{Kind: w.kind, ID: w.id, Data: chunk})
		p = p[len(chunk):]
	}
	return n, nil
}

// openRaw opens the serial line and turns off everything that a terminal does to bytes.
func openRaw(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open serial line: %w", err)
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("serial line: %w", err)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB|unix.CSTOPB) | unix.CS8 | unix.CREAD
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("serial line: %w", err)
	}
	// A blocking descriptor: the reader has a thread of its own anyhow.
	return os.NewFile(uintptr(fd), path), nil
}
