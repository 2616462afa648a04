package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

const (
	pointerSuffix = ".at"
	deepPrefix    = "deep."

	// maxDepth bounds the descriptors and the stack that a tree takes.
	maxDepth     = 32
	workAge      = time.Hour
	firstBackoff = 2 * time.Second
	lastBackoff  = 10 * time.Minute
)

// purger removes what is in the trash, in the background. An entry is a tree,
// or, by its suffix, the record of a volume whose deletion may not be complete
// (".json") or a pointer to a tree elsewhere on the export (".at").
type purger struct {
	s       *Store
	limiter *rate.Limiter
	slots   chan struct{} // one for each unlink that may run beside the first
	wake    chan struct{}
	cancel  context.CancelFunc
	done    chan struct{}
	removed atomic.Uint64

	mu      sync.Mutex
	entries map[string]*entry // by name in the trash
}

// entry is what the purger remembers of something in the trash.
type entry struct {
	confirmed bool // put there by this store, and rightly
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
	p.entries[name].confirmed, p.entries[name].held = true, false
	p.entries[name].next = time.Time{}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *purger) backlog() Backlog {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := Backlog{RemovedFiles: p.removed.Load()}
	for name, e := range p.entries {
		if strings.HasSuffix(name, recordSuffix) {
			continue
		}
		b.Entries++
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
	var wg sync.WaitGroup
	for _, name := range due {
		p.spawn(&wg, func() { p.take(ctx, l, name) })
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
	}
	return due, nil
}

// firstTry says when something that this store has not put into the trash may go.
func (p *purger) firstTry(name string, now time.Time) time.Time {
	grace := p.s.opts.purgeGrace
	if grace == 0 {
		grace = defaultGrace
	}
	name = strings.TrimSuffix(strings.TrimSuffix(name, recordSuffix), pointerSuffix)
	fields := strings.Split(name, ".")
	if len(fields) < 3 || grace < 0 {
		return now
	}
	since, err := time.Parse(trashTime, fields[len(fields)-2])
	if err != nil || since.After(now) { // other clocks may be ahead
		since = now
	}
	return since.Add(grace)
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

// take removes one entry of the trash and remembers what became of it.
func (p *purger) take(ctx context.Context, l *layout, name string) {
	stem, isRecord := strings.CutSuffix(name, recordSuffix)
	p.mu.Lock()
	e := p.entries[name]
	confirmed := e != nil && e.confirmed
	pointed := p.entries[stem+pointerSuffix] != nil
	p.mu.Unlock()

	var err error
	switch {
	case isRecord && pointed: // follow comes to it
	case isRecord:
		err = p.finish(ctx, l, name, confirmed)
	case strings.HasSuffix(name, pointerSuffix):
		err = p.follow(ctx, l, name)
	default:
		err = p.remove(ctx, l.trash, name, nil, 0)
	}
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		delete(p.entries, name)
		return
	}
	if e = p.entries[name]; e == nil {
		e = &entry{}
		p.entries[name] = e
	}
	e.next = time.Now().Add(backoff(e.failures))
	e.failures++
	klog.FromContext(ctx).Info("A deleted volume cannot be removed from the disk and will be tried again",
		"entry", path.Join(l.trash.path, name), "err", err, "next", e.next, "failures", e.failures)
}

// finish completes the deletion of a volume by its record in the trash, unless
// the store that put it there has said that it is complete.
func (p *purger) finish(ctx context.Context, l *layout, name string, confirmed bool) error {
	if !confirmed {
		data, _, err := readDocument(ctx, l.trash, name)
		switch {
		case isAbsent(err):
			return nil
		case err != nil:
			return err
		}
		r, err := decodeRecord(path.Join(l.trash.path, name), data)
		if err != nil {
			return err
		}
		now, err := l.recordForSure(ctx, r.ID)
		if err != nil {
			return err
		}
		if now == nil {
			if err := p.s.release(ctx, l, r); err != nil {
				return err
			}
		}
	}
	return p.unlink(ctx, l.trash, name)
}

// follow removes the tree that a pointer in the trash names, and the pointer.
func (p *purger) follow(ctx context.Context, l *layout, name string) error {
	target, err := l.trash.readlink(ctx, name)
	switch {
	case isAbsent(err):
		return nil
	case errors.Is(err, unix.EINVAL): // no pointer, whatever its name
		return p.remove(ctx, l.trash, name, nil, 0)
	case err != nil:
		return err
	}
	if base := path.Base(target); !strings.HasPrefix(base, hiddenPrefix) {
		return fmt.Errorf("%w: the text of the pointer, %q, is not what this driver writes; remove the pointer by hand", nfs.ErrForeign, target)
	}
	parent, _, err := p.s.walk(ctx, parentOf(target), lookForSure)
	if err == nil {
		err = p.remove(ctx, parent, path.Base(target), nil, 0)
		parent.close()
	}
	if err != nil && !isAbsent(err) {
		return err
	}
	// Only now its parents may be empty.
	if err := p.finish(ctx, l, strings.TrimSuffix(name, pointerSuffix)+recordSuffix, false); err != nil {
		return err
	}
	return p.unlink(ctx, l.trash, name)
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
