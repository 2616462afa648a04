package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

const slotTime = "20060102T150405Z"

// slotAttempts is how often a slot is made anew that another process removes
// before it is opened, as it may what is empty.
const slotAttempts = 5

// slot returns this store's own directory in the trash, and makes it if it has
// none.
func (l *layout) slot(ctx context.Context) (*dir, error) {
	if own := l.own.Load(); own != nil {
		return own, nil
	}
	for range slotAttempts {
		name := time.Now().UTC().Format(slotTime) + "." + randomName()
		if err := l.trash.mkdir(ctx, name, 0o700); err != nil {
			return nil, err
		}
		own, err := l.trash.openDir(ctx, name)
		if isAbsent(err) || errors.Is(err, nfs.ErrStale) {
			continue
		}
		if err != nil {
			return nil, err
		}
		own.kept = true
		if l.own.CompareAndSwap(nil, own) {
			return own, nil
		}
		// Another goroutine was faster.
		if err := errors.Join(ignoreAbsent(l.trash.rmdir(ctx, name)), own.f.Close()); err != nil {
			return nil, err
		}
		if other := l.own.Load(); other != nil {
			return other, nil
		}
	}
	return nil, fmt.Errorf("%w: whatever is made in %q is removed at once", nfs.ErrBusy, l.trash.path)
}

// checkSlot fails with ErrStale when another process has removed this store's slot, as
// it may when that is empty, and has the next call of slot make another.
func (l *layout) checkSlot(ctx context.Context, own *dir) error {
	err := own.stat(ctx)
	if errors.Is(err, nfs.ErrStale) {
		l.own.CompareAndSwap(own, nil)
	}
	return err
}

func (l *layout) isOwn(slot string) bool {
	own := l.own.Load()
	return own != nil && slot == path.Base(own.path)
}

func isSlotName(name string) bool {
	made, random, ok := strings.Cut(name, ".")
	_, err := time.Parse(slotTime, made)
	return ok && err == nil && isRandomName(random)
}

// slots returns the names in the trash: those of slots, and those that no store gives.
func (l *layout) slots(ctx context.Context) (slots, strange []string, err error) {
	names, err := namesOf(ctx, l.trash, "")
	for _, name := range names {
		if isSlotName(name) {
			slots = append(slots, name)
		} else {
			strange = append(strange, name)
		}
	}
	return slots, strange, err
}

