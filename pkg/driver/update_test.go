package driver

import (
	"context"
	"fmt"
	"io/fs"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// updates serves a store that knows pvc-1 only, and notes what is asked of it.
func updates(t *testing.T, changes *[]nfs.VolumeChange) *client {
	t.Helper()
	return serve(t, Config{Stores: oneStore(&fakeStore{update: func(_ context.Context, id string, c nfs.VolumeChange) (nfs.Volume, error) {
		if id != "pvc-1" {
			return nfs.Volume{}, fmt.Errorf("%w: no record %q", nfs.ErrNotFound, id)
		}
		*changes = append(*changes, c)
		return c.Apply(nfs.Volume{ID: id, CapacityBytes: 5})
	}})})
}

func TestExpandVolume(t *testing.T) {
	var asked []nfs.VolumeChange
	c := updates(t, &asked)
	size := func(low, high int64) *csi.CapacityRange {
		return &csi.CapacityRange{RequiredBytes: low, LimitBytes: high}
	}
	for _, tt := range []struct {
		name string
		req  *csi.ControllerExpandVolumeRequest
		want int64 // or
		code codes.Code
		part string
	}{
		{name: "larger", req: &csi.ControllerExpandVolumeRequest{VolumeId: testHandle, CapacityRange: size(9, 0)}, want: 9},
		{name: "never smaller", req: &csi.ControllerExpandVolumeRequest{VolumeId: testHandle, CapacityRange: size(3, 7)}, want: 5},
		{name: "limit alone", req: &csi.ControllerExpandVolumeRequest{VolumeId: testHandle, CapacityRange: size(0, 7)}, want: 5},
		{name: "with a capability", req: &csi.ControllerExpandVolumeRequest{VolumeId: testHandle, CapacityRange: size(9, 0), VolumeCapability: mountCapability(multiWriter)}, want: 9},
		{name: "above the limit", req: &csi.ControllerExpandVolumeRequest{VolumeId: testHandle, CapacityRange: size(3, 4)}, code: codes.OutOfRange, part: "cannot shrink"},
		{name: "limit below size", req: &csi.ControllerExpandVolumeRequest{VolumeId: testHandle, CapacityRange: size(9, 8)}, code: codes.OutOfRange, part: "limit of 8"},
		{name: "no id", req: &csi.ControllerExpandVolumeRequest{CapacityRange: size(9, 0)}, code: codes.InvalidArgument, part: "volume_id"},
		{name: "no range", req: &csi.ControllerExpandVolumeRequest{VolumeId: testHandle}, code: codes.InvalidArgument, part: "capacity_range"},
		{name: "negative", req: &csi.ControllerExpandVolumeRequest{VolumeId: testHandle, CapacityRange: size(-1, 0)}, code: codes.InvalidArgument, part: "negative"},
		{name: "block", req: &csi.ControllerExpandVolumeRequest{VolumeId: testHandle, CapacityRange: size(9, 0), VolumeCapability: &csi.VolumeCapability{AccessType: &csi.VolumeCapability_Block{}}}, code: codes.InvalidArgument, part: "block"},
		{name: "unknown", req: &csi.ControllerExpandVolumeRequest{VolumeId: "v1:10.0.0.1:/data::pvc-2", CapacityRange: size(9, 0)}, code: codes.NotFound, part: "pvc-2"},
		{name: "no handle of ours", req: &csi.ControllerExpandVolumeRequest{VolumeId: "garbage", CapacityRange: size(9, 0)}, code: codes.NotFound, part: "garbage"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp, err := c.ControllerExpandVolume(t.Context(), tt.req)
			if tt.code != codes.OK {
				wantStatus(t, err, tt.code, tt.part)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&csi.ControllerExpandVolumeResponse{CapacityBytes: tt.want}, resp, protocmp.Transform()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestModifyVolume(t *testing.T) {
	for _, tt := range []struct {
		name   string
		params map[string]string
		want   nfs.VolumeChange // or
		part   string
	}{
		{name: "nothing"},
		{name: "everything", params: map[string]string{"onDelete": "archive", "archiveRetention": "1d", "mountPermissions": "2770", "uid": "0", "gid": "1000"},
			want: nfs.VolumeChange{OnDelete: new(nfs.Archive), ArchiveRetention: new(24 * time.Hour), Mode: new(nfs.FileMode(0o2770)), UID: new(uint32(0)), GID: new(uint32(1000))}},
		{name: "one, in other case, with the sidecar's own", params: map[string]string{"ONDELETE": "Retain", "csi.storage.k8s.io/pvc/name": "x"},
			want: nfs.VolumeChange{OnDelete: new(nfs.Retain)}},
		{name: "the default mode", params: map[string]string{"mountPermissions": "0"}, want: nfs.VolumeChange{Mode: new(fs.FileMode(0o755))}},
		{name: "what cannot change", params: map[string]string{"onDelete": "retain", "subDir": "x"}, part: `"subdir" cannot change`},
		{name: "what nobody knows", params: map[string]string{"iops": "5"}, part: `"iops" cannot change`},
		{name: "empty", params: map[string]string{"uid": ""}, part: `"uid" is empty`},
		{name: "twice", params: map[string]string{"uid": "1", "UID": "2"}, part: "more than once"},
		{name: "wrong onDelete", params: map[string]string{"onDelete": "burn"}, part: "burn"},
		{name: "wrong retention", params: map[string]string{"archiveRetention": "soon"}, part: "soon"},
		{name: "wrong mode", params: map[string]string{"mountPermissions": "99"}, part: "99"},
		{name: "wrong id", params: map[string]string{"gid": "wheel"}, part: "wheel"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var asked []nfs.VolumeChange
			c := updates(t, &asked)
			_, err := c.ControllerModifyVolume(t.Context(), &csi.ControllerModifyVolumeRequest{VolumeId: testHandle, MutableParameters: tt.params})
			if tt.part != "" {
				wantStatus(t, err, codes.InvalidArgument, tt.part)
				if len(asked) > 0 {
					t.Errorf("the store was asked for %+v", asked)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]nfs.VolumeChange{tt.want}, asked); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
	var asked []nfs.VolumeChange
	c := updates(t, &asked)
	_, err := c.ControllerModifyVolume(t.Context(), &csi.ControllerModifyVolumeRequest{})
	wantStatus(t, err, codes.InvalidArgument, "volume_id")
	for id, part := range map[string]string{"garbage": "garbage", "v1:10.0.0.1:/data::pvc-2": "pvc-2"} {
		_, err := c.ControllerModifyVolume(t.Context(), &csi.ControllerModifyVolumeRequest{VolumeId: id})
		wantStatus(t, err, codes.NotFound, part)
	}
}

// A VolumeAttributesClass comes before the StorageClass.
func TestCreateVolumeWithAttributesClass(t *testing.T) {
	var asked nfs.VolumeSpec
	store := echoStore()
	echo := store.create
	store.create = func(ctx context.Context, s nfs.VolumeSpec) (nfs.Volume, error) { asked = s; return echo(ctx, s) }
	c := serve(t, Config{Stores: oneStore(store)})
	_, err := c.CreateVolume(t.Context(), createRequest(func(r *csi.CreateVolumeRequest) {
		r.Parameters["onDelete"], r.Parameters["uid"], r.Parameters["gid"] = "delete", "1", "2"
		r.MutableParameters = map[string]string{"onDelete": "retain", "uid": "3", "mountPermissions": "0700"}
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := nfs.VolumeSpec{Name: "pvc-1", Dir: "pvc-1", MinBytes: 1 << 30, OnDelete: nfs.Retain, Mode: 0o700, UID: new(uint32(3)), GID: new(uint32(2))}
	if diff := cmp.Diff(want, asked); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, tt := range []struct {
		params map[string]string
		want   time.Duration
		code   codes.Code
	}{
		{map[string]string{"uid": "3"}, 24 * time.Hour, codes.OK},
		{map[string]string{"archiveRetention": "1h"}, time.Hour, codes.OK},
		{map[string]string{"onDelete": "retain"}, 0, codes.OK},
		{map[string]string{"onDelete": "retain", "archiveRetention": "1h"}, 0, codes.InvalidArgument},
	} {
		_, err := c.CreateVolume(t.Context(), createRequest(func(r *csi.CreateVolumeRequest) {
			r.Parameters["onDelete"], r.Parameters["archiveRetention"] = "archive", "1d"
			r.MutableParameters = tt.params
		}))
		if status.Code(err) != tt.code || err == nil && asked.ArchiveRetention != tt.want {
			t.Errorf("%v: %v, and the retention is %v, want %v", tt.params, err, asked.ArchiveRetention, tt.want)
		}
	}
}

func TestValidateMutableParameters(t *testing.T) {
	c := serve(t, Config{Stores: oneStore(&fakeStore{get: func(_ context.Context, id string) (nfs.Volume, error) {
		return nfs.Volume{ID: id, Name: id, Dir: id}, nil
	}})})
	caps := []*csi.VolumeCapability{mountCapability(multiWriter)}
	for key, confirmed := range map[string]bool{"gid": true, "server": false} {
		params := map[string]string{key: "1"}
		resp, err := c.ValidateVolumeCapabilities(t.Context(), &csi.ValidateVolumeCapabilitiesRequest{VolumeId: testHandle, VolumeCapabilities: caps, MutableParameters: params})
		if err != nil {
			t.Fatal(err)
		}
		var want *csi.ValidateVolumeCapabilitiesResponse_Confirmed
		if confirmed {
			want = &csi.ValidateVolumeCapabilitiesResponse_Confirmed{VolumeCapabilities: caps, MutableParameters: params}
		}
		if diff := cmp.Diff(want, resp.GetConfirmed(), protocmp.Transform()); diff != "" {
			t.Errorf("%s: confirmed (-want +got), message %q:\n%s", key, resp.GetMessage(), diff)
		}
	}
}
