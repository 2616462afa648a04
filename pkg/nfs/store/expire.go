package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

const (
	// scanArchives is how often the names of all archives are read. Those that this
	// process has made are known without.
	scanArchives = time.Hour
	// expireRetry is when an archive that could not be looked at is tried again.
	expireRetry = 10 * time.Minute
)

// archives is what a store knows of the archives of its driver and instance.
type archives struct {
	wake func()

	mu      sync.Mutex
	due     map[string]time.Time // by key; zero for those that stay
	next    time.Time            // the first of them that is due, if any
	scanned time.Time
	expired uint64
}

// note remembers when the archive is due.
func (a *archives) note(key string, due time.Time) {
	a.mu.Lock()
	if a.due == nil {
		a.due = map[string]time.Time{}
	}
	a.due[key] = due
	earlier := !due.IsZero() && (a.next.IsZero() || due.Before(a.next))
	if earlier {
		a.next = due
	}
	a.mu.Unlock()
	if earlier {
		a.wake()
	}
}

// drop forgets an archive that is none any more.
func (a *archives) drop(key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.due, key)
}

func (a *archives) count(b *Backlog) {
	a.mu.Lock()
	defer a.mu.Unlock()
	b.Archives, b.ArchivesExpired, b.NextExpiry = len(a.due), a.expired, a.next
}

// take returns the archives that are due, and finds out when the next will be.
func (a *archives) take(now time.Time) (keys []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.next.After(now) || a.next.IsZero() {
		return nil
	}
	a.next = time.Time{}
	for key, due := range a.due {
		switch {
		case due.IsZero():
		case !due.After(now):
			keys = append(keys, key)
		case a.next.IsZero() || due.Before(a.next):
			a.next = due
		}
	}
	slices.Sort(keys)
	return keys
}

