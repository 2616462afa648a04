package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// deadDeletes decides the deletes of that many volumes "v0", "v1", as if a process had
// been killed then, before it moved their directories, and returns their entries.
func deadDeletes(t *testing.T, d string, n int) (slot string, entries []string) {
	t.Helper()
	for i := range n {
		r := newRecord(testOptions, volumeSpec(fmt.Sprintf("v%d", i), fmt.Sprintf("v%d", i)), 0, time.Unix(1, 0).UTC())
		p := trashRecord(t, d, r)
		mustSymlink(t, r.key(), filepath.Join(d, ownDir, "dirs", claimName(r.Dir)))
		mustWrite(t, filepath.Join(d, r.Dir, "file"), "data")
		slot, entries = filepath.Base(filepath.Dir(p)), append(entries, filepath.Base(p))
	}
	return slot, entries
}

// adopters returns two stores of which each has taken over one of the deletes of a
// process that was killed, the one whose slot has the lesser name first.
func adopters(t *testing.T, d string, change ...func(*Options)) (stores [2]*Store, entries []string) {
	t.Helper()
	slot, entries := deadDeletes(t, d, 2)
	for i := range stores {
		s := openStore(t, d, append(change, func(o *Options) { o.purgeGrace = time.Hour })...)
		l, err := s.layout(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.purge.stop() // so that nothing happens but what the test does
		if _, err := l.slot(t.Context()); err != nil {
			t.Fatal(err)
		}
		stores[i] = s
	}
	if slotName(t, stores[0]) > slotName(t, stores[1]) {
		stores[0], stores[1] = stores[1], stores[0]
	}
	for i, s := range stores {
		from, err := s.current().trash.openDir(t.Context(), slot)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.purge.adopt(t.Context(), s.current(), from, entries[i]); err != nil {
			t.Fatal(err)
		}
		from.close()
	}
	return stores, entries
}

// Two processes that live have each taken over one delete of a third. Each can go on
// only when the slot of the other is empty, and neither may wait for that for ever.
func TestFenceOfTwo(t *testing.T) {
	for name, first := range map[string]int{"the lesser first": 0, "the greater first": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := memDir(t)
			stores, entries := adopters(t, d)
			// Each makes some attempts, as its purger would.
			var errs []error
			for n := first; n < first+4; n++ {
				s := stores[n%2]
				for _, name := range entries {
					if exists(filepath.Join(d, ownDir, "trash", slotName(t, s), name+recordSuffix)) {
						errs = append(errs, s.purge.complete(t.Context(), s.current(), name))
					}
				}
			}
			for _, v := range []string{"v0", "v1"} {
				claim := filepath.Join(d, ownDir, "dirs", claimName(v))
				if exists(filepath.Join(d, v)) || exists(claim) {
					t.Errorf("%s: directory there %t, claim there %t, after %v", v, exists(filepath.Join(d, v)), exists(claim), errs)
				}
			}
			for _, s := range stores {
				startPurger(t.Context(), s)
			}
			waitPurged(t, d)
			consistent(t, d)
		})
	}
}

// The purgers alone come to the end as well, and soon.
func TestFenceOfTwoPurgers(t *testing.T) {
	t.Parallel()
	d := memDir(t)
	stores, _ := adopters(t, d)
	for _, s := range stores {
		startPurger(t.Context(), s)
	}
	waitPurged(t, d)
	consistent(t, d)
}

// The one that takes over from the other may be killed at any operation.
func TestKillFenceOfTwo(t *testing.T) {
	t.Parallel()
	killed := fmt.Errorf("%w: killed", nfs.ErrUnavailable)
	eachOperation(t, func(t *testing.T, n int) (more bool) {
		d := memDir(t)
		ops := 0
		stores, entries := adopters(t, d, func(o *Options) {
			o.hook = func(ctx context.Context, _, _ string) error {
				if ctx.Value(foregroundKey{}) == nil {
					return nil
				}
				if ops++; ops >= n {
					more = true
					return killed
				}
				return nil
			}
		})
		ctx := context.WithValue(t.Context(), foregroundKey{}, true)
		if err := stores[0].purge.complete(ctx, stores[0].current(), entries[0]); err != nil && !errors.Is(err, killed) {
			t.Error(err)
		}
		openStore(t, d)
		waitPurged(t, d)
		for _, v := range []string{"v0", "v1"} {
			if exists(filepath.Join(d, v)) {
				t.Errorf("%s is there still", v)
			}
		}
		consistent(t, d)
		return more
	})
}

// A process that was slow, not dead, ends a group of shared volumes while another that
// has taken over its delete looks at its slot. The group has ended, and must say so.
func TestFenceLeavesEndedGroup(t *testing.T) {
	t.Parallel()
	eachOperation(t, func(t *testing.T, n int) bool {
		d := memDir(t)
		slot, entries := deadDeletes(t, d, 1)
		group := filepath.Join(d, sharedDir, newGroup("v0"))
		mark := filepath.Join(d, ownDir, "trash", slot, entries[0]+lastSuffix)
		mustMkdir(t, group)
		mustMkdir(t, mark)
		mustSymlink(t, "v0", mark+"/v0-1"+lastSuffix)
		var ended error
		happened := interrupted(t, d, n, func(string) error {
			ended = unix.Rename(mark, group)
			return nil
		}, func(ctx context.Context, s *Store) {
			l, err := s.layout(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.purge.fence(ctx, l, entries[0]); err != nil && !errors.Is(err, nfs.ErrBusy) {
				t.Error(err)
			}
		})
		if happened && ended == nil && !exists(group+"/v0-1"+lastSuffix) {
			t.Error("the group's directory is empty")
		}
		if ended != nil && !errors.Is(ended, unix.ENOENT) {
			t.Error(ended)
		}
		return happened
	})
}

func slotName(t *testing.T, s *Store) string {
	t.Helper()
	own, err := s.current().slot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return path.Base(own.path)
}
