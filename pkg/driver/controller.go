package driver

import (
	"context"
	"fmt"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// controller is the CSI Controller service. It keeps nothing: what it knows is
// in the handle of a volume and in the record on the export.
type controller struct {
	csi.UnimplementedControllerServer
	stores Stores
}

// ControllerGetCapabilities answers what the other methods really do.
func (c *controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	resp := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csi.ControllerServiceCapability_RPC_GET_VOLUME,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		csi.ControllerServiceCapability_RPC_GET_CAPACITY,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_MODIFY_VOLUME,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
		csi.ControllerServiceCapability_RPC_GET_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
	} {
		resp.Capabilities = append(resp.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}},
		})
	}
	return resp, nil
}

// CreateVolume makes a directory on the export that the parameters name, empty or
// with a copy of the content source. To make a copy may take longer than the call:
// that fails with ABORTED then, and the next goes on with the copy.
func (c *controller) CreateVolume(ctx context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	export, spec, err := createSpec(req)
	if err != nil {
		return nil, err
	}
	store, err := c.stores.Open(ctx, export)
	if err != nil {
		return nil, fmt.Errorf("create volume %q on %s: %w", spec.Name, export, err)
	}
	volume, err := store.CreateVolume(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("create volume %q on %s: %w", spec.Name, export, err)
	}
	v := csiVolume(export, volume)
	v.ContentSource = req.GetVolumeContentSource()
	return &csi.CreateVolumeResponse{Volume: v}, nil
}

// createSpec checks the request and returns where and what the volume is to be.
func createSpec(req *csi.CreateVolumeRequest) (nfs.Export, nfs.VolumeSpec, error) {
	fail := func(err error) (nfs.Export, nfs.VolumeSpec, error) { return nfs.Export{}, nfs.VolumeSpec{}, err }
	if err := checkName(req.GetName()); err != nil {
		return fail(err)
	}
	flags, err := checkCapabilities(req.GetVolumeCapabilities())
	if err != nil {
		return fail(err)
	}
	source, err := parseContentSource(req.GetVolumeContentSource())
	if err != nil {
		return fail(err)
	}
	change, err := parseMutableParameters(req.GetMutableParameters())
	if err != nil {
		return fail(err)
	}
	params, err := parseParameters(req.GetParameters())
	if err != nil {
		return fail(err)
	}
	export, err := params.export(writable(flags))
	if err != nil {
		return fail(err)
	}
	params = params.change(change)
	spec, err := params.spec(req.GetName())
	if err != nil {
		return fail(err)
	}
	spec.MinBytes, spec.MaxBytes, err = capacityBounds(req.GetCapacityRange())
	if err != nil {
		return fail(err)
	}
	if spec.Source = relativeTo(export, source); !source.IsZero() && !params.modeGiven {
		spec.Mode = 0 // that of the source
	}
	return export, spec, nil
}

