package store

import (
	"fmt"
	"testing"
)

// A store is settled only when it has read its trash and all of it is gone, so
// that nobody ends it before.
func TestSettled(t *testing.T) {
	settles := func(t *testing.T, s *Store) {
		t.Helper()
		waitFor(t, "the store to settle", func() (bool, string) {
			b := s.Backlog()
			return b.Settled, fmt.Sprintf("%+v", b)
		})
	}
	t.Run("nothing on the export", func(t *testing.T) {
		settles(t, openStore(t, t.TempDir()))
	})
	t.Run("a deleted volume", func(t *testing.T) {
		dir := t.TempDir()
		s := openStore(t, dir)
		v := create(t, s, volumeSpec("a", "a"))
		remove(t, s, v.ID)
		settles(t, s)
		if left := leftovers(t, dir); len(left) > 0 {
			t.Errorf("settled, but there are %v", left)
		}
	})
	t.Run("what another process put there a moment ago", func(t *testing.T) {
		dir := t.TempDir()
		p := trashEntry(t, dir, "v")
		s := openStore(t, dir, func(o *Options) { o.purgeGrace = defaultGrace })
		waitFor(t, "the trash to be read", func() (bool, string) {
			b := s.Backlog()
			return b.Entries == 1, fmt.Sprintf("%+v", b)
		})
		if s.Backlog().Settled || !exists(p) {
			t.Errorf("settled with %s in the trash (exists: %v)", p, exists(p))
		}
	})
}
