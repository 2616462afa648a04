package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

const (
	// taskWait is how long a call waits for the end of a task before it says how far
	// that is, and taskPatience after how long without a call a task is ended.
	taskWait     = time.Second
	taskPatience = 30 * time.Second

	// maxTold bounds what a task tells, which one message must hold.
	maxTold = 250
)

var errStoreClosed = fmt.Errorf("%w: the store is being closed", nfs.ErrUnavailable)

// tasks are those that run. They take longer than a call may, so each goes on in
// the background while its caller asks again and again how far it is.
type tasks struct {
	mu      sync.Mutex
	closed  bool
	running map[nfs.Task]*task
	group   sync.WaitGroup
}

type task struct {
	cancel              context.CancelFunc
	patience            *time.Timer
	done                chan struct{} // closed when items and err are final
	items               []nfs.Item
	err                 error
	seen, bytes, denied atomic.Int64
}

// RunTask begins the task, or joins it where it runs already, and returns its state
// when it is done, or after a second. The end of a task is told once; a task that
// nobody asks for any more is given up after half a minute. Errors: ErrInvalid;
// ErrNotFound for the item of TaskUsage; those of CreateVolume for TaskAdopt and TaskRestore.
func (s *Store) RunTask(ctx context.Context, which nfs.Task) (nfs.TaskState, error) {
	run, err := s.taskFunc(which)
	if err != nil {
		return nfs.TaskState{}, err
	}
	t, err := s.tasks.join(ctx, which, run)
	if err != nil {
		return nfs.TaskState{}, err
	}
	timer := time.NewTimer(taskWait)
	defer timer.Stop()
	select {
	case <-t.done:
		s.tasks.forget(which, t)
		if t.err != nil {
			return nfs.TaskState{}, t.err
		}
	case <-timer.C:
		return t.state(false), nil
	case <-ctx.Done():
		return nfs.TaskState{}, ctx.Err()
	}
	return t.state(true), nil
}

func (t *task) state(done bool) nfs.TaskState {
	state := nfs.TaskState{Done: done, Seen: t.seen.Load(), Bytes: t.bytes.Load(), Denied: t.denied.Load()}
	if done {
		told := min(len(t.items), maxTold)
		state.Items, state.More = t.items[:told], int64(len(t.items)-told)
	}
	return state
}

type taskFunc func(ctx context.Context, t *task) ([]nfs.Item, error)

func (s *Store) taskFunc(which nfs.Task) (taskFunc, error) {
	switch which.Kind {
	case nfs.TaskUsage:
		return func(ctx context.Context, t *task) ([]nfs.Item, error) {
			return nil, s.measure(ctx, t, which.Item, which.Key)
		}, nil
	case nfs.TaskOrphans:
		return s.orphans, nil
	case nfs.TaskAdopt:
		return func(ctx context.Context, t *task) ([]nfs.Item, error) { return s.adopt(ctx, t, which) }, nil
	case nfs.TaskRestore:
		return func(ctx context.Context, _ *task) ([]nfs.Item, error) { return s.restore(ctx, which) }, nil
	}
	return nil, fmt.Errorf("%w: there is no task %q", nfs.ErrInvalid, which.Kind)
}

// join returns the running task, which it starts if need be.
func (ts *tasks) join(ctx context.Context, which nfs.Task, run taskFunc) (*task, error) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.closed {
		return nil, errStoreClosed
	}
	if t := ts.running[which]; t != nil {
		t.patience.Reset(taskPatience)
		return t, nil
	}
	// It outlives the call that begins it; the store ends it.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	t := &task{cancel: cancel, done: make(chan struct{})}
	t.patience = time.AfterFunc(taskPatience, func() {
		cancel()
		ts.forget(which, t)
	})
	if ts.running == nil {
		ts.running = map[nfs.Task]*task{}
	}
	ts.running[which] = t
	ts.group.Go(func() {
		defer close(t.done)
		t.items, t.err = run(ctx, t)
		if errors.Is(t.err, context.Canceled) {
			t.err = errStoreClosed
		}
	})
	return t, nil
}

func (ts *tasks) forget(which nfs.Task, t *task) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t.patience.Stop()
	t.cancel()
	if ts.running[which] == t {
		delete(ts.running, which)
	}
}

// stop ends all tasks.
func (ts *tasks) stop() {
	ts.mu.Lock()
	ts.closed = true
	for _, t := range ts.running {
		t.patience.Stop()
		t.cancel()
	}
	ts.mu.Unlock()
	ts.group.Wait()
}
