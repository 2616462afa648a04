package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

var errClosed = errors.New("the driver is stopping")

// pool owns the keepers, the processes and every goroutine of a StorePool or a
// MountPool.
type pool struct {
	kind    string // "store" or "mount", for logs and metrics
	options Options
	ctx     context.Context // ends with the pool
	cancel  context.CancelFunc
	running sync.WaitGroup

	// mu is taken after a keeper's, never before it.
	mu        sync.Mutex
	closed    bool
	keepers   map[string]*keeper
	processes map[*process]struct{}
	spare     *process

	// spareTaken has an element when there is no spare.
	spareTaken chan struct{}
	// looks has an element for each keeper that looks at an export nobody uses.
	looks chan struct{}
}

func newPool(ctx context.Context, kind string, options Options) *pool {
	ctx, cancel := context.WithCancel(ctx)
	p := &pool{
		kind:      kind,
		options:   options.withDefaults(),
		ctx:       ctx,
		cancel:    cancel,
		keepers:   map[string]*keeper{},
		processes: map[*process]struct{}{},

		spareTaken: make(chan struct{}, 1),
		looks:      make(chan struct{}, looksAtOnce),
	}
	if options.Spare {
		p.run(p.keepSpare)
	}
	return p
}

// run runs f in a goroutine that Close waits for. It returns false, and does
// nothing, once the pool is closed.
func (p *pool) run(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.running.Go(f)
	return true
}

// use returns the keeper of the key, made where there was none, and holds it
// until release is called.
func (p *pool) use(key string, create func() *keeper) *keeper {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.keepers[key]
	if k == nil {
		k = create()
		k.pool, k.key = p, key
		p.keepers[key] = k
		if !p.closed {
			p.running.Go(k.tend)
		}
	}
	k.holds++
	return k
}

func (p *pool) hold(k *keeper) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k.holds++
}

func (p *pool) release(k *keeper) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k.holds--
}

// forget removes the keeper unless somebody holds it.
func (p *pool) forget(k *keeper) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k.holds > 0 {
		return false
	}
	delete(p.keepers, k.key)
	return true
}

// all returns the keepers in the order of their keys.
func (p *pool) all() []*keeper {
	p.mu.Lock()
	defer p.mu.Unlock()
	keepers := make([]*keeper, 0, len(p.keepers))
	for _, k := range p.keepers {
		keepers = append(keepers, k)
	}
	slices.SortFunc(keepers, func(a, b *keeper) int { return strings.Compare(a.key, b.key) })
	return keepers
}

// start returns a worker process: the spare one, or a new one.
func (p *pool) start() (*process, error) {
	p.mu.Lock()
	spare := p.spare
	p.spare = nil
	p.mu.Unlock()
	if spare == nil {
		return p.spawn()
	}
	select {
	case p.spareTaken <- struct{}{}:
	default:
	}
	if !spare.alive() {
		return p.spawn()
	}
	return spare, nil
}

// keepSpare keeps a spare process. The next one is started only some time after
// the last was taken, when the work that took it has been done: executing a
// program is the greater part of what the first call on an export costs.
func (p *pool) keepSpare() {
	for {
		spare, err := p.spawn()
		if err != nil {
			klog.FromContext(p.ctx).V(2).Info("No spare worker could be started", "kind", p.kind, "err", err)
		} else {
			p.mu.Lock()
			p.spare = spare
			p.mu.Unlock()
			select {
			case <-p.spareTaken:
			case <-p.ctx.Done():
				return
			}
		}
		select {
		case <-time.After(p.options.SpareDelay):
		case <-p.ctx.Done():
			return
		}
	}
}

// spawn starts a process and the goroutine that reaps it.
func (p *pool) spawn() (*process, error) {
	started := make(chan *process, 1)
	if !p.run(func() {
		if process := <-started; process != nil {
			process.reap()
			p.mu.Lock()
			defer p.mu.Unlock()
			delete(p.processes, process)
		}
	}) {
		return nil, errClosed
	}
	process, err := startProcess(p.options.Command())
	if err != nil {
		started <- nil
		return nil, err
	}
	p.mu.Lock()
	p.processes[process] = struct{}{}
	closed := p.closed
	p.mu.Unlock()
	started <- process
	if closed {
		// Close may not have seen it.
		process.kill(errClosed)
		return nil, errClosed
	}
	klog.FromContext(p.ctx).V(4).Info("Worker process started", "kind", p.kind, "pid", process.cmd.Process.Pid)
	return process, nil
}

// retire stops a process that is of no more use, without waiting for it.
func (p *pool) retire(process *process, why error) {
	process.end(why)
	p.run(func() { p.stop(process, why) })
}

// Close ends every worker and every goroutine of the pool: workers end by
// themselves or, after the stop timeout, by SIGKILL. Calls that still run fail
// with nfs.ErrUnavailable. A process that the kernel does not let go even then,
// because it cannot take the mount down, is left to the kernel. Close fails only
// when ctx ends first.
func (p *pool) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	var processes []*process
	for process := range p.processes {
		processes = append(processes, process)
	}
	p.mu.Unlock()
	p.cancel()

	done := make(chan struct{})
	go func() {
		defer close(done)
		var stops sync.WaitGroup
		for _, process := range processes {
			stops.Go(func() { p.stop(process, errClosed) })
		}
		stops.Wait()
		for _, process := range processes {
			select {
			case <-process.exited:
			default:
				return // Its reaper would be waited for in vain.
			}
		}
		p.running.Wait()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close the %s workers: %w", p.kind, context.Cause(ctx))
	}
}

func (p *pool) stop(process *process, why error) {
	if err := process.stop(why, p.options.StopTimeout); err != nil {
		klog.FromContext(p.ctx).Error(err, "Worker does not end", "kind", p.kind)
	}
}