// DeleteVolume disposes of a volume as its record says; the handle is enough.
func (c *controller) DeleteVolume(ctx context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if err := required("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	handle, err := nfs.ParseHandle(req.GetVolumeId())
	if err != nil {
		if looksOurs(req.GetVolumeId()) {
			// Saying "deleted" would lose track of a volume that may exist.
			return nil, fmt.Errorf("delete volume: %w", err)
		}
		klog.FromContext(ctx).Info("Nothing to delete: this driver never made a volume with such a handle", "warning", true, "reason", err.Error())
		return &csi.DeleteVolumeResponse{}, nil
	}
	store, err := c.stores.Open(ctx, handle.Export)
	if err != nil {
		return nil, fmt.Errorf("delete volume %q on %s: %w", handle.ID, handle.Export, err)
	}
	if err := store.DeleteVolume(ctx, handle.ID, handle.Dir); err != nil {
		return nil, fmt.Errorf("delete volume %q on %s: %w", handle.ID, handle.Export, err)
	}
	return &csi.DeleteVolumeResponse{}, nil
}

// looksOurs reports whether a handle that cannot be read may still be that of a
// volume: one that hasVersion, or one of csi-driver-nfs, whose parts are separated
// by "#".
func looksOurs(handle string) bool {
	return hasVersion(handle, "v") || strings.Contains(handle, "#")
}

// hasVersion reports whether a handle begins as one of that kind does: it may be
// damaged, or of a newer version before a downgrade ("v2:").
func hasVersion(handle, kind string) bool {
	version, _, versioned := strings.Cut(handle, ":")
	number, isVersion := strings.CutPrefix(version, kind)
	return versioned && isVersion && number != "" && strings.Trim(number, "0123456789") == ""
}

// ControllerGetVolume returns what the record says of the volume.
func (c *controller) ControllerGetVolume(ctx context.Context, req *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	if err := required("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	volume, err := c.get(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &csi.ControllerGetVolumeResponse{
		Volume: volume,
		Status: &csi.ControllerGetVolumeResponse_VolumeStatus{},
	}, nil
}

// ValidateVolumeCapabilities confirms the capabilities, and the context where
// one is given, of an existing volume.
func (c *controller) ValidateVolumeCapabilities(ctx context.Context, req *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if err := required("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	if len(req.GetVolumeCapabilities()) == 0 {
		return nil, invalidf("volume_capabilities are missing in the request")
	}
	volume, err := c.get(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if err := validate(req, volume); err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: err.Error()}, nil
	}
	// Parameters are not confirmed: they were for the making of the volume.
	return &csi.ValidateVolumeCapabilitiesResponse{
		Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
			VolumeContext:      req.GetVolumeContext(),
			VolumeCapabilities: req.GetVolumeCapabilities(),
			MutableParameters:  req.GetMutableParameters(),
		},
	}, nil
}

func validate(req *csi.ValidateVolumeCapabilitiesRequest, volume *csi.Volume) error {
	if _, err := checkCapabilities(req.GetVolumeCapabilities()); err != nil {
		return err
	}
	if _, err := parseMutableParameters(req.GetMutableParameters()); err != nil {
		return err
	}
	if len(req.GetVolumeContext()) == 0 {
		return nil
	}
	want, err := locateVolume(volume.GetVolumeId(), volume.GetVolumeContext(), nil)
	if err != nil {
		return err
	}
	got, err := locateVolume(volume.GetVolumeId(), req.GetVolumeContext(), nil)
	if err != nil {
		return err
	}
	if got.dir != want.dir || !got.export.Equal(want.export) {
		return invalidf("the volume context names %s, but the volume is %s", got, want)
	}
	return nil
}

// get returns the volume of a handle, or nfs.ErrNotFound for handles that no
// volume ever had.
func (c *controller) get(ctx context.Context, volumeID string) (*csi.Volume, error) {
	handle, volume, err := c.withVolume(ctx, volumeID, func(store Store, id string) (nfs.Volume, error) {
		return store.GetVolume(ctx, id)
	})
	if err != nil {
		return nil, err
	}
	v := csiVolume(handle.Export, volume)
	v.VolumeId = volumeID
	return v, nil
}

// withVolume calls f with the store and the record id of the volume. It fails with
// nfs.ErrNotFound for handles that no volume ever had.
func (c *controller) withVolume(ctx context.Context, volumeID string, f func(store Store, id string) (nfs.Volume, error)) (nfs.Handle, nfs.Volume, error) {
	handle, err := nfs.ParseHandle(volumeID)
	if err != nil {
		return nfs.Handle{}, nfs.Volume{}, fmt.Errorf("%w: %s", nfs.ErrNotFound, strings.TrimPrefix(err.Error(), nfs.ErrInvalid.Error()+": "))
	}
	store, err := c.stores.Open(ctx, handle.Export)
	if err != nil {
		return nfs.Handle{}, nfs.Volume{}, fmt.Errorf("volume %q on %s: %w", handle.ID, handle.Export, err)
	}
	volume, err := f(store, handle.ID)
	if err != nil {
		return nfs.Handle{}, nfs.Volume{}, fmt.Errorf("volume %q on %s: %w", handle.ID, handle.Export, err)
	}
	return handle, volume, nil
}

