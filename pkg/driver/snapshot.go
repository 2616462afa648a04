package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// CreateSnapshot begins to copy a volume on its export. It answers before the copy
// is complete, and what it answers is ready when a later call says so.
func (c *controller) CreateSnapshot(ctx context.Context, req *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	name := req.GetName()
	if err := checkName(name); err != nil {
		return nil, err
	}
	if err := required("source_volume_id", req.GetSourceVolumeId()); err != nil {
		return nil, err
	}
	if err := checkSnapshotParameters(req.GetParameters()); err != nil {
		return nil, err
	}
	handle, err := nfs.ParseHandle(req.GetSourceVolumeId())
	if err != nil {
		return nil, fmt.Errorf("create snapshot %q: %w", name, notFound(err))
	}
	if handle.Legacy() {
		return nil, invalidf("create snapshot %q: the volume %q was made by csi-driver-nfs and has no record, without which there is no snapshot of it", name, req.GetSourceVolumeId())
	}
	store, err := c.stores.Open(ctx, handle.Export)
	if err != nil {
		return nil, fmt.Errorf("create snapshot %q on %s: %w", name, handle.Export, err)
	}
	snapshot, err := store.CreateSnapshot(ctx, name, handle.ID)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", handle.Export, err)
	}
	return &csi.CreateSnapshotResponse{Snapshot: csiSnapshot(handle.Export, snapshot)}, nil
}

// checkSnapshotParameters refuses, with nfs.ErrInvalid, every parameter of a
// VolumeSnapshotClass but those of the sidecars: there are none.
func checkSnapshotParameters(raw map[string]string) error {
	folded, err := foldKeys(raw)
	if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(folded)) {
		if !strings.HasPrefix(key, sidecarPrefix) {
			return invalidf("unknown parameter %q: a VolumeSnapshotClass of this driver has no parameters; a snapshot is kept on the export of its volume", key)
		}
	}
	return nil
}

// notFound is the error for a handle that nothing ever had.
func notFound(err error) error {
	return fmt.Errorf("%w: %s", nfs.ErrNotFound, strings.TrimPrefix(err.Error(), nfs.ErrInvalid.Error()+": "))
}

// csiSnapshot is the snapshot as CSI describes it.
func csiSnapshot(export nfs.Export, v nfs.Snapshot) *csi.Snapshot {
	return &csi.Snapshot{
		SnapshotId:     nfs.SnapshotHandle{Export: export, ID: v.ID}.String(),
		SourceVolumeId: nfs.Handle{Export: export, ID: v.Volume}.String(),
		CreationTime:   timestamppb.New(v.Created),
		SizeBytes:      v.SizeBytes,
		ReadyToUse:     v.Ready,
	}
}

// DeleteSnapshot removes a snapshot; the handle is enough.
func (c *controller) DeleteSnapshot(ctx context.Context, req *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	if err := required("snapshot_id", req.GetSnapshotId()); err != nil {
		return nil, err
	}
	handle, err := nfs.ParseSnapshotHandle(req.GetSnapshotId())
	if err != nil {
		if hasVersion(req.GetSnapshotId(), "s") {
			// Saying "deleted" would lose track of a snapshot that may exist.
			return nil, fmt.Errorf("delete snapshot: %w", err)
		}
		klog.FromContext(ctx).Info("Nothing to delete: this driver never made a snapshot with such a handle", "warning", true, "reason", err.Error())
		return &csi.DeleteSnapshotResponse{}, nil
	}
	store, err := c.stores.Open(ctx, handle.Export)
	if err != nil {
		return nil, fmt.Errorf("delete snapshot %q on %s: %w", handle.ID, handle.Export, err)
	}
	if err := store.DeleteSnapshot(ctx, handle.ID); err != nil {
		return nil, fmt.Errorf("%s: %w", handle.Export, err)
	}
	return &csi.DeleteSnapshotResponse{}, nil
}

// GetSnapshot returns what the record says of the snapshot.
func (c *controller) GetSnapshot(ctx context.Context, req *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	if err := required("snapshot_id", req.GetSnapshotId()); err != nil {
		return nil, err
	}
	snapshot, err := c.getSnapshot(ctx, req.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	return &csi.GetSnapshotResponse{Snapshot: snapshot}, nil
}

func (c *controller) getSnapshot(ctx context.Context, snapshotID string) (*csi.Snapshot, error) {
	handle, err := nfs.ParseSnapshotHandle(snapshotID)
	if err != nil {
		return nil, notFound(err)
	}
	store, err := c.stores.Open(ctx, handle.Export)
	if err != nil {
		return nil, fmt.Errorf("snapshot %q on %s: %w", handle.ID, handle.Export, err)
	}
	snapshot, err := store.GetSnapshot(ctx, handle.ID)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", handle.Export, err)
	}
	return csiSnapshot(handle.Export, snapshot), nil
}

