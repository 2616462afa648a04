//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// leftOpen is how long the output of a command is read after the command has ended, when a child
// of it holds the output open: a daemon would do so for ever.
const leftOpen = 200 * time.Millisecond

// outputPipe carries what a command writes to a writer. os/exec's own pipes can lose output that
// was written before the command ended, if they are told not to wait for its children.
type outputPipe struct {
	r, w *os.File
	wg   sync.WaitGroup
}

func newOutputPipe() (*outputPipe, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make output pipe: %w", err)
	}
	return &outputPipe{r: r, w: w}, nil
}

// started is called when the command has its end of the pipe; what it writes goes to dst.
func (p *outputPipe) started(dst io.Writer) {
	p.w.Close()
	p.wg.Go(func() {
		_, err := io.Copy(dst, p.r)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.drain(dst)
		}
	})
}

// expire is called when the command has ended. It does not wait.
func (p *outputPipe) expire() { _ = p.r.SetReadDeadline(time.Now().Add(leftOpen)) }

// wait returns when all output is written.
func (p *outputPipe) wait() {
	p.wg.Wait()
	p.r.Close()
}

// failed is called instead of started.
func (p *outputPipe) failed() {
	p.w.Close()
	p.r.Close()
}

// drain reads what is in the pipe and does not wait for more.
func (p *outputPipe) drain(dst io.Writer) {
	raw, err := p.r.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		buf := make([]byte, 64<<10)
		for {
			n, err := unix.Read(int(fd), buf)
			if err == unix.EINTR {
				continue
			}
			if n <= 0 {
				return
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
		}
	})
}
