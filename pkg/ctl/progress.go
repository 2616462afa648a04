package ctl

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// plainEvery is how often progress is told where nobody looks at a terminal.
const plainEvery = 10 * time.Second

// progress tells how far long work is: on a terminal a line that changes, else a
// line from time to time.
type progress struct {
	w        io.Writer
	terminal bool
	last     time.Time // of a plain line, or the beginning
	shown    bool
}

func newProgress(w io.Writer) *progress {
	f, ok := w.(*os.File)
	return &progress{w: w, terminal: ok && isTerminal(f), last: time.Now()}
}

func isTerminal(f *os.File) bool {
	conn, err := f.SyscallConn()
	if err != nil {
		return false
	}
	var termErr error
	err = conn.Control(func(fd uintptr) { _, termErr = unix.IoctlGetTermios(int(fd), unix.TCGETS) })
	return err == nil && termErr == nil
}

// show tells the state; done of total is drawn as a bar when there is a total.
func (p *progress) show(done, total int, format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	if !p.terminal {
		if time.Since(p.last) >= plainEvery {
			p.last = time.Now()
			_, _ = fmt.Fprintln(p.w, line)
		}
		return
	}
	if total > 0 {
		const width = 20
		full := min(width, max(0, done*width/total))
		line = "[" + strings.Repeat("#", full) + strings.Repeat(".", width-full) + "] " + line
	}
	p.shown = true
	_, _ = fmt.Fprintf(p.w, "\r\x1b[K%s", line)
}

// end clears the line.
func (p *progress) end() {
	if p.shown {
		_, _ = fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}