// ListSnapshots lists the snapshots of every export that is known, in the way of
// ListVolumes, or those that the filters name, of which there may be none.
func (c *controller) ListSnapshots(ctx context.Context, req *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	limit := int(req.GetMaxEntries())
	if limit < 0 {
		return nil, invalidf("max_entries is negative")
	}
	if id := req.GetSnapshotId(); id != "" {
		return c.listOneSnapshot(ctx, id, req.GetSourceVolumeId())
	}
	var last nfs.SnapshotHandle
	if token := req.GetStartingToken(); token != "" {
		h, err := nfs.ParseSnapshotHandle(token)
		if err != nil {
			return nil, fmt.Errorf("%w: %q; start again without a token", nfs.ErrBadToken, token)
		}
		last = h
	}
	exports, volumeID := c.stores.Exports(), ""
	if source := req.GetSourceVolumeId(); source != "" {
		h, err := nfs.ParseHandle(source)
		if err != nil || h.Legacy() {
			return &csi.ListSnapshotsResponse{}, nil
		}
		exports, volumeID = []nfs.Export{h.Export}, h.ID
	}
	resp := &csi.ListSnapshotsResponse{}
	more, err := page(exports, place{last.Export, last.ID}, limit,
		func(export nfs.Export, after string, limit int) ([]nfs.Snapshot, error) {
			return c.listSnapshots(ctx, export, volumeID, after, limit)
		},
		func(export nfs.Export, v nfs.Snapshot) {
			resp.Entries = append(resp.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: csiSnapshot(export, v)})
		})
	if err != nil {
		return nil, err
	}
	if more {
		resp.NextToken = resp.Entries[limit-1].GetSnapshot().GetSnapshotId()
	}
	return resp, nil
}

func (c *controller) listOneSnapshot(ctx context.Context, id, sourceVolumeID string) (*csi.ListSnapshotsResponse, error) {
	snapshot, err := c.getSnapshot(ctx, id)
	if errors.Is(err, nfs.ErrNotFound) || err == nil && sourceVolumeID != "" && snapshot.GetSourceVolumeId() != sourceVolumeID {
		return &csi.ListSnapshotsResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	return &csi.ListSnapshotsResponse{Entries: []*csi.ListSnapshotsResponse_Entry{{Snapshot: snapshot}}}, nil
}

func (c *controller) listSnapshots(ctx context.Context, export nfs.Export, volumeID, after string, limit int) ([]nfs.Snapshot, error) {
	store, err := c.stores.Open(ctx, export)
	if err != nil {
		return nil, fmt.Errorf("list snapshots of %s: %w", export, err)
	}
	snapshots, err := store.ListSnapshots(ctx, volumeID, after, limit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", export, err)
	}
	return snapshots, nil
}

// parseContentSource returns what a new volume is to be a copy of, with its export.
// It fails with nfs.ErrNotFound for handles that nothing ever had.
func parseContentSource(s *csi.VolumeContentSource) (nfs.Source, error) {
	switch {
	case s == nil:
		return nfs.Source{}, nil
	case s.GetSnapshot() != nil:
		if err := required("volume_content_source.snapshot.snapshot_id", s.GetSnapshot().GetSnapshotId()); err != nil {
			return nfs.Source{}, err
		}
		h, err := nfs.ParseSnapshotHandle(s.GetSnapshot().GetSnapshotId())
		if err != nil {
			return nfs.Source{}, notFound(err)
		}
		return nfs.Source{Export: h.Export, Snapshot: h.ID}, nil
	case s.GetVolume() != nil:
		if err := required("volume_content_source.volume.volume_id", s.GetVolume().GetVolumeId()); err != nil {
			return nfs.Source{}, err
		}
		h, err := nfs.ParseHandle(s.GetVolume().GetVolumeId())
		if err != nil {
			return nfs.Source{}, notFound(err)
		}
		if h.Legacy() {
			return nfs.Source{}, invalidf("the source volume %q was made by csi-driver-nfs and has no record, without which it cannot be cloned", s.GetVolume().GetVolumeId())
		}
		return nfs.Source{Export: h.Export, Volume: h.ID}, nil
	}
	return nfs.Source{}, invalidf("volume_content_source names neither a snapshot nor a volume")
}

// relativeTo leaves out the export of the source where it is that of the volume.
func relativeTo(export nfs.Export, source nfs.Source) nfs.Source {
	if source.Export.SameShare(export) {
		source.Export = nfs.Export{}
	}
	return source
}

// contentSource is the source of a volume as CSI describes it, nil for none.
func contentSource(export nfs.Export, source nfs.Source) *csi.VolumeContentSource {
	if source.IsZero() {
		return nil
	}
	if source.Export.Server != "" {
		export = source.Export
	}
	if source.Snapshot != "" {
		return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{
			SnapshotId: nfs.SnapshotHandle{Export: export, ID: source.Snapshot}.String(),
		}}}
	}
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{
		VolumeId: nfs.Handle{Export: export, ID: source.Volume}.String(),
	}}}
}
