package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// GetVolume returns the volume with that record id. Errors: ErrNotFound;
// ErrForeign when the record is another instance's or cannot be read.
func (s *Store) GetVolume(ctx context.Context, id string) (nfs.Volume, error) {
	defer s.active.begin()()
	v, err := s.getVolume(ctx, id)
	if err != nil {
		return nfs.Volume{}, fmt.Errorf("get volume %q: %w", id, err)
	}
	return v, nil
}

func (s *Store) getVolume(ctx context.Context, id string) (nfs.Volume, error) {
	if err := nfs.CheckRecordID(id); err != nil {
		return nfs.Volume{}, err
	}
	l, err := s.layout(ctx)
	if err != nil {
		return nfs.Volume{}, err
	}
	if l == nil {
		return nfs.Volume{}, nfs.ErrNotFound
	}
	r, err := l.recordForSure(ctx, id)
	s.reopenAfter(l, err)
	if err != nil {
		return nfs.Volume{}, err
	}
	if r == nil {
		return nfs.Volume{}, nfs.ErrNotFound
	}
	if err := s.opts.checkOwner(r); err != nil {
		return nfs.Volume{}, err
	}
	return r.volume(), nil
}

// ListVolumes returns up to limit volumes (0: all) of this driver and instance
// with ids after the given one, in the order of their ids; more may follow when
// it returned limit. Only the records of the page are read. Volumes that come or
// go meanwhile may or may not be in it; all others are. A record that cannot be
// read is logged, counted in Backlog and left out, so that it hides no other.
func (s *Store) ListVolumes(ctx context.Context, after string, limit int) ([]nfs.Volume, error) {
	defer s.active.begin()()
	l, err := s.layout(ctx)
	if err != nil || l == nil {
		return nil, err
	}
	volumes, err := s.listVolumes(ctx, l, after, limit)
	s.reopenAfter(l, err)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	return volumes, nil
}

func (s *Store) listVolumes(ctx context.Context, l *layout, after string, limit int) ([]nfs.Volume, error) {
	if err := l.volumes.refresh(ctx); err != nil {
		return nil, err
	}
	var ids []string
	err := l.volumes.list(ctx, func(names []string) error {
		for _, name := range names {
			if id, ok := strings.CutSuffix(name, recordSuffix); ok && id > after {
				ids = append(ids, id)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(ids)
	var volumes []nfs.Volume
	// NFS may show an entry twice when the directory changes meanwhile.
	for _, id := range slices.Compact(ids) {
		if limit > 0 && len(volumes) == limit {
			break
		}
		r, err := l.record(ctx, id)
		switch {
		case err == nil && (r == nil || s.opts.checkOwner(r) != nil):
		case err == nil:
			volumes = append(volumes, r.volume())
		case errors.Is(err, nfs.ErrForeign):
			s.skipped.Add(1)
			klog.FromContext(ctx).Info("A volume is left out of the list: its record cannot be read", "id", id, "err", err)
		default:
			return nil, err
		}
	}
	return volumes, nil
}
