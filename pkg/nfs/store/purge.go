package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

const (
	defaultTurn    = 10 * time.Second
	turnOperations = 1000 // there is time for, at least

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
	p.takeAll(ctx, l, due)

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

// turn is how long trees are unlinked without a look at what else there is to do.
func (p *purger) turn() time.Duration {
	turn := cmp.Or(p.s.opts.purgeTurn, defaultTurn)
	if rate := p.s.opts.PurgeRate; rate > 0 && p.s.opts.purgeTurn == 0 {
		// The way down to where it went on last time costs as many operations as it has directories.
		turn = max(turn, turnOperations*time.Second/time.Duration(rate))
	}
	return turn
}

// takeAll removes the entries, or as much of them as there is time for.
func (p *purger) takeAll(ctx context.Context, l *layout, due []*entry) {
	// No deadline: the limiter would fail at once when it cannot be met.
	turn, cancel := context.WithCancel(ctx)
	defer cancel()
	defer time.AfterFunc(p.turn(), cancel).Stop()
	var wg sync.WaitGroup
	for _, e := range due {
		p.spawn(&wg, func() {
			if p.try(turn, l, e, p.take) {
				p.forget(e)
			}
		})
	}
	wg.Wait()
	if turn.Err() != nil {
		p.wakeUp()
	}
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
