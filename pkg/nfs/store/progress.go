package store

import (
	"context"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// PurgeTrash says what is left in the trash and how far its purge is. With retry, the
// trash is read anew, and all that could not be removed so far is tried again. It
// waits for nothing: the purge goes on in the background, as it always does.
func (s *Store) PurgeTrash(_ context.Context, retry bool) (nfs.TrashState, error) {
	if retry {
		s.purge.mu.Lock()
		for _, e := range s.purge.entries {
			e.next = time.Time{}
		}
		s.purge.mu.Unlock()
		s.purge.asked.Add(1)
	}
	b := s.Backlog()
	if retry || b.Entries > 0 {
		// What others have in the trash is seen by looking.
		s.purge.wakeUp()
	}
	return nfs.TrashState{Entries: b.Entries, Failing: b.Failing, Settled: b.Settled, Removed: b.RemovedFiles, Oldest: b.Oldest}, nil
}

func (p *purger) backlog() Backlog {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := Backlog{RemovedFiles: p.removed.Load(), Entries: len(p.entries) + p.strange, Failing: p.strange}
	for _, e := range p.entries {
		if e.failures > 0 {
			b.Failing++
		}
		b.Oldest = oldest(b.Oldest, deletedAt(e.name))
	}
	for _, o := range p.others {
		b.Entries += o.entries
		b.Oldest = oldest(b.Oldest, o.oldest)
	}
	b.Settled = p.read.Load() >= p.asked.Load() && b.Entries == 0
	p.archives.count(&b)
	return b
}

// oldest returns the earlier time; a zero time is none.
func oldest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
