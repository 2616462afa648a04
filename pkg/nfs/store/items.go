package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// ListItems returns up to limit items (0: all) of the kind with keys after the given
// one, in the order of their keys; more may follow when it returned limit. Unlike
// ListVolumes it shows those of every driver and instance, and those whose record
// cannot be read, with the problem. Only records are read. Errors: ErrInvalid for a
// kind that is not listed.
func (s *Store) ListItems(ctx context.Context, kind nfs.ItemKind, after string, limit int) ([]nfs.Item, error) {
	defer s.active.begin()()
	v, err := s.newView(ctx)
	if err != nil || v == nil {
		return nil, err
	}
	defer v.close()
	keys, err := v.keys(ctx, kind)
	if err != nil {
		return nil, fmt.Errorf("list the %s: %w", kind, err)
	}
	var items []nfs.Item
	for _, key := range keys {
		if limit > 0 && len(items) == limit {
			break
		}
		if key <= after {
			continue
		}
		item, err := v.item(ctx, kind, key)
		switch {
		case errors.Is(err, nfs.ErrNotFound): // it went meanwhile
		case err != nil:
			return nil, fmt.Errorf("list the %s: %w", kind, err)
		default:
			items = append(items, item)
		}
	}
	return items, nil
}

// view is a look at all that the store keeps, at about one moment.
type view struct {
	s *Store
	l *layout
	// slots are all directories in the trash, in which the deleted volumes are.
	slots []*dir
	// entries say in which of the slots the record of a deleted volume was seen;
	// strange are the names in the trash that no store gives.
	entries map[string]*dir
	strange map[string]bool
}

// newView returns nil where no volume was ever made.
func (s *Store) newView(ctx context.Context) (*view, error) {
	l, err := s.layout(ctx)
	if err != nil || l == nil {
		return nil, err
	}
	return &view{s: s, l: l}, nil
}

func (v *view) close() {
	for _, slot := range v.slots {
		slot.close()
	}
}

// keys returns the keys of all items of the kind, in their order.
func (v *view) keys(ctx context.Context, kind nfs.ItemKind) (keys []string, err error) {
	switch kind {
	case nfs.ItemVolume:
		keys, err = namesOf(ctx, v.l.volumes, recordSuffix)
	case nfs.ItemArchive:
		keys, err = namesOf(ctx, v.l.archive, recordSuffix)
	case nfs.ItemSnapshot:
		keys, err = v.snapshotKeys(ctx)
	case nfs.ItemTrash:
		if err = v.readTrash(ctx); err == nil {
			for name := range v.entries {
				keys = append(keys, name)
			}
			for name := range v.strange {
				keys = append(keys, name)
			}
		}
	default:
		return nil, fmt.Errorf("%w: items of kind %q cannot be listed", nfs.ErrInvalid, kind)
	}
	slices.Sort(keys)
	// NFS may show an entry twice when the directory changes meanwhile.
	return slices.Compact(keys), err
}

// namesOf returns the names in the directory that have the suffix, without it.
func namesOf(ctx context.Context, d *dir, suffix string) (names []string, err error) {
	if err := d.refresh(ctx); err != nil {
		return nil, err
	}
	err = d.list(ctx, func(batch []string) error {
		for _, name := range batch {
			if name, ok := strings.CutSuffix(name, suffix); ok {
				names = append(names, name)
			}
		}
		return nil
	})
	return names, err
}

// readTrash fills slots, entries and strange, once.
func (v *view) readTrash(ctx context.Context) error {
	if v.entries != nil {
		return nil
	}
	slots, odd, err := v.l.slots(ctx)
	if err != nil {
		return err
	}
	entries, strange := map[string]*dir{}, map[string]bool{}
	for _, name := range odd {
		strange[name] = true
	}
	for _, name := range slots {
		slot, err := v.l.trash.openDir(ctx, name)
		if isAbsent(err) {
			continue
		}
		if isNotDir(err) {
			strange[name] = true
			continue
		}
		if err != nil {
			return err
		}
		v.slots = append(v.slots, slot)
		deleted, err := entriesOf(ctx, slot)
		if err != nil {
			return err
		}
		for _, e := range deleted {
			entries[e] = slot
		}
	}
	v.entries, v.strange = entries, strange
	return nil
}

// item returns the item with that key, or ErrNotFound.
func (v *view) item(ctx context.Context, kind nfs.ItemKind, key string) (nfs.Item, error) {
	item := nfs.Item{Kind: kind, Key: key}
	var err error
	switch kind {
	case nfs.ItemVolume:
		err = v.volume(ctx, &item)
	case nfs.ItemArchive:
		err = v.archive(ctx, &item)
	case nfs.ItemSnapshot:
		err = v.snapshot(ctx, &item)
	case nfs.ItemTrash:
		err = v.deleted(ctx, &item)
	default:
		err = fmt.Errorf("%w: there are no items of kind %q", nfs.ErrInvalid, kind)
	}
	if errors.Is(err, nfs.ErrForeign) {
		item.Problem, err = err.Error(), nil
	}
	return item, err
}

func (v *view) volume(ctx context.Context, item *nfs.Item) error {
	r, err := v.l.record(ctx, item.Key)
	if err != nil {
		return err
	}
	if r == nil {
		return fmt.Errorf("%w: the volume %q", nfs.ErrNotFound, item.Key)
	}
	describe(item, r)
	item.Path, item.Since = r.Dir, r.Created
	return nil
}

func describe(item *nfs.Item, r *record) {
	item.Volume, item.Driver, item.Instance = r.volume(), r.Driver, r.Instance
}

