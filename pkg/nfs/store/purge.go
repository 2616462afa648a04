package store

import (
	"context"
	"errors"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

const (
	deepPrefix = "deep."

	// maxDepth bounds the descriptors and the stack that a tree takes.
	maxDepth     = 32
	workAge      = time.Hour
	firstBackoff = 2 * time.Second
	lastBackoff  = 10 * time.Minute
)

// purger removes what is in the trash, in the background.
type purger struct {
	s       *Store
	limiter *rate.Limiter
	slots   chan struct{} // one for each unlink that may run beside the first
	wake    chan struct{}
	cancel  context.CancelFunc
	done    chan struct{}
	removed atomic.Uint64
	read    atomic.Bool // the last pass could read the trash

	mu      sync.Mutex
	entries map[string]*entry // by name in the trash
	claims  map[string]string // claims to be freed: the names of their entries, as confirmed
}

// entry is what the purger remembers of something in the trash.
type entry struct {
	completed bool // its delete has left nothing to do
	held      bool // about to be put there by this store, which will confirm it
	failures  int
	next      time.Time // not before
}

func startPurger(ctx context.Context, s *Store) *purger {
	// It outlives the call that opens the store; the store ends it.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	limit := rate.Inf
	if s.opts.PurgeRate > 0 {
		limit = rate.Limit(s.opts.PurgeRate)
	}
	p := &purger{
		s:       s,
		limiter: rate.NewLimiter(limit, max(1, s.opts.PurgeRate/10)),
		slots:   make(chan struct{}, s.opts.PurgeConcurrency-1),
		wake:    make(chan struct{}, 1),
		cancel:  cancel,
		done:    make(chan struct{}),
		entries: map[string]*entry{},
		claims:  map[string]string{},
	}
	go p.run(ctx)
	return p
}

func (p *purger) stop() {
	p.cancel()
	<-p.done
}

// hold announces an entry that points to what is not there yet, so that the purge
// does not take it for one whose tree is gone. What is never confirmed, because
// the move failed, is looked at when the grace is over.
func (p *purger) hold(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.entries[name] = &entry{held: true, next: time.Now().Add(defaultGrace)}
}

// confirm says that this store has put the entry in the trash and knows that it
// belongs there.
func (p *purger) confirm(name string) {
	p.mu.Lock()
	if p.entries[name] == nil {
		p.entries[name] = &entry{}
	}
	p.entries[name].held = false
	done, _ := parseTrashName(name)
	p.claims[done.claim] = name
	// Earlier attempts to delete the volume may have left entries that waited for this.
	for other, e := range p.entries {
		if t, ok := parseTrashName(other); ok && t.id == done.id && !e.held {
			e.next = time.Time{}
		}
	}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *purger) backlog() Backlog {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := Backlog{RemovedFiles: p.removed.Load(), Settled: p.read.Load() && len(p.entries) == 0}
	b.Entries = len(p.entries)
	for _, e := range p.entries {
		if e.failures > 0 {
			b.Failing++
		}
	}
	return b
}

func (p *purger) run(ctx context.Context) {
	defer close(p.done)
	log := klog.FromContext(ctx)
	if err := p.clearWork(ctx); err != nil && ctx.Err() == nil {
		log.Info("Old temporary files were not removed", "err", err)
	}
	failures := 0
	for {
		next, err := p.pass(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			next = time.Now().Add(backoff(failures))
			failures++
			log.Info("The trash cannot be read and will be tried again", "err", err, "next", next)
		default:
			failures = 0
		}
		p.read.Store(err == nil)
		// A delete wakes it, and another may follow at once.
		if !p.sleep(ctx, next) || p.yield(ctx) != nil {
			return
		}
	}
}

// sleep waits until the time comes, unless it is zero, or until there is
// something new in the trash; false means the end.
func (p *purger) sleep(ctx context.Context, until time.Time) bool {
	var due <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-ctx.Done():
		return false
	case <-p.wake:
	case <-due:
	}
	return true
}

