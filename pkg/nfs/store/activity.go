package store

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// The purge waits for this long a pause in the store's other work, so that
	// nobody notices it, but not longer than its patience for each file.
	pause    = 50 * time.Millisecond
	patience = 100 * time.Millisecond
)

// activity is what the store does in the foreground.
type activity struct {
	running atomic.Int64
	ended   atomic.Int64 // unix nanoseconds
}

// begin is called when an operation begins, its result when it ends.
func (a *activity) begin() (end func()) {
	a.running.Add(1)
	return func() {
		a.ended.Store(time.Now().UnixNano())
		a.running.Add(-1)
	}
}

// untilPause says how long it takes to a pause if nothing more is done.
func (a *activity) untilPause() time.Duration {
	if a.running.Load() > 0 {
		return pause
	}
	return pause - time.Since(time.Unix(0, a.ended.Load()))
}

// crowd counts the copies that run at this moment.
type crowd struct {
	mu      sync.Mutex
	running int
}

// begin is called when a copy begins, its result when it ends. They tell of the first
// that begins and the last that ends; nil wants to know of none.
func (c *crowd) begin(tell func(running bool)) (end func()) {
	if tell == nil {
		return func() {}
	}
	change := func(by int) {
		c.mu.Lock()
		defer c.mu.Unlock()
		was := c.running > 0
		c.running += by
		if is := c.running > 0; is != was {
			tell(is)
		}
	}
	change(1)
	return func() { change(-1) }
}

// pace comes before every file that is removed.
func (p *purger) pace(ctx context.Context) error {
	if err := p.yield(ctx); err != nil {
		return err
	}
	return p.limiter.Wait(ctx)
}

// yield waits for a pause in the store's other work, as long as patience lasts.
func (p *purger) yield(ctx context.Context) error {
	for waited := time.Duration(0); waited < patience && !p.s.opts.noYield; {
		wait := p.s.active.untilPause()
		if wait <= 0 {
			break
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		waited += wait
	}
	return nil
}
