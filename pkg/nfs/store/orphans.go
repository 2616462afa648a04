package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// orphans looks for records without their directory or its claim, directories without
// a record, and claims and changes of volumes that have no record, in the directories
// that hold volumes: the share, and the parents of volumes. It never looks into a volume. What is made
// or deleted at that moment may appear among them.
func (s *Store) orphans(ctx context.Context, t *task) ([]nfs.Item, error) {
	v, err := s.newView(ctx)
	if err != nil || v == nil {
		return nil, err
	}
	defer v.close()
	search := &search{view: v, task: t, known: map[string]bool{}, parents: map[string]bool{}, claims: map[string]bool{}, underway: map[string]bool{}, ending: map[string]bool{}}
	for _, step := range []func(context.Context) error{
		search.readTrash, search.copies, search.groups,
		search.volumes, search.archives, search.directories, search.leftClaims, search.leftChanges,
		search.newVolumes,
	} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("look for orphans: %w", err)
		}
	}
	slices.SortFunc(search.found, func(a, b nfs.Item) int {
		return cmp.Or(strings.Compare(string(a.Kind), string(b.Kind)), strings.Compare(a.Path, b.Path))
	})
	return search.found, nil
}

type search struct {
	*view
	task  *task
	found []nfs.Item

	ids []string // of the volumes that were there when it began
	// known directories have a record, and parents lead to them.
	known, parents map[string]bool
	claims         map[string]bool // names of claims that need no more explanation
	// underway are ids of volumes in the trash, still being copied, or taken back, and
	// ending groups of volumes in the trash.
	underway, ending map[string]bool
}

