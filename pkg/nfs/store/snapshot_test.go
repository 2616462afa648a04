package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// quickLease is long enough for a busy machine, and short enough to wait for.
func quickLease(o *Options) { o.lease = 600 * time.Millisecond }

// sourceVolume makes a volume with smallTree in it and returns what is in it.
func sourceVolume(t testing.TB, s *Store, dir string) map[string]node {
	t.Helper()
	create(t, s, volumeSpec("src", "src"))
	smallTree(t, dir+"/src")
	return scan(t, dir+"/src", nil)
}

// snapshot takes a snapshot and waits for it to be ready.
func snapshot(t testing.TB, s *Store, name, volume string) (v nfs.Snapshot) {
	t.Helper()
	waitFor(t, "the snapshot to be ready", func() (bool, string) {
		var err error
		v, err = s.CreateSnapshot(t.Context(), name, volume)
		if err != nil && !errors.Is(err, nfs.ErrBusy) {
			t.Fatal(err)
		}
		return err == nil && v.Ready, fmt.Sprintf("%+v, %v", v, err)
	})
	return v
}

func snapshotData(dir, id string) string {
	return filepath.Join(dir, ownDir, "snapshots", id, dataName)
}

func TestSnapshot(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	s := openStore(t, d)
	want := sourceVolume(t, s, d)
	first, err := s.CreateSnapshot(t.Context(), "snap", "src")
	if err != nil {
		t.Fatal(err)
	}
	v := snapshot(t, s, "snap", "src")
	var bytes int64
	for p, n := range want {
		if (n.SameAs == "" || strings.HasPrefix(n.SameAs, p+",")) && n.Mode&unix.S_IFMT == unix.S_IFREG {
			bytes += n.Size
		}
	}
	if v.ID != "snap" || v.Name != "snap" || v.Volume != "src" || !v.Ready || v.SizeBytes != bytes ||
		!v.Created.Equal(first.Created) || time.Since(v.Created) > time.Minute {
		t.Errorf("the snapshot, of %d bytes: %+v; first: %+v", bytes, v, first)
	}
	compareTrees(t, want, scan(t, snapshotData(d, "snap"), nil), isNFS(t, d))
	entries, err := os.ReadDir(filepath.Join(d, ownDir, "snapshots/snap"))
	if err != nil || len(entries) != 3 {
		t.Errorf("in the snapshot's directory: %v, %v", entries, err)
	}

	// It outlives what happens to the volume.
	mustWrite(t, d+"/src/file", "other content")
	if again := snapshot(t, s, "snap", "src"); again != v {
		t.Errorf("again: %+v, want %+v", again, v)
	}
	remove(t, s, "src")
	waitPurged(t, d)
	other := openStore(t, d)
	if got, err := other.GetSnapshot(t.Context(), "snap"); err != nil || got != v {
		t.Errorf("get: %+v, %v; want %+v", got, err, v)
	}
	if again := snapshot(t, other, "snap", "src"); again != v {
		t.Errorf("when the volume is gone: %+v, want %+v", again, v)
	}
	compareTrees(t, want, scan(t, snapshotData(d, "snap"), nil), isNFS(t, d))

	for range 2 {
		if err := s.DeleteSnapshot(t.Context(), "snap"); err != nil {
			t.Fatal(err)
		}
	}
	_, err = s.GetSnapshot(t.Context(), "snap")
	wantError(t, err, nfs.ErrNotFound, `"snap"`)
	waitPurged(t, d)
	if left := leftovers(t, d); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestSnapshotRefused(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	s := openStore(t, d)
	_, err := s.CreateSnapshot(t.Context(), "snap", "src")
	wantError(t, err, nfs.ErrNotFound)
	wantError(t, s.DeleteSnapshot(t.Context(), "snap"), nil)
	create(t, s, volumeSpec("src", "src"))
	create(t, s, volumeSpec("other", "other"))
	create(t, s, volumeSpec("lost", "lost"))
	if err := os.Remove(d + "/lost"); err != nil {
		t.Fatal(err)
	}
	snapshot(t, s, "snap", "src")
	foreign := openStore(t, d, func(o *Options) { o.InstanceID = "two" })
	for name, tt := range map[string]struct {
		do   func() error
		want error
		text string
	}{
		"no such volume": {func() error { _, err := s.CreateSnapshot(t.Context(), "n", "none"); return err }, nfs.ErrNotFound, "no such volume"},
		"no name":        {func() error { _, err := s.CreateSnapshot(t.Context(), "", "src"); return err }, nfs.ErrInvalid, "name is empty"},
		"no id":          {func() error { _, err := s.CreateSnapshot(t.Context(), "n", "../src"); return err }, nfs.ErrInvalid, "record id"},
		"other source":   {func() error { _, err := s.CreateSnapshot(t.Context(), "snap", "other"); return err }, nfs.ErrConflict, `of the volume "src"`},
		"lost directory": {func() error { return eventualError(t, s, "n2", "lost") }, nfs.ErrForeign, `"lost" is missing`},
		"foreign volume": {func() error { _, err := foreign.CreateSnapshot(t.Context(), "n", "src"); return err }, nfs.ErrForeign, `instance "one"`},
		"foreign":        {func() error { _, err := foreign.CreateSnapshot(t.Context(), "snap", "src"); return err }, nfs.ErrForeign, `instance "one"`},
		"get foreign":    {func() error { _, err := foreign.GetSnapshot(t.Context(), "snap"); return err }, nfs.ErrForeign, `instance "one"`},
		"delete foreign": {func() error { return foreign.DeleteSnapshot(t.Context(), "snap") }, nfs.ErrForeign, `instance "one"`},
		"get none":       {func() error { _, err := s.GetSnapshot(t.Context(), "none"); return err }, nfs.ErrNotFound, `"none"`},
		"get no id":      {func() error { _, err := s.GetSnapshot(t.Context(), "a/b"); return err }, nfs.ErrInvalid, ""},
		"delete no id":   {func() error { return s.DeleteSnapshot(t.Context(), "..") }, nfs.ErrInvalid, ""},
	} {
		t.Run(name, func(t *testing.T) { wantError(t, tt.do(), tt.want, tt.text) })
	}
	if list, err := foreign.ListSnapshots(t.Context(), "", "", 0); err != nil || len(list) != 0 {
		t.Errorf("foreign list: %v, %v", list, err)
	}
}

// eventualError asks for the snapshot until that fails.
func eventualError(t testing.TB, s *Store, name, volume string) (err error) {
	t.Helper()
	waitFor(t, "an error", func() (bool, string) {
		var v nfs.Snapshot
		v, err = s.CreateSnapshot(t.Context(), name, volume)
		return err != nil && !errors.Is(err, nfs.ErrBusy), fmt.Sprintf("%+v, %v", v, err)
	})
	return err
}

func TestListSnapshots(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	s := openStore(t, d)
	if list, err := s.ListSnapshots(t.Context(), "", "", 0); err != nil || len(list) != 0 {
		t.Errorf("on an empty export: %v, %v", list, err)
	}
	create(t, s, volumeSpec("a", "a"))
	create(t, s, volumeSpec("b", "b"))
	want := map[string][]string{}
	for n := range 9 {
		name, volume := fmt.Sprintf("s%d", n), []string{"a", "b"}[n%2]
		snapshot(t, s, name, volume)
		want[volume] = append(want[volume], name)
		want[""] = append(want[""], name)
	}
	mustMkdir(t, filepath.Join(d, ownDir, "snapshots/s3x")) // without a record
	for _, volume := range []string{"", "a", "b", "none"} {
		for _, limit := range []int{0, 1, 2, 4, 100} {
			var got []string
			for after := ""; ; {
				page, err := s.ListSnapshots(t.Context(), volume, after, limit)
				if err != nil {
					t.Fatal(err)
				}
				for _, v := range page {
					got = append(got, v.ID)
					after = v.ID
				}
				if limit == 0 || len(page) < limit {
					break
				}
			}
			if !slices.Equal(got, want[volume]) {
				t.Errorf("of %q, %d a page: %v, want %v", volume, limit, got, want[volume])
			}
		}
	}
	if s.Backlog().SkippedRecords == 0 {
		t.Error("the directory without a record was not counted")
	}
}

// blockedStore is a store whose copies wait, when they make the file "large", until
// the channel is closed or they are cancelled.
func blockedStore(t testing.TB, d string, change ...func(*Options)) (s *Store, reached, goOn chan struct{}) {
	t.Helper()
	reached, goOn = make(chan struct{}), make(chan struct{})
	var once sync.Once
	s = openStore(t, d, append(change, quickLease, func(o *Options) {
		o.CopyWait = 50 * time.Millisecond
		o.hook = func(ctx context.Context, op, p string) error {
			if op == "create" && filepath.Base(p) == "large" {
				once.Do(func() { close(reached) })
				select {
				case <-goOn:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		}
	})...)
	return s, reached, goOn
}

// While a snapshot is taken, its volume is not deleted; to delete the snapshot ends
// the copy.
func TestSnapshotUnderWay(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	sourceVolume(t, openStore(t, d), d)
	s, reached, goOn := blockedStore(t, d)
	defer close(goOn)
	v, err := s.CreateSnapshot(t.Context(), "snap", "src")
	if err != nil || v.Ready || v.SizeBytes != 0 {
		t.Fatalf("the snapshot: %+v, %v", v, err)
	}
	<-reached
	wantError(t, s.DeleteVolume(t.Context(), "src", ""), nfs.ErrBusy, `snapshot "snap"`, "copied")
	if got, err := s.GetSnapshot(t.Context(), "snap"); err != nil || got != v {
		t.Errorf("get: %+v, %v; want %+v", got, err, v)
	}
	if list, err := s.ListSnapshots(t.Context(), "src", "", 0); err != nil || !slices.Equal(list, []nfs.Snapshot{v}) {
		t.Errorf("list: %+v, %v; want %+v", list, err, v)
	}
	if b := s.Backlog(); b.Jobs != 1 || b.Settled {
		t.Errorf("the backlog: %+v", b)
	}
	// A volume is not made of it yet, either.
	_, err = s.CreateVolume(t.Context(), with(volumeSpec("restored", "restored"), func(v *nfs.VolumeSpec) { v.Source.Snapshot = "snap" }))
	wantError(t, err, nfs.ErrBusy, "not ready")
	if err := s.DeleteSnapshot(t.Context(), "snap"); err != nil {
		t.Fatal(err)
	}
	if b := s.Backlog(); b.Jobs != 0 {
		t.Errorf("the backlog: %+v", b)
	}
	remove(t, s, "src")
	remove(t, s, "restored")
	waitPurged(t, d)
	if left := leftovers(t, d); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// The same from another process: it does not know what this one copies.
func TestSnapshotSourceDeletedElsewhere(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	other := openStore(t, d)
	sourceVolume(t, other, d)
	s, reached, goOn := blockedStore(t, d)
	if _, err := s.CreateSnapshot(t.Context(), "snap", "src"); err != nil {
		t.Fatal(err)
	}
	<-reached
	remove(t, other, "src")
	if !isNFS(t, d) { // where a client keeps what it has open itself
		waitPurged(t, d)
	}
	close(goOn)
	wantError(t, eventualError(t, s, "snap", "src"), nfs.ErrNotFound, `"src" was deleted`)
	if err := other.DeleteSnapshot(t.Context(), "snap"); err != nil {
		t.Fatal(err)
	}
	waitPurged(t, d)
	waitFor(t, "the job to end", func() (bool, string) { b := s.Backlog(); return b.Jobs == 0, fmt.Sprintf("%+v", b) })
	if left := leftovers(t, d); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// A snapshot is deleted elsewhere while it is taken here: that ends it here.
func TestSnapshotDeletedElsewhere(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	other := openStore(t, d)
	sourceVolume(t, other, d)
	s, reached, _ := blockedStore(t, d)
	if _, err := s.CreateSnapshot(t.Context(), "snap", "src"); err != nil {
		t.Fatal(err)
	}
	<-reached
	if err := other.DeleteSnapshot(t.Context(), "snap"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the job to end", func() (bool, string) { b := s.Backlog(); return b.Jobs == 0, fmt.Sprintf("%+v", b) })
	waitPurged(t, d)
	_, err := s.GetSnapshot(t.Context(), "snap")
	wantError(t, err, nfs.ErrNotFound)
}

// A store that is closed gives its jobs up, and another goes on with them at once.
func TestSnapshotHandedOver(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	want := sourceVolume(t, openStore(t, d), d)
	t.Run("first", func(t *testing.T) {
		s, reached, _ := blockedStore(t, d)
		if _, err := s.CreateSnapshot(t.Context(), "snap", "src"); err != nil {
			t.Fatal(err)
		}
		<-reached
	})
	s := openStore(t, d) // whose lease is longer than the test may take
	waitFor(t, "the snapshot to be ready", func() (bool, string) {
		v, err := s.GetSnapshot(t.Context(), "snap")
		return err == nil && v.Ready, fmt.Sprintf("%+v, %v", v, err)
	})
	compareTrees(t, want, scan(t, snapshotData(d, "snap"), nil), isNFS(t, d))
	waitFor(t, "the store to settle", func() (bool, string) { b := s.Backlog(); return b.Settled, fmt.Sprintf("%+v", b) })
}

// Of many that take one snapshot at once, in several processes, all get the same.
func TestSnapshotOneWinner(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	stores := []*Store{openStore(t, d, quickLease), openStore(t, d, quickLease), openStore(t, d, quickLease)}
	want := sourceVolume(t, stores[0], d)
	create(t, stores[0], volumeSpec("other", "other"))
	for round := range 10 {
		name := fmt.Sprintf("snap%d", round)
		start := make(chan struct{})
		var mu sync.Mutex
		created := map[time.Time]bool{}
		var wg sync.WaitGroup
		var refused int
		for n := range 9 {
			wg.Go(func() {
				<-start
				volume := []string{"src", "other"}[n%2]
				var v nfs.Snapshot
				err := whileBusy(func() (err error) {
					v, err = stores[n%3].CreateSnapshot(t.Context(), name, volume)
					return err
				})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case errors.Is(err, nfs.ErrConflict):
					refused++
				case err != nil:
					t.Error(err)
				default:
					created[v.Created] = true
				}
			})
		}
		close(start)
		wg.Wait()
		if len(created) != 1 || refused != 4 && refused != 5 {
			t.Errorf("round %d: made at %v, refused %d times", round, created, refused)
		}
		var v nfs.Snapshot
		waitFor(t, "the snapshot to be ready", func() (bool, string) {
			var err error
			v, err = stores[round%3].GetSnapshot(t.Context(), name)
			return err == nil && v.Ready, fmt.Sprintf("%+v, %v", v, err)
		})
		if v.Volume == "src" {
			compareTrees(t, want, scan(t, snapshotData(d, name), nil), isNFS(t, d))
		}
	}
	for _, s := range stores {
		waitFor(t, "the jobs to end", func() (bool, string) { b := s.Backlog(); return b.Jobs == 0, fmt.Sprintf("%+v", b) })
	}
	for _, name := range leftovers(t, d) {
		if filepath.Dir(name) == "work" {
			t.Errorf("left %s", name)
		}
	}
}

// Two processes take the same snapshots at once, as two controllers do after a change
// of leaders: both are told the same, and each is whole.
func TestSnapshotInTwoProcesses(t *testing.T) {
	t.Parallel()
	d := memDir(t)
	s := openStore(t, d, patient)
	want := sourceVolume(t, s, d)
	for n := range 5 {
		name := fmt.Sprint("snap", n)
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				if runJob(t, job{Dir: d, Snapshot: name}) {
					t.Error("killed")
				}
			})
		}
		wg.Wait()
		if v, err := s.GetSnapshot(t.Context(), name); err != nil || !v.Ready || v.Volume != "src" {
			t.Errorf("the snapshot: %+v, %v", v, err)
		}
		compareTrees(t, want, scan(t, snapshotData(d, name), nil), isNFS(t, d))
	}
	openStore(t, d) // for what is in the trash of either
	waitPurged(t, d)
	for _, name := range leftovers(t, d) {
		if filepath.Dir(name) == "work" && !isTemporary(name) {
			t.Errorf("left %s", name)
		}
	}
}