// csiVolume is the volume as CSI describes it.
func csiVolume(export nfs.Export, v nfs.Volume) *csi.Volume {
	return &csi.Volume{
		VolumeId:      nfs.Handle{Export: export, ID: v.ID}.String(),
		CapacityBytes: v.CapacityBytes,
		VolumeContext: volumeContext(export, v.Dir),
		ContentSource: contentSource(export, v.Source),
	}
}

// ListVolumes lists the volumes of every export that is known, export by
// export. A token is the handle of the last volume of the page before, so it
// stays good when that volume is deleted. An export that cannot be read fails
// the call: a list with a hole in it would look like deleted volumes.
func (c *controller) ListVolumes(ctx context.Context, req *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	limit := int(req.GetMaxEntries())
	if limit < 0 {
		return nil, invalidf("max_entries is negative")
	}
	var last nfs.Handle
	if token := req.GetStartingToken(); token != "" {
		h, err := nfs.ParseHandle(token)
		if err != nil || h.Legacy() {
			return nil, fmt.Errorf("%w: %q; start again without a token", nfs.ErrBadToken, token)
		}
		last = h
	}
	resp := &csi.ListVolumesResponse{}
	more, err := page(c.stores.Exports(), place{last.Export, last.ID}, limit,
		func(export nfs.Export, after string, limit int) ([]nfs.Volume, error) {
			return c.listVolumes(ctx, export, after, limit)
		},
		func(export nfs.Export, v nfs.Volume) {
			resp.Entries = append(resp.Entries, &csi.ListVolumesResponse_Entry{Volume: csiVolume(export, v)})
		})
	if err != nil {
		return nil, err
	}
	if more {
		resp.NextToken = resp.Entries[limit-1].GetVolume().GetVolumeId()
	}
	return resp, nil
}

func (c *controller) listVolumes(ctx context.Context, export nfs.Export, after string, limit int) ([]nfs.Volume, error) {
	store, err := c.stores.Open(ctx, export)
	if err != nil {
		return nil, fmt.Errorf("list volumes of %s: %w", export, err)
	}
	volumes, err := store.ListVolumes(ctx, after, limit)
	if err != nil {
		return nil, fmt.Errorf("list volumes of %s: %w", export, err)
	}
	return volumes, nil
}

// GetCapacity returns the free space of the export that the parameters name.
// Without server and share it is the free space of the known export that has
// most: a volume lives on one export, and exports may share a file system, so a
// sum would promise space that is not there.
func (c *controller) GetCapacity(ctx context.Context, req *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	exports, err := c.capacityExports(req)
	if err != nil {
		return nil, err
	}
	var available int64
	for _, export := range exports {
		usage, err := c.usage(ctx, export)
		if err != nil {
			return nil, fmt.Errorf("capacity of %s: %w", export, err)
		}
		available = max(available, usage.AvailableBytes)
	}
	return &csi.GetCapacityResponse{AvailableCapacity: available}, nil
}

// capacityExports returns the exports that a volume of the request could be on.
func (c *controller) capacityExports(req *csi.GetCapacityRequest) ([]nfs.Export, error) {
	var flags []string
	if len(req.GetVolumeCapabilities()) > 0 {
		var err error
		if flags, err = checkCapabilities(req.GetVolumeCapabilities()); err != nil {
			return nil, err
		}
	}
	params, err := parseParameters(req.GetParameters())
	if err != nil {
		return nil, err
	}
	known := c.stores.Exports()
	if params.server == "" && params.share == "" {
		return known, nil
	}
	export, err := params.export(writable(flags))
	if err != nil {
		return nil, err
	}
	if len(req.GetVolumeCapabilities()) == 0 {
		// external-provisioner asks without the mount options of the class; an
		// export that is in use with some has the same free space.
		for _, k := range known {
			if k.SameShare(export) {
				return []nfs.Export{k}, nil
			}
		}
	}
	return []nfs.Export{export}, nil
}

func (c *controller) usage(ctx context.Context, export nfs.Export) (nfs.Usage, error) {
	store, err := c.stores.Open(ctx, export)
	if err != nil {
		return nfs.Usage{}, err
	}
	return store.Usage(ctx)
}