func (s *search) readTrash(ctx context.Context) error {
	if err := s.view.readTrash(ctx); err != nil {
		return err
	}
	for name := range s.entries {
		id, _ := parseEntryName(name)
		s.underway[id] = true
		item, err := s.item(ctx, nfs.ItemTrash, name)
		if errors.Is(err, nfs.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		s.task.seen.Add(1)
		s.lead(item.Volume.Dir)
		if item.Volume.Shared {
			if err := s.noteGroup(ctx, name); err != nil {
				return err
			}
		}
		if !strings.HasPrefix(item.Path, ownDir+"/") { // beside where it was
			s.know(item.Path)
		}
	}
	return nil
}

// copies notes the volumes that are made of a copy, whose claims come long before
// their records.
func (s *search) copies(ctx context.Context) error {
	names, err := namesOf(ctx, s.l.work, "")
	for _, name := range names {
		if kind, id, ok := parseJobName(name); ok && kind == cloneJob {
			s.underway[id] = true
		}
	}
	return err
}

func (s *search) know(dir string) {
	s.known[dir] = true
	s.lead(dir)
}

// lead notes the parents of the directory.
func (s *search) lead(dir string) {
	for p := parentOf(dir); p != ""; p = parentOf(p) {
		s.parents[p] = true
	}
}

func (s *search) add(kind nfs.ItemKind, p, problem string) {
	s.found = append(s.found, nfs.Item{Kind: kind, Key: p, Path: p, Problem: problem})
}

func (s *search) volumes(ctx context.Context) (err error) {
	if s.ids, err = s.keys(ctx, nfs.ItemVolume); err != nil {
		return err
	}
	for _, id := range s.ids {
		item, err := s.item(ctx, nfs.ItemVolume, id)
		if errors.Is(err, nfs.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		s.task.seen.Add(1)
		record := path.Join(s.l.volumes.path, id+recordSuffix)
		if item.Problem != "" {
			s.add(nfs.ItemRecord, record, item.Problem)
			continue
		}
		s.know(item.Path)
		s.claims[claimName(item.Path)] = true
		there, err := s.s.isDirectory(ctx, item.Path)
		problem := fmt.Sprintf("the directory %q of the volume is missing: bring it back, or delete the volume", item.Path)
		if there {
			problem, err = s.brokenClaim(ctx, id, item.Path)
		}
		if err != nil && !errors.Is(err, nfs.ErrForeign) {
			return err
		}
		if err != nil || problem == "" {
			continue
		}
		// Both go in a delete, the record first.
		if r, err := s.l.recordForSure(ctx, id); err != nil || r == nil || r.key() != volumeKey(id, item.Since) {
			if err != nil && !errors.Is(err, nfs.ErrForeign) {
				return err
			}
			continue
		}
		item.Kind, item.Path, item.Key, item.Problem = nfs.ItemRecord, record, record, problem
		s.found = append(s.found, item)
	}
	return nil
}

func (s *search) archives(ctx context.Context) error {
	keys, err := s.keys(ctx, nfs.ItemArchive)
	if err != nil {
		return err
	}
	var taken []string
	for _, key := range keys {
		item, err := s.item(ctx, nfs.ItemArchive, key)
		if errors.Is(err, nfs.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		s.task.seen.Add(1)
		if item.Path != "" {
			s.know(item.Path)
		}
		_, by, _ := parseArchiveName(key + recordSuffix)
		if by != "" {
			taken = append(taken, idOf(by)) // Its claim is a part of this.
		}
		if item.Problem == "" || s.underway[item.Volume.ID] || s.underway[idOf(by)] { // the directory is on its way
			continue
		}
		item.Kind, item.Path = nfs.ItemRecord, path.Join(s.l.archive.path, key+recordSuffix)
		item.Key = item.Path
		s.found = append(s.found, item)
	}
	for _, id := range taken {
		s.underway[id] = true
	}
	return nil
}

func (s *search) directories(ctx context.Context) error { return s.within(ctx, s.s.root, "") }

// within looks for strange directories in d, which is at the path p.
func (s *search) within(ctx context.Context, d *dir, p string) error {
	if err := d.refresh(ctx); err != nil {
		return err
	}
	return d.list(ctx, func(names []string) error {
		for _, name := range names {
			if err := s.look(ctx, d, name, path.Join(p, name)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *search) look(ctx context.Context, d *dir, name, p string) error {
	if s.known[p] || p == ownDir {
		return nil
	}
	st, err := d.lstat(ctx, name)
	if err != nil || !st.isDir() {
		return ignoreAbsent(err)
	}
	if !s.parents[p] {
		return s.strangeDirectory(ctx, p)
	}
	sub, err := d.openDir(ctx, name)
	if isAbsent(err) || isNotDir(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer sub.close()
	return s.within(ctx, sub, p)
}

func (s *search) strangeDirectory(ctx context.Context, p string) error {
	key, err := s.l.claimant(ctx, p)
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	if key == "" {
		s.add(nfs.ItemDirectory, p, "no record tells of it: the driver has not made it, or it was retained")
		return nil
	}
	s.claims[claimName(p)] = true
	problem, err := s.unfinished(ctx, claimName(p), key)
	if err == nil && problem != "" {
		s.add(nfs.ItemDirectory, p, "it is kept for "+problem+", and the directory when it is empty")
	}
	return err
}

// newVolumes drops directories that have become parents of volumes meanwhile.
func (s *search) newVolumes(ctx context.Context) error {
	now, err := s.keys(ctx, nfs.ItemVolume)
	if err != nil {
		return err
	}
	for _, id := range now {
		if _, was := slices.BinarySearch(s.ids, id); was {
			continue
		}
		item, err := s.item(ctx, nfs.ItemVolume, id)
		if err != nil && !errors.Is(err, nfs.ErrNotFound) {
			return err
		}
		if err == nil && item.Problem == "" {
			s.know(item.Path)
		}
	}
	s.found = slices.DeleteFunc(s.found, func(i nfs.Item) bool {
		return i.Kind == nfs.ItemDirectory && (s.parents[i.Path] || s.known[i.Path])
	})
	return nil
}
