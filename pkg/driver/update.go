package driver

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// ControllerExpandVolume raises the capacity in the record. Nodes have nothing to
// do: what a volume can hold is decided on the server.
func (c *controller) ControllerExpandVolume(ctx context.Context, req *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	if err := required("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	low, high, err := capacityBounds(req.GetCapacityRange())
	if err != nil {
		return nil, err
	}
	if low == 0 && high == 0 {
		return nil, invalidf("capacity_range is missing in the request, or names no size")
	}
	if capability := req.GetVolumeCapability(); capability != nil {
		if err := checkCapability(capability); err != nil {
			return nil, err
		}
	}
	_, volume, err := c.withVolume(ctx, req.GetVolumeId(), func(store Store, id string) (nfs.Volume, error) {
		return store.UpdateVolume(ctx, id, nfs.VolumeChange{MinBytes: low, MaxBytes: high})
	})
	if err != nil {
		return nil, err
	}
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: volume.CapacityBytes}, nil
}

// ControllerModifyVolume changes what the parameters of a VolumeAttributesClass
// name, and nothing else.
func (c *controller) ControllerModifyVolume(ctx context.Context, req *csi.ControllerModifyVolumeRequest) (*csi.ControllerModifyVolumeResponse, error) {
	if err := required("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	change, err := parseMutableParameters(req.GetMutableParameters())
	if err != nil {
		return nil, err
	}
	_, _, err = c.withVolume(ctx, req.GetVolumeId(), func(store Store, id string) (nfs.Volume, error) {
		return store.UpdateVolume(ctx, id, change)
	})
	if err != nil {
		return nil, err
	}
	return &csi.ControllerModifyVolumeResponse{}, nil
}
