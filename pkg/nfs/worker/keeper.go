package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// keeper keeps at most one worker for one export or one server, and the breaker
// in front of it. While failures is 0 every call goes through. After a failure
// calls are refused until retryAt; then one goes through as the trial, the rest
// is refused until the trial has shown how things are.
type keeper struct {
	pool *pool
	key  string
	name string // the export or the server, in messages and logs
	// label tells keepers apart in metrics.
	label string
	// export is set if this is the keeper of that export's store.
	export nfs.Export
	// open prepares a new process; status asks a running one. Both may be nil.
	open, status func(context.Context, *process) (Status, error)

	holds int // users of this keeper; guarded by pool.mu

	mu       sync.Mutex
	current  *process
	starting *startup
	lastUse  time.Time
	failures int
	retryAt  time.Time
	lastErr  error
	trial    bool
	// wanted is set while work waits in the trash, or may wait there, for which
	// a worker is started without a caller: not before lookAt, which lookFailures
	// put off.
	wanted       bool
	lookAt       time.Time
	lookFailures int
	// known is set when the export is configured or was opened for a caller;
	// class and volume while the cluster's objects name it. With any of them the
	// keeper stays when idle. opened is set once a worker was started.
	known, class, volume, opened bool
	counters                     counters
}

// startup is the start of a worker, shared by all who wait for it.
type startup struct {
	// look is set when the first of them was no caller.
	look    bool
	done    chan struct{}
	process *process
	err     error
}

// request is one call on a worker.
type request[T any] struct {
	method string
	rpc    func(context.Context, *process) (T, error)
	// proves is set when an answer shows that the server answers.
	proves bool
	// look is set when nobody asked for it, so that it does not count as a use.
	look bool
	// after, if set, is called when the call is really over, which may be long
	// after its caller has gone.
	after func()
}

// call makes the request of the keeper's worker, which it starts if need be, and
// gives up the caller's hold on the keeper. It returns at once when ctx ends; the
// request itself then goes on until it is answered or its worker is killed.
func call[T any](ctx context.Context, k *keeper, r request[T]) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	over := func() {
		if r.after != nil {
			r.after()
		}
		k.pool.release(k)
	}
	trial, err := k.admit()
	if err == nil && !k.pool.run(func() {
		value, err := perform(ctx, k, trial, r)
		over()
		done <- result{value, err}
	}) {
		err = fmt.Errorf("%w: %s: %w", nfs.ErrUnavailable, k.name, errClosed)
	}
	if err != nil {
		over()
		var zero T
		return zero, err
	}
	select {
	case res := <-done:
		return res.value, res.err
	case <-ctx.Done():
		var zero T
		return zero, k.gaveUp(ctx, r.method)
	}
}

// gaveUp is the error of a caller whose context ended before the answer came.
func (k *keeper) gaveUp(ctx context.Context, method string) error {
	err := context.Cause(ctx)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%w: %s: %s got no answer in the caller's time: %w", nfs.ErrUnavailable, k.name, method, err)
	}
	return fmt.Errorf("%s: %s: %w", k.name, method, err)
}

// admit is the breaker.
func (k *keeper) admit() (trial bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failures == 0 {
		return false, nil
	}
	if wait := time.Until(k.retryAt); wait > 0 {
		seconds := int((wait + time.Second - 1) / time.Second)
		return false, fmt.Errorf("%w: %s: %w; next try in %d s", nfs.ErrUnavailable, k.name, k.lastErr, seconds)
	}
	if k.trial {
		return false, fmt.Errorf("%w: %s: %w; being tried again now", nfs.ErrUnavailable, k.name, k.lastErr)
	}
	k.trial = true
	return true, nil
}

// perform is what remains of call once it was admitted.
func perform[T any](ctx context.Context, k *keeper, trial bool, r request[T]) (T, error) {
	var zero T
	p, err := k.acquire(ctx, r.method, r.look)
	if !r.look {
		defer k.used()
	}
	if err == nil && ctx.Err() != nil {
		// Nobody waits for it any more, and it has not begun.
		k.release(p, trial, false, nil)
		return zero, k.gaveUp(ctx, r.method)
	}
	if err != nil {
		k.endTrial(trial)
		return zero, err
	}
	watch := time.AfterFunc(k.pool.options.CallTimeout, func() {
		k.kill(p, fmt.Errorf("%s got no answer in %s, its worker was killed; check that the NFS server runs and can be reached",
			r.method, k.pool.options.CallTimeout))
	})
	value, err := r.rpc(k.pool.ctx, p)
	watch.Stop()
	if err == nil {
		k.release(p, trial, r.proves, nil)
		return value, nil
	}
	err, answered := k.explain(p, err)
	k.release(p, trial, answered && r.proves, err)
	return zero, err
}