func (v *view) archive(ctx context.Context, item *nfs.Item) error {
	name := item.Key + recordSuffix
	a, file, err := v.l.archived(ctx, name)
	if isAbsent(err) {
		return fmt.Errorf("%w: the archive %q", nfs.ErrNotFound, item.Key)
	}
	if err != nil {
		return err
	}
	describe(item, &a.Volume)
	item.Since = a.Archived
	if due := a.due(time.Unix(file.mtime.Unix())); !due.IsZero() {
		item.Expires = due.UTC()
	}
	if _, by, _ := parseArchiveName(name); by != "" {
		item.Problem = fmt.Sprintf("the volume %q takes it back; if nothing finishes that, see the guide for recovery", idOf(by))
	}
	at := path.Join(parentOf(a.Volume.Dir), a.Target)
	switch there, err := v.s.isDirectory(ctx, at); {
	case err != nil:
		return err
	case there:
		item.Path = at
	case item.Problem == "":
		item.Problem = fmt.Sprintf("its directory %q is missing", at)
	}
	return nil
}

// snapshotKeys returns the ids of the snapshots, those that are being made first
// looked for, since they move.
func (v *view) snapshotKeys(ctx context.Context) ([]string, error) {
	names, err := namesOf(ctx, v.l.work, "")
	if err != nil {
		return nil, err
	}
	var keys []string
	for _, name := range names {
		if kind, id, ok := parseJobName(name); ok && kind == snapshotJob {
			keys = append(keys, id)
		}
	}
	names, err = namesOf(ctx, v.l.snapshots, "")
	for _, name := range names {
		if nfs.CheckRecordID(name) == nil {
			keys = append(keys, name)
		}
	}
	return keys, err
}

func (v *view) snapshot(ctx context.Context, item *nfs.Item) error {
	job, err := v.s.findSnapshot(ctx, v.l, item.Key)
	if errors.Is(err, nfs.ErrBusy) || err == nil && job == nil {
		return fmt.Errorf("%w: the snapshot %q", nfs.ErrNotFound, item.Key)
	}
	if err != nil {
		return err
	}
	defer job.close()
	s, err := job.snapshot(ctx)
	if err != nil {
		return err
	}
	item.Volume = nfs.Volume{ID: s.ID, Name: s.Name, CapacityBytes: s.SizeBytes, Created: s.Created}
	item.Source, item.Driver, item.Instance, item.Since = s.Volume, job.record.Driver, job.record.Instance, s.Created
	if item.Path = path.Join(v.l.snapshots.path, s.ID); !s.Ready {
		item.Path = path.Join(v.l.work.path, job.name)
		item.Problem = "it is still being copied, and not ready to use"
	}
	return nil
}

// isDirectory says whether there is a directory at the path.
func (s *Store) isDirectory(ctx context.Context, p string) (bool, error) {
	parent, _, err := s.walk(ctx, parentOf(p), lookForSure)
	if isAbsent(err) || errors.Is(err, nfs.ErrForeign) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer parent.close()
	st, err := parent.lstat(ctx, path.Base(p))
	if isAbsent(err) {
		if err = parent.refresh(ctx); err == nil {
			st, err = parent.lstat(ctx, path.Base(p))
		}
	}
	return err == nil && st.isDir(), ignoreAbsent(err)
}

func (v *view) deleted(ctx context.Context, item *nfs.Item) error {
	if err := v.readTrash(ctx); err != nil {
		return err
	}
	name := item.Key
	if v.strange[name] {
		item.Path = path.Join(v.l.trash.path, name)
		item.Problem = "the driver has not put it there: see what it is, and remove it by hand"
		return nil
	}
	slot := v.entries[name]
	if slot == nil {
		return fmt.Errorf("%w: %q in the trash", nfs.ErrNotFound, name)
	}
	if isTree(name) {
		item.Path, item.Since, item.Problem = path.Join(slot.path, name), deletedAt(name), v.s.purge.whyFailing(name)
		return nil
	}
	r, err := v.l.entryRecord(ctx, slot, &entry{name: name})
	if errors.Is(err, nfs.ErrStale) || err == nil && r == nil { // it went meanwhile
		return fmt.Errorf("%w: %q in the trash", nfs.ErrNotFound, name)
	}
	item.Since, item.Problem = deletedAt(name), v.s.purge.whyFailing(name)
	if err != nil {
		return err
	}
	describe(item, r)
	item.Path, err = v.whereDeleted(ctx, name, slot, r)
	return err
}

// whereDeleted returns the path of a deleted volume's directory: in a slot, or
// beside where it was.
func (v *view) whereDeleted(ctx context.Context, name string, slot *dir, r *record) (string, error) {
	for _, d := range append([]*dir{slot}, v.slots...) {
		_, err := d.lstat(ctx, name)
		if err == nil {
			return path.Join(d.path, name), nil
		}
		if !isAbsent(err) && !errors.Is(err, nfs.ErrStale) {
			return "", err
		}
	}
	hidden := path.Join(parentOf(r.Dir), hiddenPrefix+name)
	if there, err := v.s.isDirectory(ctx, hidden); err != nil || !there {
		return "", err
	}
	return hidden, nil
}

// whyFailing says why the entry could not be removed, if this store has tried.
func (p *purger) whyFailing(name string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.entries[name]; e != nil && e.why != nil {
		return fmt.Sprintf("it could not be removed (tried %d times, again at %s): %v", e.failures, e.next.UTC().Format(time.TimeOnly), e.why)
	}
	return ""
}
