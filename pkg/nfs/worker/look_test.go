package worker

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// processesOf returns how many workers the pool has.
func processesOf(pool *StorePool) int {
	pool.mu.Lock()
	defer pool.mu.Unlock()
	return len(pool.processes)
}

func wantExports(t *testing.T, pool *StorePool, want ...nfs.Export) {
	t.Helper()
	keys := func(exports []nfs.Export) []string {
		keys := []string{}
		for _, e := range exports {
			keys = append(keys, e.Key())
		}
		return keys
	}
	if diff := cmp.Diff(keys(want), keys(pool.Exports())); diff != "" {
		t.Errorf("exports (-want +got):\n%s", diff)
	}
}

// An export that only the cluster names is looked at once, costs nothing when
// there is nothing to do, and is forgotten when the cluster no longer names it.
func TestKnownExportIsLookedAt(t *testing.T) {
	pool := newStorePool(t, StoreOptions{Options: testOptions()})
	e := export(t)
	for name, know := range map[string]func([]nfs.Export){"class": pool.KnowClassExports, "volume": pool.KnowVolumeExports} {
		know([]nfs.Export{e})
		waitFor(t, name+": the worker came and went", func() bool {
			return countersOf(pool, e).starts == 1 && processesOf(pool) == 0
		}, func() string { return fmt.Sprintf("%+v, %d workers", countersOf(pool, e), processesOf(pool)) })
		wantExports(t, pool, e)
		know([]nfs.Export{e})
		know(nil)
		waitFor(t, name+": the export is forgotten", func() bool { return len(pool.all()) == 0 }, func() string { return "it is still there" })
		wantExports(t, pool)
	}
}

// What waits in the trash of an export that only the cluster names keeps its
// worker, also over a crash, until it is gone.
func TestKnownExportIsPurged(t *testing.T) {
	pool := newStorePool(t, StoreOptions{Options: testOptions()})
	e := export(t)
	status := filepath.Join(e.Share, "status")
	writeFile(t, status, "3 0")
	pool.KnowClassExports([]nfs.Export{e})
	say := func() string { return fmt.Sprintf("%+v, %d workers", countersOf(pool, e), processesOf(pool)) }
	waitFor(t, "the backlog is seen", func() bool { return countersOf(pool, e).status.TrashBacklog == 3 }, say)
	k := pool.keeper(e, false)
	defer pool.release(k)
	k.mu.Lock()
	p := k.current
	k.mu.Unlock()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the worker is started again", func() bool { return countersOf(pool, e).starts == 2 }, say)
	// The cluster forgets the export, the worker does not.
	pool.KnowClassExports(nil)
	writeFile(t, status, "2 5")
	waitFor(t, "the purge goes on", func() bool { return countersOf(pool, e).status.Purged == 5 }, say)
	writeFile(t, status, "0 9")
	waitFor(t, "the worker goes", func() bool { return processesOf(pool) == 0 }, say)
}

// An export on which an archive expires is looked at then, and not before.
func TestExpiryIsLookedAt(t *testing.T) {
	pool := newStorePool(t, StoreOptions{Options: testOptions()})
	e := export(t)
	status := filepath.Join(e.Share, "status")
	expiry := time.Now().Add(1500 * time.Millisecond)
	writeFile(t, status, fmt.Sprintf("0 0 %d", expiry.UnixNano()))
	pool.KnowClassExports([]nfs.Export{e})
	say := func() string { return fmt.Sprintf("%+v, %d workers", countersOf(pool, e), processesOf(pool)) }
	waitFor(t, "the worker came and went", func() bool {
		return countersOf(pool, e).starts == 1 && processesOf(pool) == 0
	}, say)
	waitFor(t, "it comes again", func() bool { return countersOf(pool, e).starts == 2 }, say)
	if early := time.Until(expiry); early > 0 {
		t.Errorf("it came %v too early", early)
	}
	writeFile(t, status, "0 0")
	waitFor(t, "nothing is due any more", func() bool {
		return countersOf(pool, e).status.NextExpiry.IsZero() && processesOf(pool) == 0
	}, say)
}

// A caller's use keeps an export known; what the cluster says of others does not
// concern it.
func TestUsedExportStaysKnown(t *testing.T) {
	configured, used, named := export(t), export(t), export(t)
	pool := newStorePool(t, StoreOptions{Options: testOptions(), Exports: []nfs.Export{configured}})
	pool.KnowVolumeExports([]nfs.Export{configured, used, named})
	wantExports(t, pool, configured, used, named)
	open(t, pool, used)
	pool.KnowVolumeExports(nil)
	wantExports(t, pool, configured, used)
}

// A StorageClass with a mistake does not fail every listing; an export with
// volumes on it may not be left out of one.
func TestExportsThatCannotBeOpened(t *testing.T) {
	class, volume := export(t), export(t)
	for _, e := range []nfs.Export{class, volume} {
		writeFile(t, filepath.Join(e.Share, "refuse"), "no-export")
	}
	pool := newStorePool(t, StoreOptions{Options: testOptions()})
	pool.KnowClassExports([]nfs.Export{class})
	pool.KnowVolumeExports([]nfs.Export{volume})
	looked := func(e nfs.Export) bool {
		k := pool.keeper(e, false)
		defer pool.release(k)
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.lookFailures > 1
	}
	waitFor(t, "both are tried again", func() bool { return looked(class) && looked(volume) }, func() string { return "" })
	wantExports(t, pool, volume)
	if err := unix.Unlink(filepath.Join(class.Share, "refuse")); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the class's export is opened", func() bool { return len(pool.Exports()) == 2 }, func() string { return fmt.Sprint(pool.Exports()) })
}

// However many exports the cluster names, few workers are started for them at once.
func TestLooksAreFew(t *testing.T) {
	options := testOptions()
	options.StartTimeout = time.Minute
	pool := newStorePool(t, StoreOptions{Options: options})
	var exports []nfs.Export
	for range 3 * looksAtOnce {
		e := export(t)
		makeFIFO(t, filepath.Join(e.Share, "open"))
		exports = append(exports, e)
	}
	pool.KnowClassExports(exports)
	hanging := func() (n int) {
		for _, e := range exports {
			if exists(e, "open.waiting") {
				n++
			}
		}
		return n
	}
	waitFor(t, "the first workers hang", func() bool { return hanging() == looksAtOnce }, func() string { return fmt.Sprintf("%d do", hanging()) })
	if n := processesOf(pool); n != looksAtOnce {
		t.Errorf("%d workers were started at once, want %d", n, looksAtOnce)
	}
	// A caller is not held up by them.
	open(t, pool, export(t))
	waitFor(t, "all had their turn", func() bool {
		done := 0
		for _, e := range exports {
			// Whoever waits to read is let go by a writer.
			if fd, err := unix.Open(filepath.Join(e.Share, "open"), unix.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
				_ = unix.Close(fd)
			}
			if countersOf(pool, e).starts == 1 {
				done++
			}
		}
		return done == len(exports)
	}, func() string { return fmt.Sprintf("%d came to wait", hanging()) })
}