// acquire returns the running worker with one more call in flight on it.
func (k *keeper) acquire(ctx context.Context, method string, look bool) (*process, error) {
	k.mu.Lock()
	if !look {
		k.lastUse = time.Now()
	}
	if p := k.current; p != nil {
		defer k.mu.Unlock()
		if !p.alive() {
			k.loseLocked(p, p.why())
			return nil, k.unavailable(p)
		}
		p.inflight++
		return p, nil
	}
	s := k.starting
	if s == nil {
		s = &startup{look: look, done: make(chan struct{})}
		if !k.pool.run(func() { k.start(s) }) {
			k.mu.Unlock()
			return nil, fmt.Errorf("%w: %s: %w", nfs.ErrUnavailable, k.name, errClosed)
		}
		k.starting = s
	}
	k.mu.Unlock()

	select {
	case <-s.done:
	case <-ctx.Done():
		return nil, k.gaveUp(ctx, method)
	}
	if s.err != nil {
		return nil, s.err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.current != s.process {
		return nil, k.unavailable(s.process)
	}
	s.process.inflight++
	return s.process, nil
}

// start starts a worker for all who wait for s.
func (k *keeper) start(s *startup) {
	began := time.Now()
	logger := klog.FromContext(k.pool.ctx).WithValues("kind", k.pool.kind, "export", k.name)
	p, err := k.pool.start()
	var status Status
	if err == nil && k.open != nil {
		watch := time.AfterFunc(k.pool.options.StartTimeout, func() {
			k.kill(p, fmt.Errorf("it could not be mounted and opened in %s, its worker was killed; check that the NFS server runs and can be reached",
				k.pool.options.StartTimeout))
		})
		if status, err = k.open(k.pool.ctx, p); err != nil {
			err, _ = k.explain(p, err)
		}
		watch.Stop()
	}

	k.mu.Lock()
	k.starting = nil
	if err == nil {
		k.counters.starts++
		k.counters.begin(status)
		k.wanted = k.status != nil && status.workWaits()
		k.opened, k.current = true, p
		if !s.look {
			k.lastUse = time.Now()
		}
		s.process = p
	} else {
		s.err = err
		if errors.Is(err, nfs.ErrUnavailable) || sentinelName(err) == "" {
			k.backOffLocked(err)
		} else {
			// The server answers, even if it refuses.
			k.failures = 0
		}
	}
	k.mu.Unlock()
	close(s.done)

	if err != nil {
		logger.Info("Worker could not be started", "err", err)
		if p != nil {
			p.kill(err)
		}
	} else {
		logger.V(2).Info("Worker started", "pid", p.cmd.Process.Pid, "duration", time.Since(began))
	}
}

// explain turns what an RPC returned into the error for its caller; answered
// is false when it was not the worker's handler that returned it.
func (k *keeper) explain(p *process, err error) (_ error, answered bool) {
	if err, answered := decodeError(err); answered {
		return err, true
	}
	if k.pool.ctx.Err() != nil {
		return fmt.Errorf("%w: %s: %w", nfs.ErrUnavailable, k.name, errClosed), false
	}
	// A moment later it is known how the process exited.
	p.waitExited(k.pool.options.StopTimeout / 10)
	if p.alive() {
		p.kill(fmt.Errorf("its worker does not understand a call: %w", err))
	}
	return k.unavailable(p), false
}

func (k *keeper) unavailable(p *process) error {
	return fmt.Errorf("%w: %s: %w", nfs.ErrUnavailable, k.name, p.why())
}

// release ends a call. proven says that the server has answered it, or refused
// it, through the worker.
func (k *keeper) release(p *process, trial, proven bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p.inflight--
	if trial {
		k.trial = false
		switch {
		case proven && !errors.Is(err, nfs.ErrUnavailable):
			k.failures = 0
		case proven:
			k.backOffLocked(err)
		}
	}
	switch {
	case k.current == p && !p.alive():
		k.loseLocked(p, p.why())
	case k.current == p && k.open != nil && errors.Is(err, nfs.ErrStale):
		// Only a new mount makes a stale one good.
		klog.FromContext(k.pool.ctx).Info("The mount is stale, the export will be mounted anew", "export", k.name)
		k.current = nil
	}
	if k.current != p && p.inflight == 0 {
		k.pool.retire(p, errors.New("its worker was replaced"))
	}
}

// drop ends a worker without holding that against its server.
func (k *keeper) drop(p *process, why error) {
	k.mu.Lock()
	if k.current == p {
		k.current = nil
	}
	k.mu.Unlock()
	p.kill(why)
}

// used takes note that a caller has used the keeper, and reports whether its
// worker runs.
func (k *keeper) used() (running bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lastUse = time.Now()
	k.known = k.known || k.isStore() && k.opened
	return k.current != nil && k.current.alive()
}

// isStore tells the keepers of exports from those of servers and of copies.
func (k *keeper) isStore() bool { return k.export.Server != "" }

func (k *keeper) endTrial(trial bool) {
	if trial {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.trial = false
	}
}

// kill ends a worker that hangs, the first time that it is called for it.
func (k *keeper) kill(p *process, why error) {
	k.mu.Lock()
	if !p.claim(why) {
		k.mu.Unlock()
		return
	}
	k.counters.kills++
	if k.current == p {
		k.current = nil
		k.backOffLocked(why)
	}
	k.mu.Unlock()
	klog.FromContext(k.pool.ctx).Info("Worker killed", "kind", k.pool.kind, "export", k.name, "pid", p.cmd.Process.Pid, "reason", why.Error())
	p.kill(why)
}

// loseLocked takes note of a current worker that ended by itself.
func (k *keeper) loseLocked(p *process, why error) {
	k.current = nil
	if k.pool.ctx.Err() != nil {
		return
	}
	k.counters.crashes++
	k.backOffLocked(why)
	klog.FromContext(k.pool.ctx).Info("Worker lost", "kind", k.pool.kind, "export", k.name, "pid", p.cmd.Process.Pid, "reason", why.Error())
}

func (k *keeper) backOffLocked(why error) {
	pause := k.pool.options.MinBackoff
	for range k.failures {
		pause = min(2*pause, k.pool.options.MaxBackoff)
	}
	k.failures++
	k.retryAt = time.Now().Add(pause)
	k.lastErr = why
}