func backoff(failures int) time.Duration {
	return min(firstBackoff<<min(failures, 20), lastBackoff)
}

// clearWork removes temporary files that no process can be writing any more.
func (p *purger) clearWork(ctx context.Context) error {
	l, err := p.s.layout(ctx)
	if err != nil || l == nil {
		return err
	}
	return l.work.list(ctx, func(names []string) error {
		for _, name := range names {
			st, err := l.work.lstat(ctx, name)
			if err == nil && !st.isDir() && time.Since(time.Unix(st.mtime.Unix())) > workAge {
				err = l.work.unlink(ctx, name)
			}
			if err != nil && !isAbsent(err) {
				return err
			}
		}
		return nil
	})
}

// pass takes one turn at everything in the trash that is due, and says when the
// next will be; never, if that is zero.
func (p *purger) pass(ctx context.Context) (next time.Time, err error) {
	l, err := p.s.layout(ctx)
	if err != nil || l == nil {
		return time.Time{}, err
	}
	defer func() { p.s.reopenAfter(l, err) }()
	due, err := p.scan(ctx, l)
	if err != nil {
		return time.Time{}, err
	}
	due = slices.DeleteFunc(due, func(name string) bool { return !p.prepare(ctx, l, name) })
	var wg sync.WaitGroup
	for _, name := range due {
		p.spawn(&wg, func() { p.turn(ctx, l, name) })
	}
	wg.Wait()

	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.entries {
		if next.IsZero() || e.next.Before(next) {
			next = e.next
		}
	}
	return next, nil
}