// otherSlots calls each with the slots of other processes.
func (p *purger) otherSlots(ctx context.Context, l *layout, each func(slot *dir) error) error {
	slots, _, err := l.slots(ctx)
	if err != nil {
		return err
	}
	for _, name := range slots {
		if l.isOwn(name) {
			continue
		}
		slot, err := l.trash.openDir(ctx, name)
		if isAbsent(err) || isNotDir(err) {
			continue
		}
		if err == nil {
			err = each(slot)
			slot.close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// entriesOf returns the names of the slot's entries: of those whose records are in
// it, and the trees. There are none when it was removed.
func entriesOf(ctx context.Context, slot *dir) (entries []string, err error) {
	err = slot.list(ctx, func(names []string) error {
		for _, n := range names {
			if isTree(n) {
				entries = append(entries, n)
			} else if name, ok := strings.CutSuffix(n, recordSuffix); ok {
				if _, ok := parseEntryName(name); ok {
					entries = append(entries, name)
				}
			}
		}
		return nil
	})
	if isAbsent(err) || errors.Is(err, nfs.ErrStale) {
		return nil, nil
	}
	return entries, err
}

// adopt takes an entry over from another process, which is to take its record, or
// the tree that it is, and only one can. It fails with ENOENT when another was faster. What else there is of
// it stays where it is: nothing else has that name.
func (p *purger) adopt(ctx context.Context, l *layout, from *dir, name string) error {
	own, err := l.slot(ctx)
	if err != nil {
		return err
	}
	if err := from.rename(ctx, decisive(name), own, decisive(name)); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.entries[name]; e != nil { // this process has had it before
		e.begun.Store(false)
	}
	return nil
}

// adoptAll takes over the entries of another process.
func (p *purger) adoptAll(ctx context.Context, l *layout, from *dir, entries []string) error {
	for _, name := range entries {
		err := p.adopt(ctx, l, from, name)
		if isAbsent(err) { // another process was faster
			continue
		}
		if err != nil {
			return err
		}
		klog.FromContext(ctx).Info("A delete was begun by another process and is taken over", "entry", path.Join(from.path, name))
	}
	return nil
}

// adoptRecords takes over all deletes of volumes that are in another process' slot.
// Trees wait for nothing, and whoever has moved one there may be looking at it still.
func (p *purger) adoptRecords(ctx context.Context, l *layout, slot *dir) error {
	entries, err := entriesOf(ctx, slot)
	if err == nil {
		err = p.adoptAll(ctx, l, slot, slices.DeleteFunc(entries, isTree))
	}
	p.wakeUp() // The turn that this is a part of may not see them.
	return err
}

// fence makes sure that no other process can still move anything into the trash
// that it has begun to: it removes their slots, which they hold open, and which
// must be empty for that. Of two that both wait for that, the one whose own slot has
// the lesser name takes over what is in the other's.
func (p *purger) fence(ctx context.Context, l *layout, name string) error {
	own, err := l.slot(ctx)
	if err != nil {
		return err
	}
	return p.otherSlots(ctx, l, func(slot *dir) error {
		other := path.Base(slot.path)
		// All that a process which was killed late may have left of the entry.
		if err := slot.unlink(ctx, name+claimSuffix); err != nil && !isAbsent(err) {
			return err
		}
		// In one rename: it may be about to become the group's directory.
		id, _ := parseEntryName(name)
		if err := p.s.toTrash(ctx, l, slot, name+lastSuffix, id); err != nil {
			return err
		}
		err := l.trash.rmdir(ctx, other)
		if isNotEmpty(err) && path.Base(own.path) < other {
			if err := p.adoptRecords(ctx, l, slot); err != nil {
				return err
			}
			err = l.trash.rmdir(ctx, other)
		}
		if isNotEmpty(err) {
			return fmt.Errorf("%w: it was begun by a process that may still be at work in %q", nfs.ErrBusy, slot.path)
		}
		return ignoreAbsent(err)
	})
}

// otherSlot is what the purger remembers of another process' slot.
type otherSlot struct {
	stamp   unix.StatxTimestamp // when it changed last, by the server's clock
	since   time.Time           // that long it has been so, by ours
	entries int
	oldest  time.Time // when the first of them was deleted
}

// takeOver looks at the slots of other processes and takes over what those have
// left that seem to have died. It says when to look again.
func (p *purger) takeOver(ctx context.Context, l *layout) (next time.Time, err error) {
	slots, odd, err := l.slots(ctx)
	if err != nil {
		return time.Time{}, err
	}
	strange := len(odd)
	p.mu.Lock()
	before := p.others
	p.mu.Unlock()
	others := make(map[string]*otherSlot, len(slots))
	for _, name := range slots {
		if l.isOwn(name) {
			continue
		}
		o, due, err := p.watch(ctx, l, name, before[name])
		if isNotDir(err) {
			strange++
			continue
		}
		if err != nil {
			return time.Time{}, err
		}
		if o == nil {
			continue
		}
		others[name] = o
		if next.IsZero() || due.Before(next) {
			next = due
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.others = others
	if strange > p.strange {
		klog.FromContext(ctx).Info("Something in the trash was not put there by this driver and stays: remove it by hand", "dir", l.trash.path, "count", strange)
	}
	p.strange = strange
	return next, nil
}

// watch looks at another process' slot, which was as o says before, and takes
// over its entries when it is due.
func (p *purger) watch(ctx context.Context, l *layout, name string, o *otherSlot) (_ *otherSlot, due time.Time, err error) {
	slot, err := l.trash.openDir(ctx, name)
	if err != nil {
		return nil, due, ignoreAbsent(err)
	}
	defer slot.close()
	stamp, err := slot.changed(ctx)
	if err != nil {
		if errors.Is(err, nfs.ErrStale) {
			return nil, due, nil
		}
		return nil, due, err
	}
	now := time.Now()
	since := now
	if o != nil && o.stamp == stamp {
		since = o.since
	}
	entries, err := entriesOf(ctx, slot)
	if err != nil {
		return nil, due, err
	}
	o = &otherSlot{stamp: stamp, since: since, entries: len(entries)}
	for _, name := range entries {
		o.oldest = oldest(o.oldest, deletedAt(name))
	}
	wait := p.grace()
	if p.s.opts.purgeGrace < 0 {
		wait = 0
	}
	if len(entries) == 0 { // it does no harm, and may be in use again
		wait = workAge
	}
	if due = o.since.Add(wait); due.After(now) {
		return o, due, nil
	}
	if err := p.adoptAll(ctx, l, slot, entries); err != nil {
		return nil, due, err
	}
	if err := l.trash.rmdir(ctx, name); err != nil && !isAbsent(err) && !isNotEmpty(err) {
		return nil, due, err
	}
	return nil, due, nil
}

// beat shows other processes that this one lives, as long as its slot holds anything.
func (p *purger) beat(ctx context.Context) {
	tick := time.NewTicker(p.grace() / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		p.mu.Lock()
		idle := len(p.entries) == 0
		p.mu.Unlock()
		if l := p.s.current(); l != nil && !idle {
			if own := l.own.Load(); own != nil {
				// Where it fails, others may take over, which they could anyway.
				_ = own.touch(ctx)
			}
		}
	}
}

// grace is how long another process' slot must have lain unchanged to be taken over.
func (p *purger) grace() time.Duration {
	if p.s.opts.purgeGrace > 0 {
		return p.s.opts.purgeGrace
	}
	return defaultGrace
}
