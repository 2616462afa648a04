package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

const (
	// defaultCopyJobs is how many trees are copied at once.
	defaultCopyJobs = 2
	// jobScan is how often unfinished jobs of other processes are looked for.
	jobScan = time.Minute
	// jobReport is how often the log says how far a copy is.
	jobReport = 10 * time.Second
	// longestRetry bounds the pause after a failure that may pass by itself.
	longestRetry = time.Minute
)

var (
	errStopped   = errors.New("the store is being closed")
	errJobGone   = errors.New("it was deleted, or completed by another process")
	errLostLease = errors.New("the job's lease could not be renewed in time, so another process may have it by now")
)

// jobs carries copies through, in the background, a few at a time. What it keeps in
// memory is only which it works on: see jobDir for what a job is, leaseState for who
// of several processes works on it.
type jobs struct {
	s      *Store
	ctx    context.Context
	cancel context.CancelCauseFunc
	slots  chan struct{}
	group  sync.WaitGroup
	read   atomic.Bool // work/ has been looked through
	limits atomic.Pointer[timeLimits]
	crowd  crowd

	mu     sync.Mutex
	runs   map[string]*run      // by jobDir.key
	made   map[string]time.Time // jobs made by this process, which has their first lease since then
	closed bool
	counts jobCounts
}

// jobCounts are since the store was opened.
type jobCounts struct {
	failed       uint64 // jobs given up
	bytes, files int64  // copied
}

func newJobs(ctx context.Context, s *Store) *jobs {
	// They outlive the call that opens the store; the store ends them.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	return &jobs{s: s, ctx: ctx, cancel: cancel, slots: make(chan struct{}, defaultCopyJobs), runs: map[string]*run{}, made: map[string]time.Time{}}
}

// stop ends all runs and gives their leases up, so that another process can go on
// at once.
func (j *jobs) stop() {
	j.mu.Lock()
	j.closed = true
	j.mu.Unlock()
	j.cancel(errStopped)
	j.group.Wait()
}

