package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// restore takes an archive back into service as a volume of another name or, without
// Commit, says what that would be. What the task leaves open is as it was: the
// directory, the capacity, and what becomes of it on delete. Errors: those of
// CreateVolume with RestoreArchive.
func (s *Store) restore(ctx context.Context, which nfs.Task) ([]nfs.Item, error) {
	item := nfs.Item{Kind: nfs.ItemVolume, Key: nfs.RecordID(which.Name), Driver: s.opts.DriverName, Instance: s.opts.InstanceID}
	found, err := s.getVolume(ctx, item.Key)
	switch {
	case err == nil && which.Key != found.RestoredArchive && which.Key != found.RestoredName:
		err = fmt.Errorf("%w: the name %q is taken by the volume in directory %q", nfs.ErrConflict, which.Name, found.Dir)
	case errors.Is(err, nfs.ErrNotFound):
		found, err = s.restoreAs(ctx, which)
	}
	if err != nil {
		return nil, fmt.Errorf("archive %q: %w", which.Key, err)
	}
	item.Volume, item.Path, item.Since = found, found.Dir, found.Created
	return []nfs.Item{item}, nil
}

func (s *Store) restoreAs(ctx context.Context, which nfs.Task) (nfs.Volume, error) {
	id, a, err := s.findArchive(ctx, which)
	if err != nil {
		return nfs.Volume{}, err
	}
	old := a.Volume
	spec := nfs.VolumeSpec{Name: which.Name, Dir: which.Dir, MinBytes: which.CapacityBytes, OnDelete: which.OnDelete, Claim: which.Claim, RestoreArchive: id}
	if spec.Dir == "" {
		spec.Dir = old.Dir
	}
	if spec.MinBytes == 0 {
		spec.MinBytes = old.CapacityBytes
	}
	if spec.OnDelete == "" {
		spec.OnDelete = old.OnDelete
	}
	if spec.OnDelete == nfs.Archive {
		spec.ArchiveRetention = old.ArchiveRetention
	}
	if which.Commit {
		return s.CreateVolume(ctx, spec)
	}
	if err := checkSpec(spec); err != nil {
		return nfs.Volume{}, err
	}
	switch there, err := s.isDirectory(ctx, spec.Dir); {
	case err != nil:
		return nfs.Volume{}, err
	case there:
		return nfs.Volume{}, fmt.Errorf("%w: the directory %q exists: choose another", nfs.ErrForeign, spec.Dir)
	}
	v := newRecord(s.opts, spec, 0, a.Since).volume()
	v.RestoredArchive, v.RestoredName = id, old.Name
	return v, nil
}

// findArchive returns the one archive that the task's key is the id or the original
// name of, and which nobody else takes back.
func (s *Store) findArchive(ctx context.Context, which nfs.Task) (id string, _ nfs.Item, err error) {
	fail := func(err error) (string, nfs.Item, error) { return "", nfs.Item{}, err }
	v, err := s.newView(ctx)
	if err != nil {
		return fail(err)
	}
	if v == nil {
		return fail(fmt.Errorf("%w: there are no archives", nfs.ErrNotFound))
	}
	defer v.close()
	keys, err := v.keys(ctx, nfs.ItemArchive)
	if err != nil {
		return fail(err)
	}
	found := map[string]nfs.Item{}
	for _, key := range keys {
		id, by, ok := parseArchiveName(key + recordSuffix)
		if !ok || id != which.Key && idOf(id) != nfs.RecordID(which.Key) || by != "" && idOf(by) != nfs.RecordID(which.Name) {
			continue
		}
		item, err := v.item(ctx, nfs.ItemArchive, key)
		if errors.Is(err, nfs.ErrNotFound) {
			continue
		}
		if err != nil {
			return fail(err)
		}
		if id == which.Key || item.Volume.Name == which.Key {
			found[id] = item
		}
	}
	if len(found) == 0 {
		return fail(fmt.Errorf("%w: no archive has that id or original name, or it was removed, or another volume takes it back", nfs.ErrNotFound))
	}
	if exact, ok := found[which.Key]; ok {
		return which.Key, exact, nil
	}
	var ids []string
	for key, item := range found {
		ids, id = append(ids, fmt.Sprintf("%s (%s)", key, item.Since.Format("2006-01-02 15:04:05"))), key
	}
	if len(ids) > 1 {
		slices.Sort(ids)
		return fail(fmt.Errorf("%w: a volume of that name was archived %d times: name one by its id: %s", nfs.ErrInvalid, len(ids), strings.Join(ids, ", ")))
	}
	return id, found[id], nil
}