// scan looks at what is in the trash and returns what is due.
func (p *purger) scan(ctx context.Context, l *layout) (due []string, err error) {
	if err := l.trash.refresh(ctx); err != nil {
		return nil, err
	}
	p.mu.Lock()
	before := make(map[string]bool, len(p.entries))
	for name := range p.entries {
		before[name] = true
	}
	p.mu.Unlock()
	now := time.Now()
	err = l.trash.list(ctx, func(names []string) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, name := range names {
			delete(before, name)
			e := p.entries[name]
			if e == nil {
				e = &entry{next: p.firstTry(name, now)}
				p.entries[name] = e
			}
			if !e.next.After(now) {
				due = append(due, name)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for name := range before { // known, but in the trash no more
		if e := p.entries[name]; e != nil && e.held && e.next.After(now) {
			continue // or not yet
		}
		delete(p.entries, name)
		if t, ok := parseTrashName(name); ok && p.claims[t.claim] == name {
			delete(p.claims, t.claim)
		}
	}
	return due, nil
}

// firstTry says when something that this store has not put into the trash may go.
func (p *purger) firstTry(name string, now time.Time) time.Time {
	grace := p.s.opts.purgeGrace
	if grace == 0 {
		grace = defaultGrace
	}
	t, ok := parseTrashName(name)
	if !ok || grace < 0 {
		return now
	}
	if t.since.After(now) { // other clocks may be ahead
		t.since = now
	}
	return t.since.Add(grace)
}

// spawn runs f beside the caller if a slot is free, else in its place.
func (p *purger) spawn(wg *sync.WaitGroup, f func()) {
	select {
	case p.slots <- struct{}{}:
		wg.Go(func() {
			defer func() { <-p.slots }()
			f()
		})
	default:
		f()
	}
}

// prepare completes the delete of an entry, for all entries before the first is
// removed: directories should not stay claimed as long as that may take.
func (p *purger) prepare(ctx context.Context, l *layout, name string) (ready bool) {
	p.mu.Lock()
	e := p.entries[name]
	completed := e != nil && e.completed
	p.mu.Unlock()
	if completed {
		return true
	}
	err := p.pace(ctx)
	if err == nil {
		err = p.complete(ctx, l, name)
	}
	if err != nil {
		p.postpone(ctx, l, name, err)
	}
	return err == nil
}

// turn takes its turn at one entry of the trash.
func (p *purger) turn(ctx context.Context, l *layout, name string) {
	if err := p.take(ctx, l, name); err != nil {
		p.postpone(ctx, l, name, err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.entries, name)
}

// postpone remembers an entry that could not be removed.
func (p *purger) postpone(ctx context.Context, l *layout, name string, err error) {
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entries[name]
	if e == nil {
		e = &entry{}
		p.entries[name] = e
	}
	e.next = time.Now().Add(backoff(e.failures))
	if errors.Is(err, nfs.ErrBusy) {
		return
	}
	e.failures++
	klog.FromContext(ctx).Info("A deleted volume cannot be removed from the disk and will be tried again",
		"entry", path.Join(l.trash.path, name), "err", err, "next", e.next, "failures", e.failures)
}

func (p *purger) unlink(ctx context.Context, d *dir, name string) error {
	if err := p.pace(ctx); err != nil {
		return err
	}
	err := d.unlink(ctx, name)
	if err == nil {
		p.removed.Add(1)
	}
	if isAbsent(err) {
		return nil
	}
	return err
}

// remove removes the entry of that name and all beneath it. What other processes
// remove at the same time is fine. top is the uppermost directory of the tree
// and nil for the entry that is the tree.
func (p *purger) remove(ctx context.Context, parent *dir, name string, top *dir, depth int) error {
	err := p.unlink(ctx, parent, name)
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	if depth >= maxDepth {
		// Further up it is reached again, with fewer directories held open.
		err := parent.rename(ctx, name, top, deepPrefix+randomName())
		if errors.Is(err, nfs.ErrPermission) && parent.widen(ctx, name) == nil {
			err = parent.rename(ctx, name, top, deepPrefix+randomName())
		}
		return ignoreAbsent(err)
	}
	d, err := parent.openDir(ctx, name)
	if errors.Is(err, nfs.ErrPermission) && parent.widen(ctx, name) == nil {
		d, err = parent.openDir(ctx, name)
	}
	if err != nil {
		return ignoreAbsent(err)
	}
	defer d.close()
	if top == nil {
		top = d
	}
	// The directory itself may vanish beneath us; rmdir will tell.
	if err := p.empty(ctx, d, top, depth+1); err != nil && !isAbsent(err) && !errors.Is(err, nfs.ErrStale) {
		return err
	}
	if err := p.pace(ctx); err != nil {
		return err
	}
	if err = parent.rmdir(ctx, name); err == nil {
		p.removed.Add(1)
	}
	return ignoreAbsent(err)
}

func ignoreAbsent(err error) error {
	if isAbsent(err) {
		return nil
	}
	return err
}

// empty removes all that is in the directory. Names may be skipped when a
// directory is read while entries of it go, on NFS in particular, so it reads
// again until there is nothing, or nothing that can be removed.
func (p *purger) empty(ctx context.Context, d, top *dir, depth int) error {
	for widened := false; ; {
		seen, failed, err := p.sweep(ctx, d, top, depth)
		switch {
		case err != nil:
			return err
		case seen == 0:
			return nil
		case failed == nil:
			continue
		case errors.Is(failed, nfs.ErrPermission) && !widened && d.chmod(ctx, 0o700) == nil:
			widened = true
		default:
			return failed
		}
	}
}

// sweep reads the directory once and removes what it sees. failed is the first
// failure to remove something.
func (p *purger) sweep(ctx context.Context, d, top *dir, depth int) (seen int, failed, err error) {
	var mu sync.Mutex
	err = d.list(ctx, func(names []string) error {
		seen += len(names)
		var wg sync.WaitGroup
		for _, name := range names {
			p.spawn(&wg, func() {
				if err := p.remove(ctx, d, name, top, depth); err != nil {
					mu.Lock()
					defer mu.Unlock()
					if failed == nil {
						failed = err
					}
				}
			})
		}
		wg.Wait()
		return ctx.Err()
	})
	return seen, failed, err
}
