package wire

import (
	"errors"
	"io"
	"sync"
)

// window bounds what is on its way to the guest and not yet read there. A terminal that gets more
// than its buffer of 4096 bytes tells the line to wait, and the line of User Mode Linux 6.1 never
// recovers from that.
const window = 2048

// WindowWriter writes no more than the reader at the other end has acknowledged, plus a window.
type WindowWriter struct {
	w io.Writer

	mu     sync.Mutex
	change *sync.Cond
	free   int
	closed bool
}

// NewWindowWriter returns a WindowWriter on w.
func NewWindowWriter(w io.Writer) *WindowWriter {
	ww := &WindowWriter{w: w, free: window}
	ww.change = sync.NewCond(&ww.mu)
	return ww
}

// Write writes p piece by piece, as acknowledgements come in.
func (w *WindowWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := w.take(len(p) - done)
		if err != nil {
			return done, err
		}
		n, err = w.w.Write(p[done : done+n])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

func (w *WindowWriter) take(want int) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.free == 0 && !w.closed {
		w.change.Wait()
	}
	if w.closed {
		return 0, errors.New("the line is closed")
	}
	n := min(want, w.free)
	w.free -= n
	return n, nil
}

// Acknowledge says that the other end has read n bytes more.
func (w *WindowWriter) Acknowledge(n int) {
	w.mu.Lock()
	w.free += n
	w.mu.Unlock()
	w.change.Broadcast()
}

// Close ends a Write that waits.
func (w *WindowWriter) Close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.change.Broadcast()
}

// AckReader reports how much is read from r.
type AckReader struct {
	R   io.Reader
	Ack func(n int)
}

// Read reads from R.
func (r AckReader) Read(p []byte) (int, error) {
	n, err := r.R.Read(p)
	if n > 0 {
		r.Ack(n)
	}
	return n, err
}
