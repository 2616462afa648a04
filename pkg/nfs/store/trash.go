package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

const (
	trashTime     = "20060102T150405Z"
	pointerSuffix = ".at"
)

// trashed is what the name of an entry in the trash says: whose delete has put it
// there, and when, and what that delete may have left to do.
type trashed struct {
	id      string // of the record
	created int64  // when the record was, in Unix nanoseconds
	since   time.Time
	claim   string // the name of the claim (claimName)
	parents int    // how many innermost parents may go with the volume
}

// newTrashName is "<id>.<time>.<random>.<claim>.<created>.<parents>", which no
// other has.
func newTrashName(r *record) string {
	return strings.Join([]string{r.ID, time.Now().UTC().Format(trashTime), randomName(), claimName(r.Dir),
		strconv.FormatInt(r.Created.UnixNano(), 10), strconv.Itoa(r.ParentsCreated)}, ".")
}

// parseTrashName understands what newTrashName has made, with or without the
// suffix of a pointer; ok is false for anything else.
func parseTrashName(name string) (t trashed, ok bool) {
	fields := strings.Split(strings.TrimSuffix(name, pointerSuffix), ".")
	const tail = 5
	if len(fields) <= tail {
		return trashed{}, false
	}
	last := fields[len(fields)-tail:]
	t.id = strings.Join(fields[:len(fields)-tail], ".")
	t.claim = last[2]
	var errs [3]error
	t.since, errs[0] = time.Parse(trashTime, last[0])
	t.created, errs[1] = strconv.ParseInt(last[3], 10, 64)
	t.parents, errs[2] = strconv.Atoi(last[4])
	if errors.Join(errs[:]...) != nil || t.parents < 0 {
		return trashed{}, false
	}
	return t, nfs.CheckRecordID(t.id) == nil
}

// take removes one entry of the trash: a tree, or a pointer to a tree elsewhere
// on the export.
func (p *purger) take(ctx context.Context, l *layout, name string) error {
	if !strings.HasSuffix(name, pointerSuffix) {
		return p.remove(ctx, l.trash, name, nil, 0)
	}
	target, err := l.trash.readlink(ctx, name)
	switch {
	case isAbsent(err):
		return nil
	case errors.Is(err, unix.EINVAL): // no pointer, whatever its name
		return p.remove(ctx, l.trash, name, nil, 0)
	case err != nil:
		return err
	}
	if base := path.Base(target); !strings.HasPrefix(base, hiddenPrefix) {
		return fmt.Errorf("%w: the text of the pointer, %q, is not what this driver writes; remove the pointer by hand", nfs.ErrForeign, target)
	}
	parent, _, err := p.s.walk(ctx, parentOf(target), lookForSure)
	if err == nil {
		err = p.remove(ctx, parent, path.Base(target), nil, 0)
		parent.close()
	}
	if err != nil && !isAbsent(err) {
		return err
	}
	// Only now its parents may be empty.
	if t, ok := parseTrashName(name); ok {
		if err := p.s.removeParents(ctx, target, t.parents); err != nil {
			return err
		}
	}
	return p.unlink(ctx, l.trash, name)
}

// freeClaims removes the claims that this store's deletes have left to the purge,
// of the directory and of those around it.
func (p *purger) freeClaims(ctx context.Context, l *layout, dir string) error {
	for ; dir != ""; dir = parentOf(dir) {
		p.mu.Lock()
		name := p.claims[claimName(dir)]
		p.mu.Unlock()
		if name == "" {
			continue
		}
		if err := p.complete(ctx, l, name); err != nil {
			return err
		}
	}
	return nil
}

// complete ends the delete that has put the entry into the trash: it removes the
// claim. It fails with ErrBusy while the volume has its record, and with
// ErrForeign for what may be another volume's directory, moved by mistake by a
// delete that was killed before it could move it back.
func (p *purger) complete(ctx context.Context, l *layout, name string) error {
	t, ok := parseTrashName(name)
	if !ok {
		return nil
	}
	if err := p.freeClaim(ctx, l, t); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.claims[t.claim] == name {
		delete(p.claims, t.claim)
	}
	if e := p.entries[name]; e != nil {
		e.completed = true
	}
	return nil
}

func (p *purger) freeClaim(ctx context.Context, l *layout, t trashed) error {
	if err := l.dirs.refresh(ctx); err != nil {
		return err
	}
	owner, err := l.dirs.readlink(ctx, t.claim)
	if isAbsent(err) || err == nil && nfs.CheckRecordID(owner) != nil {
		return nil
	}
	if err != nil {
		return err
	}
	r, err := l.recordForSure(ctx, owner)
	switch {
	case err != nil:
		return err
	case r != nil && claimName(r.Dir) != t.claim, r == nil && owner != t.id:
		return nil
	case r == nil:
		return ignoreAbsent(l.dirs.unlink(ctx, t.claim))
	case owner == t.id && r.Created.UnixNano() == t.created:
		return fmt.Errorf("%w: the volume %q still has its record: its delete will be tried again", nfs.ErrBusy, r.Name)
	case owner == t.id: // it was made again since
		return nil
	}
	missing := newCreation(p.s, l, r.spec()).findDir(ctx, lookForSure)
	if isAbsent(missing) {
		return fmt.Errorf("%w: this may be the directory of the volume %q, which is missing: if its data is here, move it to %q, else make an empty directory there", nfs.ErrForeign, r.Name, r.Dir)
	}
	return missing
}
