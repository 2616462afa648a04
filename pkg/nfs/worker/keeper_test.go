package worker

import (
	"context"
	"errors"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// open returns the store of the export and its worker's pid.
func open(t *testing.T, pool *StorePool, e nfs.Export) (*Store, string) {
	t.Helper()
	s, err := pool.Open(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	return s, pidOf(t, s)
}

func pidOf(t *testing.T, s *Store) string {
	t.Helper()
	v, err := s.GetVolume(t.Context(), "pid")
	if err != nil {
		t.Fatal(err)
	}
	return v.Name
}

// countersOf returns what the keeper of the export has counted.
func countersOf(pool *StorePool, e nfs.Export) counters {
	k := pool.keeper(e, false)
	defer pool.release(k)
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.counters
}

// background makes the call and returns where its error will come.
func background(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

func get(ctx context.Context, s *Store, id string) func() error {
	return func() error {
		_, err := s.GetVolume(ctx, id)
		return err
	}
}

func wantUnavailable(t *testing.T, what string, err error, pattern string) {
	t.Helper()
	if !errors.Is(err, nfs.ErrUnavailable) || !regexp.MustCompile(pattern).MatchString(err.Error()) {
		t.Errorf("%s: %v, want ErrUnavailable and /%s/", what, err, pattern)
	}
}

func TestConcurrentCallersShareTheStart(t *testing.T) {
	pool := newStorePool(t, StoreOptions{Options: testOptions()})
	e := export(t)
	pids := make([]string, 20)
	var wg sync.WaitGroup
	for i := range pids {
		wg.Go(func() {
			s, err := pool.Open(t.Context(), e)
			if err != nil {
				t.Error(err)
				return
			}
			v, err := s.GetVolume(t.Context(), "pid")
			if err != nil {
				t.Error(err)
			}
			pids[i] = v.Name
		})
	}
	wg.Wait()
	for _, pid := range pids {
		if pid != pids[0] {
			t.Fatalf("more than one worker: %v", pids)
		}
	}
	if c := countersOf(pool, e); c.starts != 1 {
		t.Errorf("%d workers were started, want 1", c.starts)
	}
}

func TestHungCallIsKilled(t *testing.T) {
	pool := newStorePool(t, StoreOptions{Options: testOptions()})
	dead, healthy := export(t), export(t)
	makeFIFO(t, filepath.Join(dead.Share, "hang"))
	makeFIFO(t, filepath.Join(dead.Share, "hang2"))
	s, pid := open(t, pool, dead)
	other, otherPID := open(t, pool, healthy)

	began := time.Now()
	first := background(get(t.Context(), s, "hang"))
	waitFor(t, "the first call hangs", func() bool { return exists(dead, "hang.waiting") }, func() string { return "" })
	second := background(get(t.Context(), s, "hang2"))
	waitFor(t, "the second call hangs", func() bool { return exists(dead, "hang2.waiting") }, func() string { return "" })
	// Other work on the same worker is not held up until then.
	if now := pidOf(t, s); now != pid {
		t.Errorf("the worker is %s, was %s", now, pid)
	}
	timeout := pool.options.CallTimeout
	for name, done := range map[string]<-chan error{"first": first, "second": second} {
		wantUnavailable(t, name, <-done, "^export unavailable: fake:.*GetVolume got no answer in "+timeout.String()+".*killed")
	}
	if took := time.Since(began); took < timeout || took > 5*timeout {
		t.Errorf("the hung calls took %s, the deadline is %s", took, timeout)
	}

	began = time.Now()
	wantUnavailable(t, "after the kill", get(t.Context(), s, "pid")(), `GetVolume got no answer.*; next try in 1 s$`)
	if _, err := pool.Open(t.Context(), dead); err == nil {
		t.Error("Open after the kill succeeded, want the breaker's error")
	}
	if took := time.Since(began); took > timeout/4 {
		t.Errorf("the breaker took %s to answer", took)
	}
	if now := pidOf(t, other); now != otherPID {
		t.Errorf("the other export's worker changed from %s to %s", otherPID, now)
	}

	// The server answers again.
	for _, name := range []string{"hang", "hang2"} {
		if err := unix.Unlink(filepath.Join(dead.Share, name)); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	waitFor(t, "the export works again", func() bool {
		err = get(t.Context(), s, "hang")()
		return err == nil
	}, func() string { return err.Error() })
	if now := pidOf(t, s); now == pid {
		t.Errorf("the worker is still %s", now)
	}
	if c := countersOf(pool, dead); c.kills != 1 || c.crashes != 0 || c.starts != 2 {
		t.Errorf("counted %+v, want 1 kill, no crash, 2 starts", c)
	}
	if pidOf(t, s); pool.keeperFailures(dead) != 0 {
		t.Errorf("the breaker is still open after calls that succeeded")
	}
}

func (p *StorePool) keeperFailures(e nfs.Export) int {
	k := p.keeper(e, false)
	defer p.release(k)
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failures
}

// One call goes through as a trial, all others are told so at once, and each
// failure doubles the pause.
func TestBreakerLetsOneTrialThrough(t *testing.T) {
	pool := newStorePool(t, StoreOptions{Options: testOptions()})
	e := export(t)
	s, _ := open(t, pool, e)
	makeFIFO(t, filepath.Join(e.Share, "hang"))
	wantUnavailable(t, "hung call", get(t.Context(), s, "hang")(), "got no answer")
	if err := unix.Unlink(filepath.Join(e.Share, "hang.waiting")); err != nil {
		t.Fatal(err)
	}

	var trial <-chan error
	waitFor(t, "a trial begins", func() bool {
		if trial != nil {
			select {
			case err := <-trial:
				wantUnavailable(t, "before the trial", err, "next try in")
				trial = nil
			default:
				return exists(e, "hang.waiting")
			}
		}
		if trial == nil {
			trial = background(get(t.Context(), s, "hang"))
		}
		return false
	}, func() string { return "no call was let through" })
	began := time.Now()
	for range 5 {
		wantUnavailable(t, "during the trial", get(t.Context(), s, "pid")(), "being tried again now$")
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("5 refusals took %s", took)
	}
	wantUnavailable(t, "the trial", <-trial, "got no answer")
	if n := pool.keeperFailures(e); n != 2 {
		t.Errorf("%d failures counted after a failed trial, want 2", n)
	}
}

func TestBackOff(t *testing.T) {
	o := Options{MinBackoff: time.Second, MaxBackoff: 30 * time.Second}
	k := &keeper{pool: &pool{options: o}}
	for _, want := range []int{1, 2, 4, 8, 16, 30, 30} {
		before := time.Now()
		k.backOffLocked(errors.New("x"))
		if pause := k.retryAt.Sub(before); int(pause.Seconds()) != want {
			t.Errorf("pause after failure %d is %s, want %d s", k.failures, pause, want)
		}
	}
}

func TestHungStartIsKilled(t *testing.T) {
	options := testOptions()
	options.StartTimeout = 2 * time.Second
	pool := newStorePool(t, StoreOptions{Options: options})
	e := export(t)
	makeFIFO(t, filepath.Join(e.Share, "open"))
	var calls []<-chan error
	for range 3 {
		calls = append(calls, background(func() error {
			_, err := pool.Open(t.Context(), e)
			return err
		}))
	}
	for _, done := range calls {
		wantUnavailable(t, "hung start", <-done, "could not be mounted and opened in 2s, its worker was killed")
	}
	if err := unix.Unlink(filepath.Join(e.Share, "open")); err != nil {
		t.Fatal(err)
	}
	var err error
	waitFor(t, "the export opens", func() bool {
		_, err = pool.Open(t.Context(), e)
		return err == nil
	}, func() string { return err.Error() })
}

func TestRefusedStart(t *testing.T) {
	pool := newStorePool(t, StoreOptions{Options: testOptions()})
	e := export(t)
	writeFile(t, filepath.Join(e.Share, "refuse"), "permission")
	for range 2 {
		// Prompt answers are not held against the server: each call asks again.
		if _, err := pool.Open(t.Context(), e); !errors.Is(err, nfs.ErrPermission) || err.Error() != "refused: permission denied" {
			t.Errorf("open: %v, want the worker's own ErrPermission", err)
		}
	}
	if len(pool.Exports()) != 0 {
		t.Errorf("an export that was never opened is listed: %v", pool.Exports())
	}
	writeFile(t, filepath.Join(e.Share, "refuse"), "unavailable")
	_, err := pool.Open(t.Context(), e)
	wantUnavailable(t, "first", err, "^refused: export unavailable$")
	_, err = pool.Open(t.Context(), e)
	wantUnavailable(t, "second", err, "refused.*; next try in 1 s$")
}

// The caller's own deadline brings an answer at once; the call is watched on.
func TestCallerGivesUp(t *testing.T) {
	pool := newStorePool(t, StoreOptions{Options: testOptions()})
	e := export(t)
	s, pid := open(t, pool, e)
	makeFIFO(t, filepath.Join(e.Share, "hang"))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	err := get(ctx, s, "hang")()
	if took := time.Since(began); took > time.Second {
		t.Errorf("the caller waited %s, its deadline was 100ms", took)
	}
	wantUnavailable(t, "caller's deadline", err, "got no answer in the caller's time")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v is no context.DeadlineExceeded", err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := get(canceled, s, "pid")(); !errors.Is(err, context.Canceled) || errors.Is(err, nfs.ErrUnavailable) {
		t.Errorf("canceled call: %v, want context.Canceled alone", err)
	}
	if now := pidOf(t, s); now != pid {
		t.Errorf("the worker was replaced before the pool's deadline")
	}
	waitFor(t, "the worker of the abandoned call is killed", func() bool { return countersOf(pool, e).kills == 1 },
		func() string { return "no kill counted" })
}

func TestCrash(t *testing.T) {
	pool := newStorePool(t, StoreOptions{Options: testOptions()})
	e := export(t)
	s, pid := open(t, pool, e)
	wantUnavailable(t, "crash", get(t.Context(), s, "crash")(), `ended by itself \(exit status 7\)`)
	wantUnavailable(t, "after the crash", get(t.Context(), s, "pid")(), `exit status 7.*; next try in 1 s$`)
	var err error
	waitFor(t, "a new worker runs", func() bool {
		err = get(t.Context(), s, "pid")()
		return err == nil
	}, func() string { return err.Error() })
	if now := pidOf(t, s); now == pid {
		t.Errorf("the worker is still %s", now)
	}
	if c := countersOf(pool, e); c.crashes != 1 || c.kills != 0 {
		t.Errorf("counted %+v, want 1 crash and no kill", c)
	}
}

func TestCrashWithoutCall(t *testing.T) {
	pool := newStorePool(t, StoreOptions{Options: testOptions()})
	e := export(t)
	open(t, pool, e)
	k := pool.keeper(e, false)
	defer pool.release(k)
	k.mu.Lock()
	p := k.current
	k.mu.Unlock()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the crash is noticed", func() bool { return countersOf(pool, e).crashes == 1 }, func() string { return "" })
	if k.used() {
		t.Error("the keeper believes that its worker runs")
	}
}

func TestStaleExportIsMountedAnew(t *testing.T) {
	pool := newStorePool(t, StoreOptions{Options: testOptions()})
	e := export(t)
	s, pid := open(t, pool, e)
	if err := get(t.Context(), s, "error:stale")(); !errors.Is(err, nfs.ErrStale) {
		t.Fatalf("%v, want ErrStale", err)
	}
	if now := pidOf(t, s); now == pid {
		t.Errorf("the worker is still %s", now)
	}
	if c := countersOf(pool, e); c.crashes != 0 || c.kills != 0 || c.starts != 2 {
		t.Errorf("counted %+v, want 2 starts and nothing else", c)
	}
}

func TestIdleWorkerIsStopped(t *testing.T) {
	options := testOptions()
	options.IdleTimeout = 300 * time.Millisecond
	pool := newStorePool(t, StoreOptions{Options: options})
	e := export(t)
	writeFile(t, filepath.Join(e.Share, "status"), "2 10")
	s, pid := open(t, pool, e)
	state := func() string {
		pool.mu.Lock()
		defer pool.mu.Unlock()
		return strings.Repeat("worker ", len(pool.processes))
	}
	// With something in the trash, or to copy, it stays however long nobody calls.
	for _, status := range []string{"2 10", "0 11 0 1"} {
		writeFile(t, filepath.Join(e.Share, "status"), status)
		deadline := time.After(5 * options.IdleTimeout)
		for waiting := true; waiting; {
			select {
			case <-deadline:
				waiting = false
			case <-time.After(10 * time.Millisecond):
				if state() == "" {
					t.Fatalf("the worker was stopped although there was work: %s", status)
				}
			}
		}
	}
	writeFile(t, filepath.Join(e.Share, "status"), "0 12")
	waitFor(t, "the idle worker ends", func() bool { return state() == "" }, state)
	if c := countersOf(pool, e); c.crashes != 0 || c.kills != 0 || c.status.TrashBacklog != 0 || c.purged+c.status.Purged != 12 {
		t.Errorf("counted %+v, want neither crash nor kill, an empty trash, 12 purged", c)
	}
	if now := pidOf(t, s); now == pid {
		t.Errorf("the worker is still %s", now)
	}
	if c := countersOf(pool, e); c.purged+c.status.Purged != 24 {
		t.Errorf("the next worker's 12 purged files were not added: %+v", c)
	}
}

// Work that waits in a trash is resumed without a caller: of exports configured,
// and after a crash.
func TestTrashIsResumed(t *testing.T) {
	e := export(t)
	writeFile(t, filepath.Join(e.Share, "status"), "3 0")
	pool := newStorePool(t, StoreOptions{Options: testOptions(), Exports: []nfs.Export{e}})
	starts := func(n int64) func() bool { return func() bool { return countersOf(pool, e).starts == n } }
	waitFor(t, "the configured export is opened", starts(1), func() string { return "" })
	k := pool.keeper(e, false)
	defer pool.release(k)
	k.mu.Lock()
	p := k.current
	k.mu.Unlock()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the export is opened again", starts(2), func() string { return "" })
}

func TestUnusedKeepersAreForgotten(t *testing.T) {
	options := testOptions()
	options.IdleTimeout = 50 * time.Millisecond
	pool := newStorePool(t, StoreOptions{Options: options})
	e := export(t)
	writeFile(t, filepath.Join(e.Share, "refuse"), "no-export")
	if _, err := pool.Open(t.Context(), e); !errors.Is(err, nfs.ErrNoExport) {
		t.Fatal(err)
	}
	waitFor(t, "the keeper goes", func() bool { return len(pool.all()) == 0 }, func() string { return "it is still there" })
}

func TestSpareIsUsed(t *testing.T) {
	options := testOptions()
	options.Spare, options.SpareDelay = true, time.Millisecond
	pool := newStorePool(t, StoreOptions{Options: options})
	spare := func() *process {
		pool.mu.Lock()
		defer pool.mu.Unlock()
		return pool.spare
	}
	waitFor(t, "there is a spare", func() bool { return spare() != nil }, func() string { return "" })
	first := spare()
	e := export(t)
	open(t, pool, e)
	k := pool.keeper(e, false)
	defer pool.release(k)
	k.mu.Lock()
	if k.current != first {
		t.Error("the spare was not used")
	}
	k.mu.Unlock()
	waitFor(t, "there is another spare", func() bool { p := spare(); return p != nil && p != first }, func() string { return "" })
}

func TestOptionsValidate(t *testing.T) {
	for _, tc := range []struct {
		options StoreOptions
		want    string
	}{
		{StoreOptions{DriverName: "d"}, ""},
		{StoreOptions{}, "driver name"},
		{StoreOptions{DriverName: "d", PurgeRate: -1}, "purge rate"},
		{StoreOptions{DriverName: "d", PurgeConcurrency: -1}, "purge concurrency"},
		{StoreOptions{DriverName: "d", Options: Options{CallTimeout: -1}}, "call timeout"},
		{StoreOptions{DriverName: "d", Options: Options{MinBackoff: time.Minute}}, "maximum back-off"},
	} {
		err := tc.options.Validate()
		if err == nil && tc.want == "" {
			continue
		}
		if err == nil || tc.want == "" || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want an error about %q", tc.options, err, tc.want)
		}
	}
}
