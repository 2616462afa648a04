package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

	unread = -1 // of purger.read
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
	asked   atomic.Int64 // how often someone wanted the trash read anew
	read    atomic.Int64 // that, when the last pass began that could read it; less if it failed

	mu      sync.Mutex
	entries map[string]*entry // in this store's slot, by name
	others  map[string]*otherSlot
	strange int // names in the trash that no store gives

	archives archives
}

// entry is a volume whose delete is decided, since its record is in the store's slot;
// or a tree there (see isTree).
type entry struct {
	name string
	busy chan struct{} // full while someone works on it, who alone uses what follows

	// announced is what the delete has made known of the archive, if it has.
	announced *archiveRecord
	// expired is the name of the archive that the entry is of, if it is of one.
	expired string

	// begun: no other process has ever had it.
	begun atomic.Bool

	place place
	slot  string // that the directory is in, with place inSlot
	claim bool   // may be in the slot
	// changes names the directory of the volume's changes, if it may have any.
	changes string

	// completed: nothing is left to do but to remove the files.
	completed atomic.Bool

	// With the purger's mu:
	failures int
	why      error     // the last of them
	next     time.Time // not before
}

// startPurger gives the store a purger, which the store ends.
func startPurger(ctx context.Context, s *Store) {
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
		others:  map[string]*otherSlot{},
	}
	p.read.Store(unread)
	p.archives.wake = p.wakeUp
	s.purge = p
	if s.opts.Passive {
		close(p.done)
		return
	}
	go func() {
		defer close(p.done)
		var wg sync.WaitGroup
		wg.Go(func() { p.beat(ctx) })
		p.run(ctx)
		wg.Wait()
	}()
}

func (p *purger) stop() {
	p.cancel()
	<-p.done
}

// begin returns a new entry for the volume made then, which its caller works on.
func (p *purger) begin(id string, created time.Time) *entry {
	return p.beginAs(newEntryName(id, created))
}

func (p *purger) beginAs(name string) *entry {
	e := &entry{name: name, busy: make(chan struct{}, 1)}
	e.begun.Store(true)
	e.busy <- struct{}{}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.entries[e.name] = e
	return e
}

// forget drops an entry that came to nothing.
func (p *purger) forget(e *entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.entries, e.name)
}

// acquire returns the entry of that name when nobody else works on it.
func (p *purger) acquire(ctx context.Context, name string) (*entry, error) {
	p.mu.Lock()
	e := p.entries[name]
	if e == nil {
		e = &entry{name: name, busy: make(chan struct{}, 1), claim: true}
		p.entries[name] = e
	}
	p.mu.Unlock()
	select {
	case e.busy <- struct{}{}:
		return e, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: the volume's delete is under way: %w", nfs.ErrBusy, ctx.Err())
	}
}

// entriesFor returns the names of the entries of the volume with that id that are
// not completed.
func (p *purger) entriesFor(id string) (names []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, e := range p.entries {
		if of, _ := parseEntryName(name); of == id && !e.completed.Load() {
			names = append(names, name)
		}
	}
	return names
}

// release ends what begin or acquire began, and leaves the rest to the purger.
func (p *purger) release(e *entry) {
	<-e.busy
	p.wakeUp()
}

// wakeUp makes the purger look at its entries now.
func (p *purger) wakeUp() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *purger) run(ctx context.Context) {
	log := klog.FromContext(ctx)
	if err := p.clearWork(ctx); err != nil && ctx.Err() == nil {
		log.Info("Old temporary files were not removed", "err", err)
	}
	failures := 0
	for {
		asked := p.asked.Load()
		next, err := p.pass(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			next = time.Now().Add(backoff(failures))
			failures++
			asked = unread
			log.Info("The trash cannot be read and will be tried again", "err", err, "next", next)
		default:
			failures = 0
		}
		p.read.Store(asked)
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
	next, err = p.takeOver(ctx, l)
	if err != nil {
		return time.Time{}, err
	}
	due, err := p.scan(ctx, l)
	if err != nil {
		return time.Time{}, err
	}
	// All deletes are completed before the first tree is removed: directories should
	// not stay claimed as long as that may take.
	due = slices.DeleteFunc(due, func(e *entry) bool { return !p.try(ctx, l, e, p.completeEntry) })
	expires, expireErr := p.expire(ctx, l)
	var wg sync.WaitGroup
	for _, e := range due {
		p.spawn(&wg, func() {
			if p.try(ctx, l, e, p.take) {
				p.forget(e)
			}
		})
	}
	wg.Wait()

	if expireErr != nil {
		return time.Time{}, expireErr
	}
	if next.IsZero() || expires.Before(next) {
		next = expires
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.entries {
		if next.IsZero() || e.next.Before(next) {
			next = e.next
		}
	}
	return next, nil
}

// scan returns the entries of this store's slot that are due.
func (p *purger) scan(ctx context.Context, l *layout) (due []*entry, err error) {
	now := time.Now()
	own := l.own.Load()
	there := map[string]bool{}
	p.mu.Lock()
	before := slices.Collect(maps.Values(p.entries))
	p.mu.Unlock()
	if own != nil {
		if err := own.refresh(ctx); err != nil && !errors.Is(l.checkSlot(ctx, own), nfs.ErrStale) {
			return nil, err
		}
		names, err := entriesOf(ctx, own)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			there[name] = true
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range before {
		// What is not there is another process' now, unless it is on its way there.
		if !there[e.name] && len(e.busy) == 0 {
			delete(p.entries, e.name)
		}
	}
	for name := range there {
		e := p.entries[name]
		if e == nil {
			e = &entry{name: name, busy: make(chan struct{}, 1), claim: true}
			p.entries[name] = e
		}
		if len(e.busy) == 0 && !e.next.After(now) {
			due = append(due, e)
		}
	}
	return due, nil
}

// try does a step with an entry, unless someone else is at it, and says whether
// it is done.
func (p *purger) try(ctx context.Context, l *layout, e *entry, step func(context.Context, *layout, *entry) error) bool {
	select {
	case e.busy <- struct{}{}:
	default:
		return false
	}
	defer func() { <-e.busy }()
	err := p.pace(ctx)
	if err == nil {
		err = step(ctx, l, e)
	}
	if err != nil {
		p.postpone(ctx, l, e, err)
	}
	return err == nil
}

// postpone remembers an entry that could not be removed.
func (p *purger) postpone(ctx context.Context, l *layout, e *entry, err error) {
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e.next = time.Now().Add(backoff(e.failures))
	// Without its record, it is another process' by now, and not seen again.
	if errors.Is(err, nfs.ErrBusy) || errors.Is(err, nfs.ErrStale) || isAbsent(err) {
		return
	}
	e.failures++
	e.why = err
	klog.FromContext(ctx).Info("A deleted volume cannot be removed from the disk and will be tried again",
		"entry", path.Join(l.trash.path, e.name), "err", err, "next", e.next, "failures", e.failures)
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
