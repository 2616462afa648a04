package worker

import (
	"context"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/worker/workerpb"
)

func (s *storeServer) CreateSnapshot(ctx context.Context, req *workerpb.CreateSnapshotRequest) (*workerpb.Snapshot, error) {
	b, err := s.opened()
	if err != nil {
		return nil, err
	}
	return snapshotToPB(b.CreateSnapshot(ctx, req.GetName(), req.GetVolume()))
}

func (s *storeServer) GetSnapshot(ctx context.Context, req *workerpb.GetSnapshotRequest) (*workerpb.Snapshot, error) {
	b, err := s.opened()
	if err != nil {
		return nil, err
	}
	return snapshotToPB(b.GetSnapshot(ctx, req.GetId()))
}

func (s *storeServer) ListSnapshots(ctx context.Context, req *workerpb.ListSnapshotsRequest) (*workerpb.ListSnapshotsResponse, error) {
	b, err := s.opened()
	if err != nil {
		return nil, err
	}
	limit := int(req.GetLimit())
	if limit <= 0 || limit > maxPage {
		limit = maxPage
	}
	snapshots, err := b.ListSnapshots(ctx, req.GetVolume(), req.GetAfter(), limit)
	if err != nil {
		return nil, err
	}
	resp := &workerpb.ListSnapshotsResponse{}
	for _, v := range snapshots {
		pb, _ := snapshotToPB(v, nil)
		resp.Snapshots = append(resp.Snapshots, pb)
	}
	return resp, nil
}

func (s *storeServer) DeleteSnapshot(ctx context.Context, req *workerpb.DeleteSnapshotRequest) (*workerpb.Empty, error) {
	b, err := s.opened()
	if err != nil {
		return nil, err
	}
	return empty(b.DeleteSnapshot(ctx, req.GetId()))
}

// CreateSnapshot implements driver.Store.
func (s *Store) CreateSnapshot(ctx context.Context, name, volumeID string) (nfs.Snapshot, error) {
	return snapshotFromPB(callStore(ctx, s, "CreateSnapshot", func(ctx context.Context, c workerpb.StoreClient) (*workerpb.Snapshot, error) {
		return c.CreateSnapshot(ctx, &workerpb.CreateSnapshotRequest{Name: name, Volume: volumeID})
	}))
}

// GetSnapshot implements driver.Store.
func (s *Store) GetSnapshot(ctx context.Context, id string) (nfs.Snapshot, error) {
	return snapshotFromPB(callStore(ctx, s, "GetSnapshot", func(ctx context.Context, c workerpb.StoreClient) (*workerpb.Snapshot, error) {
		return c.GetSnapshot(ctx, &workerpb.GetSnapshotRequest{Id: id})
	}))
}

// ListSnapshots implements driver.Store.
func (s *Store) ListSnapshots(ctx context.Context, volumeID, after string, limit int) ([]nfs.Snapshot, error) {
	var snapshots []nfs.Snapshot
	for {
		ask := maxPage
		if limit > 0 {
			ask = min(maxPage, limit-len(snapshots))
		}
		page, err := callStore(ctx, s, "ListSnapshots", func(ctx context.Context, c workerpb.StoreClient) (*workerpb.ListSnapshotsResponse, error) {
			return c.ListSnapshots(ctx, &workerpb.ListSnapshotsRequest{Volume: volumeID, After: after, Limit: int32(ask)})
		})
		if err != nil {
			return nil, err
		}
		for _, pb := range page.GetSnapshots() {
			v, _ := snapshotFromPB(pb, nil)
			snapshots = append(snapshots, v)
		}
		if len(page.GetSnapshots()) < ask || len(snapshots) == limit {
			return snapshots, nil
		}
		after = snapshots[len(snapshots)-1].ID
	}
}

// DeleteSnapshot implements driver.Store.
func (s *Store) DeleteSnapshot(ctx context.Context, id string) error {
	_, err := callStore(ctx, s, "DeleteSnapshot", func(ctx context.Context, c workerpb.StoreClient) (*workerpb.Empty, error) {
		return c.DeleteSnapshot(ctx, &workerpb.DeleteSnapshotRequest{Id: id})
	})
	return err
}

func snapshotToPB(v nfs.Snapshot, err error) (*workerpb.Snapshot, error) {
	if err != nil {
		return nil, err
	}
	return &workerpb.Snapshot{
		Id:              v.ID,
		Name:            v.Name,
		Volume:          v.Volume,
		CreatedUnixNano: v.Created.UnixNano(),
		SizeBytes:       v.SizeBytes,
		Ready:           v.Ready,
	}, nil
}

func snapshotFromPB(v *workerpb.Snapshot, err error) (nfs.Snapshot, error) {
	if err != nil {
		return nfs.Snapshot{}, err
	}
	return nfs.Snapshot{
		ID:        v.GetId(),
		Name:      v.GetName(),
		Volume:    v.GetVolume(),
		Created:   time.Unix(0, v.GetCreatedUnixNano()).UTC(),
		SizeBytes: v.GetSizeBytes(),
		Ready:     v.GetReady(),
	}, nil
}

// sourceToPB returns nil for none.
func sourceToPB(s nfs.Source) *workerpb.Source {
	if s.IsZero() {
		return nil
	}
	pb := &workerpb.Source{Snapshot: s.Snapshot, Volume: s.Volume}
	if s.Export.Server != "" {
		pb.Export = exportToPB(s.Export)
	}
	return pb
}

func sourceFromPB(s *workerpb.Source) nfs.Source {
	return nfs.Source{Export: exportFromPB(s.GetExport()), Snapshot: s.GetSnapshot(), Volume: s.GetVolume()}
}