// expire moves the archives that are due to the trash, and says when to come again.
func (p *purger) expire(ctx context.Context, l *layout) (next time.Time, err error) {
	a := &p.archives
	a.mu.Lock()
	scan := a.scanned.Add(scanArchives)
	a.mu.Unlock()
	if !scan.After(time.Now()) {
		if err := p.scanArchives(ctx, l); err != nil {
			return next, fmt.Errorf("read the archives: %w", err)
		}
		scan = time.Now().Add(scanArchives)
	}
	for _, key := range a.take(time.Now()) {
		if err := p.pace(ctx); err != nil {
			return next, err
		}
		due, err := p.expireArchive(ctx, l, key)
		switch {
		case ctx.Err() != nil:
			return next, ctx.Err()
		case isAbsent(err):
			a.drop(key)
			continue
		case err != nil:
			due = time.Now().Add(expireRetry)
			klog.FromContext(ctx).Info("An archive that has expired cannot be removed and will be tried again", "archive", key, "err", err, "next", due)
		}
		a.note(key, due)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.next.IsZero() || scan.Before(a.next) {
		return scan, nil
	}
	return a.next, nil
}

// scanArchives learns of archives that others have made, and forgets those that
// others have removed. What is known already is not read again.
func (p *purger) scanArchives(ctx context.Context, l *layout) error {
	a := &p.archives
	began := time.Now()
	a.mu.Lock()
	gone := make(map[string]bool, len(a.due))
	for key := range a.due {
		gone[key] = true
	}
	a.mu.Unlock()
	if err := l.archive.refresh(ctx); err != nil {
		return err
	}
	err := l.archive.list(ctx, func(names []string) error {
		for _, name := range names {
			key, ok := archiveKey(name)
			if !ok || gone[key] {
				delete(gone, key)
				continue
			}
			if err := p.pace(ctx); err != nil {
				return err
			}
			r, file, err := l.archived(ctx, name)
			switch {
			case isAbsent(err):
			case errors.Is(err, nfs.ErrForeign):
				klog.FromContext(ctx).Info("An archive stays, since its record cannot be read", "err", err)
			case err != nil:
				return err
			case p.s.opts.checkOwner(&r.Volume) == nil:
				a.note(key, r.due(time.Unix(file.mtime.Unix())))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.scanned = began
	for key := range gone {
		delete(a.due, key)
	}
	return nil
}

// expireArchive moves the archive to the trash if it is due, and decides that, as a
// delete does, by moving its record into this process' slot. Else it says when the
// archive will be due; never, if that is zero. It fails with ENOENT when there is
// no such archive, or no more of it is to do than the purge does.
func (p *purger) expireArchive(ctx context.Context, l *layout, key string) (due time.Time, err error) {
	name := key + recordSuffix
	a, _, err := l.archived(ctx, name)
	if err != nil {
		return due, err
	}
	parent, _, err := p.s.walk(ctx, parentOf(a.Volume.Dir), lookForSure)
	if err == nil {
		defer parent.close()
		var held *dir
		if held, err = parent.hold(ctx, a.Target); err == nil {
			held.close()
		}
	}
	if isAbsent(err) || isNotDir(err) {
		// Another process may have taken it to the trash since. Else its delete has not
		// come to its end, which will note it again, or someone has moved it by hand.
		if err := l.archive.refresh(ctx); err != nil {
			return due, err
		}
		if _, err := l.archive.lstat(ctx, name); err != nil {
			return due, err
		}
		klog.FromContext(ctx).Info("An archive that would expire is not where its record says, so the record stays", "archive", key, "dir", path.Join(parentOf(a.Volume.Dir), a.Target))
		return time.Time{}, nil
	}
	if err != nil {
		return due, err
	}
	// Only now that the directory was seen, nobody changes the record any more.
	if a, _, err = l.archived(ctx, name); err != nil {
		return due, err
	}
	if due = a.due(time.Time{}); due.IsZero() || due.After(time.Now()) {
		return due, nil
	}
	own, err := l.slot(ctx)
	if err != nil {
		return due, err
	}
	wait, err := p.byServer(ctx, l, own, name, a)
	if err != nil || wait > 0 {
		return time.Now().Add(wait), l.unlessSlotGone(ctx, own, err)
	}
	e := p.begin(a.Volume.ID, a.Volume.Created)
	defer p.release(e)
	e.expired = a.Target
	if err := l.archive.rename(ctx, name, own, e.name+recordSuffix); err != nil {
		p.forget(e)
		return time.Now(), l.unlessSlotGone(ctx, own, err)
	}
	p.archives.mu.Lock()
	p.archives.expired++
	p.archives.mu.Unlock()
	klog.FromContext(ctx).Info("An archive has expired and goes to the trash", "archive", key, "volume", a.Volume.Name,
		"dir", path.Join(parent.path, a.Target), "archived", a.Archived, "retention", a.Volume.ArchiveRetention)
	// Where it fails, the purge will see to it, as after any delete.
	if place, err := moveAway(context.WithoutCancel(ctx), parent, a.Target, own, e.name); err == nil {
		e.slot, e.place = path.Base(own.path), place
	}
	return due, opError("expire", path.Join(l.archive.path, name), unix.ENOENT)
}

// unlessSlotGone returns an error that has another reason than that another process
// has removed the store's slot, and nil for that one: the next slot will do.
func (l *layout) unlessSlotGone(ctx context.Context, own *dir, err error) error {
	if err != nil && errors.Is(l.checkSlot(ctx, own), nfs.ErrStale) {
		return nil
	}
	return err
}

// byServer says how long the archive still has by the server's clock, which has
// given its record and, just now, the slot their times.
func (p *purger) byServer(ctx context.Context, l *layout, own *dir, name string, a *archiveRecord) (time.Duration, error) {
	written, err := l.archive.written(ctx, name)
	if err != nil {
		return 0, err
	}
	if err := own.touch(ctx); err != nil {
		return 0, err
	}
	now, err := own.changed(ctx)
	if err != nil {
		return 0, err
	}
	return timeOf(written).Add(a.Volume.volume().ArchiveRetention).Sub(timeOf(now)), nil
}

func timeOf(t unix.StatxTimestamp) time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }

// archiveKey returns the key of the volume whose archive's record has that name.
func archiveKey(name string) (key string, ok bool) {
	key, ok = strings.CutSuffix(name, recordSuffix)
	return key, ok && idOf(key) != ""
}

// isArchive tells the record of an archive from that of a volume.
func isArchive(data []byte) bool {
	var head struct{ Target string }
	return json.Unmarshal(data, &head) == nil && head.Target != ""
}
