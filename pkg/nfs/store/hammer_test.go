package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

var hammerDirs = []string{"a", "a/b", "a/b/c", "d", "e/f", "e/g"}

// hammerJob makes and deletes volumes that others make and delete at the same
// time, and watches over the data of its own.
type hammerJob struct {
	Dir    string
	Seed   uint64
	Rounds int
}

func (h *hammerJob) run(ctx context.Context, s *Store) error {
	random := rand.New(rand.NewPCG(h.Seed, 1))
	dirs := hammerDirs
	deletes := []nfs.OnDelete{nfs.Delete, nfs.Delete, nfs.Archive}
	for round := range h.Rounds {
		// A volume of its own, in a directory that everyone wants.
		name := fmt.Sprintf("own-%d-%d", h.Seed, round)
		spec := with(volumeSpec(name, dirs[random.IntN(len(dirs))]), func(s *nfs.VolumeSpec) { s.OnDelete = deletes[random.IntN(len(deletes))] })
		_, err := s.CreateVolume(ctx, spec)
		switch {
		case err == nil:
			if err := h.use(ctx, s, spec); err != nil {
				return err
			}
		case !isRaced(err):
			return err
		}
		// A volume that everyone makes and deletes.
		shared := fmt.Sprintf("shared-%d", random.IntN(3))
		if _, err := s.CreateVolume(ctx, volumeSpec(shared, "s/"+shared)); err != nil && !isRaced(err) {
			return err
		}
		mode := []fs.FileMode{0o700, 0o750, 0o777}[random.IntN(3)]
		change := nfs.VolumeChange{MinBytes: int64(random.IntN(1 << 40)), Mode: &mode}
		if _, err := s.UpdateVolume(ctx, shared, change); err != nil && !isRaced(err) && !errors.Is(err, nfs.ErrNotFound) {
			return err
		}
		if random.IntN(2) == 0 {
			if err := s.DeleteVolume(ctx, shared, ""); err != nil && !isRaced(err) {
				return err
			}
		}
	}
	return nil
}

// isRaced says whether others may cause the error by what they do just now.
func isRaced(err error) bool {
	return errors.Is(err, nfs.ErrBusy) || errors.Is(err, nfs.ErrConflict) || errors.Is(err, nfs.ErrForeign)
}

func (h *hammerJob) use(ctx context.Context, s *Store, spec nfs.VolumeSpec) error {
	token := filepath.Join(h.Dir, spec.Dir, "token")
	var f *os.File
	err := untilThere(func() (err error) {
		f, err = os.OpenFile(token, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		return err
	})
	if err != nil {
		return fmt.Errorf("the new volume %q: %w", spec.Name, err)
	}
	_, err = f.WriteString(spec.Name)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	archive := nfs.Archive
	updated, err := s.UpdateVolume(ctx, nfs.RecordID(spec.Name), nfs.VolumeChange{MinBytes: spec.MinBytes + 1, OnDelete: &archive})
	if err != nil || updated.CapacityBytes != spec.MinBytes+1 || updated.OnDelete != archive {
		return fmt.Errorf("updated: %+v, %w", updated, err)
	}
	spec.OnDelete = archive
	if again, err := s.CreateVolume(ctx, spec); err != nil {
		return fmt.Errorf("again: %w", err)
	} else if again.Name != spec.Name {
		return fmt.Errorf("again: %+v", again)
	}
	var got []byte
	err = untilThere(func() (err error) {
		got, err = os.ReadFile(token)
		return err
	})
	if err != nil || string(got) != spec.Name {
		return fmt.Errorf("the volume %q holds %q: %w", spec.Name, got, err)
	}
	// Two deletes at once, as after a change of leaders.
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if err := s.DeleteVolume(ctx, nfs.RecordID(spec.Name), ""); err != nil && !errors.Is(err, nfs.ErrBusy) {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		})
	}
	wg.Wait()
	for {
		err := s.DeleteVolume(ctx, nfs.RecordID(spec.Name), "")
		if !errors.Is(err, nfs.ErrBusy) {
			return err
		}
	}
}

// untilThere gives a directory that a late delete has moved by mistake, and
// moves back, a second to come back.
func untilThere(f func() error) (err error) {
	for range 1000 {
		if err = f(); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		<-time.After(time.Millisecond)
	}
	return err
}

func TestHammer(t *testing.T) {
	dir := t.TempDir()
	mustWrite(t, dir+"/neighbour/file", "x")
	before := tree(t, dir+"/neighbour", nil)
	var g errgroup.Group
	for seed := range uint64(3) {
		g.Go(func() error {
			if runJob(t, job{Dir: dir, Hammer: &hammerJob{Dir: dir, Seed: seed, Rounds: 60}}) {
				return errors.New("killed")
			}
			return nil
		})
	}
	mine := openStore(t, dir, func(o *Options) { o.purgeGrace = 0 })
	for seed := range uint64(2) {
		g.Go(func() error {
			h := &hammerJob{Dir: dir, Seed: 100 + seed, Rounds: 60}
			return h.run(t.Context(), mine)
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, dir)
	for n := range 3 {
		name := fmt.Sprintf("shared-%d", n)
		err := untilSettled(t, func() error { return s.DeleteVolume(t.Context(), name, "") })
		if err != nil {
			t.Error(err)
		}
	}
	waitPurged(t, dir) // which frees the claims
	consistent(t, dir)
	// Nothing that was left keeps anyone from a directory. Only parents may be: of
	// archives, or those made by a create that lost a race.
	for _, d := range []string{"a/b/c", "d", "e/f", "e/g"} {
		create(t, s, volumeSpec("last", d))
		remove(t, s, "last")
	}
	if volumes, err := s.ListVolumes(t.Context(), "", 0); err != nil || len(volumes) != 0 {
		t.Errorf("left: %v, %v", volumes, err)
	}
	if after := tree(t, dir+"/neighbour", nil); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the neighbour was %v and is %v", before, after)
	}
}

// Of many that want one directory at once, in several processes, one gets it;
// of many that make one volume, all get the same.
func TestOneWinner(t *testing.T) {
	for round := range 20 {
		dir := t.TempDir()
		stores := []*Store{openStore(t, dir), openStore(t, dir), openStore(t, dir)}
		start := make(chan struct{})
		var mu sync.Mutex
		owners, created := map[string]bool{}, map[time.Time]bool{}
		var wg sync.WaitGroup
		for n := range 9 {
			wg.Go(func() {
				<-start
				name := fmt.Sprintf("own-%d", n)
				_, err := stores[n%3].CreateVolume(t.Context(), volumeSpec(name, "x/wanted"))
				if err != nil && !errors.Is(err, nfs.ErrConflict) && !errors.Is(err, nfs.ErrForeign) {
					t.Errorf("%s: %v", name, err)
				}
				v, sameErr := untilMade(t, stores[n%3], volumeSpec("same", "x/same"))
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					owners[name] = true
				}
				if sameErr != nil {
					t.Errorf("the same volume: %v", sameErr)
				}
				created[v.Created] = true
			})
		}
		close(start)
		wg.Wait()
		if len(owners) != 1 || len(created) != 1 {
			t.Errorf("round %d: the directory went to %v; the volume was made at %v", round, owners, created)
		}
		consistent(t, dir)
	}
}

func untilMade(t testing.TB, s *Store, spec nfs.VolumeSpec) (v nfs.Volume, err error) {
	err = untilSettled(t, func() error {
		v, err = s.CreateVolume(t.Context(), spec)
		return err
	})
	return v, err
}