// watch takes up what other processes have left, unless the store is only to look.
func (j *jobs) watch() {
	if j.s.opts.Passive {
		j.read.Store(true)
		return
	}
	tick := time.NewTicker(jobScan)
	defer tick.Stop()
	for {
		err := j.s.scanJobs(j.ctx)
		if err != nil && j.ctx.Err() == nil {
			klog.FromContext(j.ctx).Info("Unfinished snapshots and clones cannot be looked for; trying again", "err", err)
		}
		j.read.Store(err == nil || j.read.Load())
		select {
		case <-j.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// making announces a job that is about to be made, with its first lease, and
// withdraws it when that failed.
func (j *jobs) making(r *jobRecord, failed bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if failed {
		delete(j.made, jobKey(r))
		return
	}
	j.made[jobKey(r)] = time.Now()
}

// start has the job worked on and returns the run, which may have been there. The
// caller keeps the job.
func (j *jobs) start(ctx context.Context, l *layout, job *jobDir) (*run, error) {
	key := job.key()
	j.mu.Lock()
	defer j.mu.Unlock()
	if r := j.runs[key]; r != nil {
		return r, nil
	}
	if j.closed {
		return nil, fmt.Errorf("%w: %w", nfs.ErrUnavailable, errStopped)
	}
	held, err := job.again(ctx)
	if err != nil {
		return nil, err
	}
	runCtx, cancel := context.WithCancelCause(j.ctx)
	mine := *job
	mine.dir = held
	r := &run{s: j.s, l: l, job: &mine, cancel: cancel, ended: make(chan struct{})}
	if since, ok := j.made[key]; ok {
		r.lease, r.renewed = firstLease, since
		delete(j.made, key)
	}
	j.runs[key] = r
	j.group.Go(func() {
		defer cancel(nil)
		r.err = r.loop(runCtx)
		mine.close()
		j.mu.Lock()
		delete(j.runs, key)
		j.mu.Unlock()
		close(r.ended)
	})
	return r, nil
}

// of returns the run of that job, nil when there is none.
func (j *jobs) of(r *jobRecord) *run {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.runs[jobKey(r)]
}

// progressOf says how far a job is.
func (j *jobs) progressOf(r *jobRecord) string {
	if run := j.of(r); run != nil {
		return run.progress()
	}
	return "it has just ended"
}

// copying returns a run that is reading from the source at this moment.
func (j *jobs) copying(is func(jobSource) bool) *run {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, r := range j.runs {
		if r.copy.Load() != nil && is(r.job.record.Source) {
			return r
		}
	}
	return nil
}

// count adds what has been copied, which never becomes less.
func (j *jobs) count(bytes, files int64, failed bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.counts.bytes += max(0, bytes)
	j.counts.files += max(0, files)
	if failed {
		j.counts.failed++
	}
}

// backlog adds to b what the jobs have to say.
func (j *jobs) backlog(b *Backlog) {
	j.mu.Lock()
	defer j.mu.Unlock()
	b.Jobs, b.JobsFailed = len(j.runs), j.counts.failed
	b.CopiedBytes, b.CopiedFiles = j.counts.bytes, j.counts.files
	b.Settled = b.Settled && j.read.Load() && len(j.runs) == 0
}

// run is the work of this process on one job.
type run struct {
	s      *Store
	l      *layout
	job    *jobDir
	cancel context.CancelCauseFunc
	ended  chan struct{}
	err    error // how it ended; nil when the job is complete

	// lease is the last that was seen or, since renewed, had.
	lease   leaseState
	renewed time.Time
	copy    atomic.Pointer[treeCopy] // while it runs
}

// progress says how far it is.
func (r *run) progress() string {
	c := r.copy.Load()
	if c == nil {
		return "waiting for its turn, or for the process that was at work on it"
	}
	return c.progress().String()
}

// loop tries until the job is complete, given up or gone.
func (r *run) loop(ctx context.Context) error {
	log := klog.FromContext(ctx).WithValues(string(r.job.record.Kind), r.job.record.Name, "source", r.job.record.Source.String())
	ctx = klog.NewContext(ctx, log)
	for failures := 0; ; {
		began := time.Now()
		err := r.attempt(ctx)
		switch {
		case err == nil:
			log.Info("Copied", "duration", time.Since(began).Round(time.Millisecond))
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errJobGone):
			log.Info("The copy was ended", "reason", err)
			return err
		case isFinal(err):
			return err
		case errors.Is(err, errLostLease):
			log.Info("Another process may be at work on the copy", "err", err)
			continue
		}
		pause := min(backoff(failures), longestRetry)
		failures++
		log.Info("The copy failed and will be continued", "err", err, "in", pause)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-timer.C:
		}
	}
}

// isFinal says that an operator has something to do before the copy can succeed.
func isFinal(err error) bool {
	for _, cause := range []error{nfs.ErrFull, nfs.ErrPermission, nfs.ErrForeign, nfs.ErrInvalid, nfs.ErrNotFound, nfs.ErrOutOfRange} {
		if errors.Is(err, cause) {
			return true
		}
	}
	return false
}

// attempt works on the job while it has the lease.
func (r *run) attempt(ctx context.Context) error {
	if err := r.acquire(ctx); err != nil {
		return err
	}
	work, cancel := context.WithCancelCause(ctx)
	var keeping sync.WaitGroup
	keeping.Go(func() { r.keep(work, cancel) })
	err := r.carryOut(work)
	if err != nil {
		err = r.orGone(work, err)
	}
	if err != nil && work.Err() != nil {
		err = context.Cause(work)
	}
	if isFinal(err) {
		err = r.giveUp(work, err)
	}
	cancel(nil)
	keeping.Wait()
	if err == nil {
		if r.job.record.Kind == snapshotJob {
			// Nobody needs it any more, so that it does no harm where it stays.
			_ = r.job.unlink(context.WithoutCancel(ctx), r.lease.name())
		}
		return nil
	}
	r.release(context.WithoutCancel(ctx))
	return err
}

func (r *run) carryOut(ctx context.Context) error {
	select {
	case r.s.jobs.slots <- struct{}{}:
		defer func() { <-r.s.jobs.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if r.job.record.Kind == cloneJob {
		// Since the run began another process may have completed it, and moved the data.
		if done, err := r.job.completion(ctx); err != nil || done != nil {
			return err
		}
	}
	// A call has asked for another try.
	if err := r.job.unlink(ctx, failureName); err != nil && !isAbsent(err) {
		return err
	}
	src, err := r.s.openSource(ctx, r.l, r.job.record.Source)
	if err != nil {
		return err
	}
	defer src.dir.close()
	c := copyIn(src.dir, r.job.dir, jobName(r.job.record.Kind, r.job.record.ID), copyOptions{still: src.still, expected: src.expected, limits: &r.s.jobs.limits})
	r.copy.Store(c)
	defer r.copy.Store(nil)
	reported := make(chan struct{})
	watching, stop := context.WithCancel(ctx)
	go func() {
		defer close(reported)
		r.report(watching, c)
	}()
	ended := r.s.jobs.crowd.begin(r.s.opts.Copying)
	m, err := c.run(ctx)
	ended()
	stop()
	<-reported
	if err != nil {
		return err
	}
	// As long as the source stands, nothing of it has been purged: so it was all there
	// while it was copied.
	if err := src.stands(ctx); err != nil {
		return err
	}
	if r.job.record.Kind == snapshotJob {
		return r.finishSnapshot(ctx)
	}
	return r.finishClone(ctx, m)
}

// report counts and logs what has been copied, until ctx ends.
func (r *run) report(ctx context.Context, c *treeCopy) {
	tick := time.NewTicker(jobReport)
	defer tick.Stop()
	var bytes, files int64
	count := func() {
		nowBytes, nowFiles := c.bytes.Load(), c.total.files.Load()
		r.s.jobs.count(nowBytes-bytes, nowFiles-files, false)
		bytes, files = max(bytes, nowBytes), max(files, nowFiles)
	}
	for {
		select {
		case <-ctx.Done():
			count()
			return
		case <-tick.C:
			count()
			klog.FromContext(ctx).Info("Copying", "progress", c.progress().String())
		}
	}
}

// leaseTime is how long a lease holds.
func (r *run) leaseTime() time.Duration {
	if r.s.opts.lease > 0 {
		return r.s.opts.lease
	}
	return defaultLease
}

// acquire waits until the job is this process's.
func (r *run) acquire(ctx context.Context) error {
	if r.lease.held && time.Since(r.renewed) < r.leaseTime()/4 {
		return nil // It is the first one.
	}
	tick := time.NewTicker(r.leaseTime() / 6)
	defer tick.Stop()
	var seen leaseState
	var since time.Time
	for {
		now, err := readLease(ctx, r.job.dir)
		if err != nil {
			return r.orGone(ctx, err)
		}
		if since.IsZero() || now != seen {
			seen, since = now, time.Now()
		}
		free := now.n > 0 && !now.held
		if free || time.Since(since) >= r.leaseTime() {
			began := time.Now()
			next, err := now.swap(ctx, r.job.dir, true)
			if err == nil {
				r.lease, r.renewed = next, began
				return nil
			}
			if !isLost(err) {
				return r.orGone(ctx, err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if err := r.orGone(ctx, nil); err != nil {
			return err
		}
	}
}

// keep renews the lease until ctx ends. It cancels the work when that could not be
// done for half the time of a lease, when another process has the lease, and when
// the job is deleted.
func (r *run) keep(ctx context.Context, cancel context.CancelCauseFunc) {
	half := r.leaseTime() / 2
	// Not this goroutine: it may be waiting for the server.
	fence := time.AfterFunc(half-time.Since(r.renewed), func() { cancel(errLostLease) })
	defer fence.Stop()
	tick := time.NewTicker(r.leaseTime() / 6)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		began := time.Now()
		next, err := r.lease.swap(ctx, r.job.dir, true)
		switch {
		case err == nil:
			r.lease, r.renewed = next, began
			fence.Reset(half - time.Since(began))
			err = r.orGone(ctx, nil)
		case isLost(err):
			err = r.orGone(ctx, errLostLease)
		default:
			err = nil // It is tried again until the fence falls.
		}
		if err != nil {
			cancel(err)
			return
		}
	}
}

// orGone is errJobGone when the job has been deleted, else err.
func (r *run) orGone(ctx context.Context, err error) error {
	there, lookErr := r.s.stillThere(ctx, r.job.parent, r.job.name, r.job.ino)
	if lookErr == nil && !there {
		return errJobGone
	}
	return err
}

// release lets others have the job at once. It does nothing if somebody has taken
// the lease.
func (r *run) release(ctx context.Context) {
	next, err := r.lease.swap(ctx, r.job.dir, false)
	if err == nil {
		r.lease = next
	} else if !isLost(err) && !errors.Is(err, nfs.ErrStale) {
		klog.FromContext(ctx).V(2).Info("A lease could not be given up and will expire", "err", err)
	}
	r.renewed = time.Time{}
}

// giveUp records why the job failed, and frees the space that it has taken.
func (r *run) giveUp(ctx context.Context, why error) error {
	klog.FromContext(ctx).Info("The copy failed for good; it starts anew when it is asked for again", "err", why)
	r.s.jobs.count(0, 0, true)
	// In this order: a copy with a manifest is taken to be whole, and one without the
	// time of its beginning is begun anew.
	for _, name := range []string{manifestName, beganName, dataName, linksName, junkName} {
		if err := r.s.toTrash(ctx, r.l, r.job.dir, name, r.job.record.ID); err != nil {
			return fmt.Errorf("%w; and what was copied could not be removed: %v", why, err)
		}
	}
	// On a full disk it may take a moment until there is room for this.
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var err error
	for range 50 {
		if err = r.job.replace(ctx, failureName, failureOf(why)); !errors.Is(err, nfs.ErrFull) {
			break
		}
		select {
		case <-ctx.Done():
			return why
		case <-tick.C:
		}
	}
	if err != nil {
		return fmt.Errorf("%w; and that could not be recorded: %v", why, err)
	}
	return why
}
