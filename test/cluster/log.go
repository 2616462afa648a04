package cluster

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// logger writes whole lines, one at a time.
type logger struct {
	mu sync.Mutex
	w  io.Writer
}

// printf writes a line.
func (l *logger) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(l, format+"\n", args...)
}

// Write writes p at once. It makes a logger fit for lab.Options.
func (l *logger) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// progressEvery is how often something long says that it goes on.
const progressEvery = 30 * time.Second

// progress runs something long, one of several since a start. It says every now and then that it
// goes on, and how long it took, and they all.
func (l *logger) progress(what string, start time.Time, do func() error) error {
	began := time.Now()
	say := func(state string) {
		l.printf("%s ... %s%v, %v in all", what, state, time.Since(began).Round(time.Second), time.Since(start).Round(time.Second))
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				say("")
			case <-stop:
				return
			}
		}
	}()
	err := do()
	close(stop)
	<-done
	if err == nil {
		say("done in ")
	}
	return err
}
