package driver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	mountutils "k8s.io/mount-utils"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// MatchFunc returns nil when an existing mount is what Mounter.Mount would make
// of the other arguments, and otherwise an error that says what differs.
type MatchFunc func(ctx context.Context, info mountutils.MountInfo, export nfs.Export, dir string, readOnly bool) error

// node is the CSI Node service. It keeps nothing: what is staged and published
// is what mountinfo shows.
type node struct {
	csi.UnimplementedNodeServer
	id     string
	mounts Mounter
	match  MatchFunc
}

// NodeGetCapabilities answers what the other methods really do.
func (n *node) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	resp := &csi.NodeGetCapabilitiesResponse{}
	for _, t := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		resp.Capabilities = append(resp.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: t}},
		})
	}
	return resp, nil
}

// NodeGetInfo returns the node's id. Any node can mount any volume, as many as
// it likes, so there is no topology and no limit.
func (n *node) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: n.id}, nil
}

// NodeStageVolume mounts the volume at the staging path.
func (n *node) NodeStageVolume(ctx context.Context, req *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if err := required("volume_id", req.GetVolumeId(), "staging_target_path", req.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	staging, err := checkPath("staging_target_path", req.GetStagingTargetPath())
	if err != nil {
		return nil, err
	}
	if err := checkCapability(req.GetVolumeCapability()); err != nil {
		return nil, err
	}
	volume, err := locateVolume(req.GetVolumeId(), req.GetVolumeContext(), req.GetVolumeCapability().GetMount().GetMountFlags())
	if err != nil {
		return nil, err
	}
	readOnly := readOnlyMode(req.GetVolumeCapability().GetAccessMode().GetMode())

	existing, mounted, err := n.mountAt(staging)
	if err != nil {
		return nil, err
	}
	if !mounted {
		if err := makeMountPoint(staging); err != nil {
			return nil, err
		}
		return &csi.NodeStageVolumeResponse{}, n.mount(ctx, volume, staging, readOnly)
	}
	if err := n.match(ctx, existing, volume.export, volume.dir, readOnly); err != nil {
		return nil, fmt.Errorf("stage volume %q: %s is not what is mounted at %s, but %s: %w",
			req.GetVolumeId(), volume, staging, describe(existing), err)
	}
	_, err = n.mounts.Usage(ctx, staging)
	if errors.Is(err, nfs.ErrStale) {
		err = n.mountAnew(ctx, volume, staging, readOnly)
	}
	if err != nil {
		return nil, fmt.Errorf("stage volume %q: %s, mounted at %s, does not answer: %w", req.GetVolumeId(), volume, staging, err)
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

// NodeUnstageVolume takes the mount at the staging path away. It looks at
// mountinfo only, so a dead server does not hold it up.
func (n *node) NodeUnstageVolume(ctx context.Context, req *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if err := required("volume_id", req.GetVolumeId(), "staging_target_path", req.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	staging, err := checkPath("staging_target_path", req.GetStagingTargetPath())
	if err != nil {
		return nil, err
	}
	if err := n.unmount(ctx, staging); err != nil {
		return nil, fmt.Errorf("unstage volume %q: %w", req.GetVolumeId(), err)
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

// NodePublishVolume binds the staged volume to the target path, read-only where
// the request or the access mode says so.
func (n *node) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	p, err := parsePublish(req)
	if err != nil {
		return nil, err
	}
	mounts, err := n.mounts.List()
	if err != nil {
		return nil, err
	}
	staged, ok := topMount(mounts, p.staging)
	if !ok {
		return nil, fmt.Errorf("%w: publish volume %q: nothing is mounted at the staging path %s; NodeStageVolume comes first",
			errPrecondition, p.volumeID, p.staging)
	}
	if err := n.checkStaged(ctx, staged, p); err != nil {
		return nil, err
	}
	if existing, ok := topMount(mounts, p.target); ok {
		if existing.Source == staged.Source && existing.FsType == staged.FsType && isReadOnly(existing) == (p.readOnly || isReadOnly(staged)) {
			return &csi.NodePublishVolumeResponse{}, nil
		}
		return nil, fmt.Errorf("%w: publish volume %q: at the target path %s there is %s",
			nfs.ErrConflict, p.volumeID, p.target, describe(existing))
	}
	if singleTarget(p.mode) {
		if other, ok := otherTarget(mounts, staged, p.staging); ok {
			return nil, fmt.Errorf("%w: publish volume %q: it is published at %s, and the access mode %s allows one target path only",
				errPrecondition, p.volumeID, other.MountPoint, p.mode)
		}
	}
	if err := n.bind(ctx, p, staged); err != nil {
		return nil, fmt.Errorf("publish volume %q: %w", p.volumeID, err)
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// publish is what a NodePublishVolume asks for.
type publish struct {
	volumeID        string
	volume          volumeLocation
	mode            accessMode
	staging, target string
	readOnly        bool
}

func parsePublish(req *csi.NodePublishVolumeRequest) (publish, error) {
	p := publish{volumeID: req.GetVolumeId()}
	if err := required("volume_id", req.GetVolumeId(), "target_path", req.GetTargetPath()); err != nil {
		return p, err
	}
	if err := checkCapability(req.GetVolumeCapability()); err != nil {
		return p, err
	}
	if req.GetStagingTargetPath() == "" {
		return p, fmt.Errorf("%w: publish volume %q: staging_target_path is missing; NodeStageVolume comes first", errPrecondition, p.volumeID)
	}
	var err error
	if p.staging, err = checkPath("staging_target_path", req.GetStagingTargetPath()); err != nil {
		return p, err
	}
	if p.target, err = checkPath("target_path", req.GetTargetPath()); err != nil {
		return p, err
	}
	if p.target == p.staging {
		return p, invalidf("target_path and staging_target_path are both %q", p.target)
	}
	p.volume, err = locateVolume(p.volumeID, req.GetVolumeContext(), req.GetVolumeCapability().GetMount().GetMountFlags())
	if err != nil {
		return p, err
	}
	p.mode = req.GetVolumeCapability().GetAccessMode().GetMode()
	p.readOnly = req.GetReadonly() || readOnlyMode(p.mode)
	return p, nil
}

// checkStaged refuses to publish anything but the volume. What was staged
// read-write may be published by a read-only access mode, since the bind is
// read-only then; the other way round the pod could not write.
func (n *node) checkStaged(ctx context.Context, staged mountutils.MountInfo, p publish) error {
	err := n.match(ctx, staged, p.volume.export, p.volume.dir, readOnlyMode(p.mode))
	if err != nil && readOnlyMode(p.mode) {
		err = n.match(ctx, staged, p.volume.export, p.volume.dir, false)
	}
	if err != nil {
		// Of what failed here only the text counts: the code is that of a
		// precondition, as the specification's table says.
		return fmt.Errorf("%w: publish volume %q: the staging path %s holds %s, not %s as asked: %s",
			errPrecondition, p.volumeID, p.staging, describe(staged), p.volume, err.Error())
	}
	return nil
}

// bind makes the staged volume visible at the target path.
func (n *node) bind(ctx context.Context, p publish, staged mountutils.MountInfo) error {
	if err := makeMountPoint(p.target); err != nil {
		return err
	}
	err := n.mounts.Bind(ctx, p.staging, p.target, p.readOnly)
	if errors.Is(err, nfs.ErrStale) {
		if err = n.mountAnew(ctx, p.volume, p.staging, isReadOnly(staged)); err == nil {
			err = n.mounts.Bind(ctx, p.staging, p.target, p.readOnly)
		}
	}
	if err != nil {
		// Nothing is mounted there in most cases; otherwise it stays for
		// NodeUnpublishVolume.
		_ = removeMountPoint(p.target)
		return fmt.Errorf("bind %s, mounted at %s, to %s: %w", p.volume, p.staging, p.target, err)
	}
	// Between the look at the staging path and the bind, somebody may have
	// unmounted it. Then the pod would write to the node's own disk.
	bound, ok, err := n.mountAt(p.target)
	if err == nil && ok && bound.Source == staged.Source && bound.FsType == staged.FsType {
		return nil
	}
	if undo := n.unmount(ctx, p.target); undo != nil {
		err = errors.Join(err, undo)
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: the mount at %s went away meanwhile", nfs.ErrUnavailable, p.staging)
}

// NodeUnpublishVolume takes the mount at the target path away. It looks at
// mountinfo only, so a dead server does not keep a pod from ending.
func (n *node) NodeUnpublishVolume(ctx context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := required("volume_id", req.GetVolumeId(), "target_path", req.GetTargetPath()); err != nil {
		return nil, err
	}
	target, err := checkPath("target_path", req.GetTargetPath())
	if err != nil {
		return nil, err
	}
	if err := n.unmount(ctx, target); err != nil {
		return nil, fmt.Errorf("unpublish volume %q: %w", req.GetVolumeId(), err)
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// NodeGetVolumeStats returns the space of the file system behind the volume.
func (n *node) NodeGetVolumeStats(ctx context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if err := required("volume_id", req.GetVolumeId(), "volume_path", req.GetVolumePath()); err != nil {
		return nil, err
	}
	path := filepath.Clean(req.GetVolumePath())
	if _, mounted, err := n.mountAt(path); err != nil {
		return nil, err
	} else if !mounted {
		return nil, fmt.Errorf("%w: volume %q: nothing is mounted at %s", nfs.ErrNotFound, req.GetVolumeId(), path)
	}
	usage, err := n.mounts.Usage(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("usage of volume %q at %s: %w", req.GetVolumeId(), path, err)
	}
	resp := &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{{
		Unit:      csi.VolumeUsage_BYTES,
		Total:     usage.TotalBytes,
		Available: usage.AvailableBytes,
		Used:      usage.UsedBytes,
	}}}
	// Servers on file systems without a fixed number of inodes report none.
	if usage.TotalInodes > 0 {
		resp.Usage = append(resp.Usage, &csi.VolumeUsage{
			Unit:      csi.VolumeUsage_INODES,
			Total:     usage.TotalInodes,
			Available: usage.AvailableInodes,
			Used:      usage.UsedInodes,
		})
	}
	return resp, nil
}
