package wire

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"
	"time"
)

func TestFrames(t *testing.T) {
	var line bytes.Buffer
	enc := NewEncoder(&line)
	for _, f := range []*Frame{
		{Kind: Start, ID: 1, Command: &Command{Args: []string{"true"}, Env: []string{"A=b"}}},
		{Kind: Stdout, ID: 1, Data: []byte{0, 1, 255}},
		{Kind: Exit, ID: 1, Exit: &ExitStatus{Code: 3}},
	} {
		if err := enc.Encode(f); err != nil {
			t.Fatal(err)
		}
	}
	dec := NewDecoder(&line)
	f, err := dec.Decode()
	if err != nil || f.Kind != Start || f.Command.Args[0] != "true" || f.Command.Env[0] != "A=b" {
		t.Errorf("frame %+v, error %v", f, err)
	}
	f, err = dec.Decode()
	if err != nil || !bytes.Equal(f.Data, []byte{0, 1, 255}) || f.Command != nil {
		t.Errorf("frame %+v, error %v", f, err)
	}
	f, err = dec.Decode()
	if err != nil || f.Exit.Code != 3 {
		t.Errorf("frame %+v, error %v", f, err)
	}
}

func TestQueue(t *testing.T) {
	q := NewQueue[int]()
	const n = 1000
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range n {
			q.Put(i)
		}
		q.Close()
		q.Put(n) // dropped
	})
	for i := range n {
		if got, ok := q.Get(); !ok || got != i {
			t.Fatalf("got %d, %v, want %d", got, ok, i)
		}
	}
	if _, ok := q.Get(); ok {
		t.Error("got something after Close")
	}
	wg.Wait()
}

// limitedLine breaks like the serial line when more than the window is unread.
type limitedLine struct {
	t      *testing.T
	mu     sync.Mutex
	unread int
	ch     chan []byte
}

func (l *limitedLine) Write(p []byte) (int, error) {
	l.mu.Lock()
	l.unread += len(p)
	if l.unread > window {
		l.t.Errorf("%d bytes unread", l.unread)
	}
	l.mu.Unlock()
	l.ch <- bytes.Clone(p)
	return len(p), nil
}

func (l *limitedLine) Read(p []byte) (int, error) {
	b, ok := <-l.ch
	if !ok {
		return 0, io.EOF
	}
	l.mu.Lock()
	l.unread -= len(b)
	l.mu.Unlock()
	return copy(p, b), nil
}

func TestWindow(t *testing.T) {
	line := &limitedLine{t: t, ch: make(chan []byte, 10*window)}
	w := NewWindowWriter(line)
	data := bytes.Repeat([]byte("0123456789"), 10_000)
	var wg sync.WaitGroup
	wg.Go(func() {
		if n, err := w.Write(data); n != len(data) || err != nil {
			t.Errorf("wrote %d of %d: %v", n, len(data), err)
		}
		close(line.ch)
	})
	var got []byte
	r := AckReader{R: line, Ack: w.Acknowledge}
	buf := make([]byte, 2*window)
	var err error
	for err == nil {
		var n int
		n, err = r.Read(buf)
		got = append(got, buf[:n]...)
	}
	if !errors.Is(err, io.EOF) || !bytes.Equal(got, data) {
		t.Errorf("%d bytes came, error %v, want %d", len(got), err, len(data))
	}
	wg.Wait()
}

func TestWindowClose(t *testing.T) {
	w := NewWindowWriter(io.Discard)
	done := make(chan error)
	go func() {
		_, err := w.Write(make([]byte, window+1))
		done <- err
	}()
	w.Close()
	select {
	case err := <-done:
		if err == nil {
			t.Error("a write past the window succeeded")
		}
	case <-time.After(10 * time.Second):
		t.Error("the write still waits")
	}
}
