package worker

import (
	"context"
	"errors"
	"time"

	"k8s.io/klog/v2"
)

const (
	// looksAtOnce is how many workers are started at once for exports that nobody
	// uses. It bounds what all exports of a cluster take after a start.
	looksAtOnce = 4
	// looksPerBackoff is how many times the longest pause of calls the pause
	// between looks becomes, when such an export cannot be opened.
	looksPerBackoff = 10
)

// kept reports whether the keeper stays when idle.
func (k *keeper) kept() bool { return k.known || k.class || k.volume }

// tend looks after the worker while nobody calls: it reads its status, stops it
// when idle, starts it when work waits in the trash or an archive expires. It ends with the pool, or
// when the keeper is of no more use.
func (k *keeper) tend() {
	ticker := time.NewTicker(min(k.pool.options.StatusInterval, k.pool.options.IdleTimeout))
	defer ticker.Stop()
	for {
		k.look()
		if k.idle() {
			return
		}
		select {
		case <-ticker.C:
		case <-k.pool.ctx.Done():
			return
		}
	}
}

// look updates the status of a running or wanted worker.
func (k *keeper) look() {
	k.mu.Lock()
	if p := k.current; p != nil && !p.alive() {
		k.loseLocked(p, p.why())
	}
	running := k.current != nil
	now := time.Now()
	expiry := k.counters.status.NextExpiry
	due := k.kept() && !expiry.IsZero() && now.After(expiry)
	needed := k.status != nil && (running || (k.wanted || due) && now.After(k.lookAt))
	k.mu.Unlock()
	switch {
	case !needed:
	case running:
		_, _ = k.readStatus() // A failure is that of a call, and counted there.
	default:
		select {
		case k.pool.looks <- struct{}{}:
			k.openAndLook()
			<-k.pool.looks
		case <-k.pool.ctx.Done():
		}
	}
}

// openAndLook starts a worker that nobody asked for, and waits a moment until it
// is clear whether there is work for it.
func (k *keeper) openAndLook() {
	ctx, cancel := context.WithTimeout(k.pool.ctx, k.pool.options.StatusInterval)
	defer cancel()
	ticker := time.NewTicker(max(k.pool.options.StatusInterval/100, time.Millisecond))
	defer ticker.Stop()
	for {
		status, err := k.readStatus()
		if err != nil || status.TrashBacklog > 0 || status.Copies > 0 || status.TrashSettled {
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// readStatus asks the worker, which is started if need be.
func (k *keeper) readStatus() (Status, error) {
	k.pool.hold(k)
	status, err := call(k.pool.ctx, k, request[Status]{method: "Status", look: true, rpc: k.status})
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		pause := k.pool.options.StatusInterval
		for range k.lookFailures {
			pause = min(2*pause, looksPerBackoff*k.pool.options.MaxBackoff)
		}
		k.lookFailures++
		k.lookAt = time.Now().Add(pause)
		return status, err
	}
	k.lookFailures, k.lookAt = 0, time.Time{}
	k.counters.status = status
	k.wanted = status.workWaits()
	return status, nil
}

// idle stops a worker that nobody has used for the idle time, and reports
// whether the keeper is forgotten.
func (k *keeper) idle() (forgotten bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.wanted && (k.current != nil || k.kept()) || k.starting != nil || time.Since(k.lastUse) < k.pool.options.IdleTimeout {
		return false
	}
	if p := k.current; p != nil {
		if p.inflight > 0 {
			return false
		}
		k.current = nil
		k.pool.retire(p, errors.New("its worker was idle and has been stopped"))
		klog.FromContext(k.pool.ctx).V(2).Info("Idle worker stopped", "kind", k.pool.kind, "export", k.name)
	}
	// Under the lock, so that nobody takes note of the export in between.
	return !k.kept() && time.Now().After(k.retryAt) && k.pool.forget(k)
}
