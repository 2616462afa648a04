package driver

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func fromSource(s *csi.VolumeContentSource) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) { r.VolumeContentSource = s }
}

func volumeSource(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id}}}
}

func snapshotSource(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id}}}
}

func TestCreateFromSource(t *testing.T) {
	other := nfs.Export{Server: "10.0.0.2", Share: "/data"}
	for _, tt := range []struct {
		name   string
		source *csi.VolumeContentSource
		mode   string
		want   nfs.VolumeSpec // as far as the source goes
	}{
		{"volume", volumeSource("v1:10.0.0.1:/data::v"), "", nfs.VolumeSpec{Source: nfs.Source{Volume: "v"}}},
		{"snapshot", snapshotSource("s1:10.0.0.1:/data::s"), "", nfs.VolumeSpec{Source: nfs.Source{Snapshot: "s"}}},
		{"mounted otherwise", snapshotSource("s1:10.0.0.1:/data:soft:s"), "0", nfs.VolumeSpec{Source: nfs.Source{Snapshot: "s"}}},
		{"with a mode", volumeSource("v1:10.0.0.1:/data::v"), "0700", nfs.VolumeSpec{Source: nfs.Source{Volume: "v"}, Mode: 0o700}},
		{"with a mode of its attributes", volumeSource("v1:10.0.0.1:/data::v"), "attributes 0701", nfs.VolumeSpec{Source: nfs.Source{Volume: "v"}, Mode: 0o701}},
		{"elsewhere", volumeSource("v1:10.0.0.2:/data::v"), "", nfs.VolumeSpec{Source: nfs.Source{Export: other, Volume: "v"}}},
		{"none", nil, "", nfs.VolumeSpec{Mode: 0o755}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got nfs.VolumeSpec
			c := serve(t, Config{Stores: oneStore(&fakeStore{create: func(_ context.Context, s nfs.VolumeSpec) (nfs.Volume, error) {
				got = s
				return nfs.Volume{ID: "pvc-1", Name: s.Name, Dir: s.Dir, Source: s.Source}, nil
			}})})
			resp, err := c.CreateVolume(t.Context(), createRequest(fromSource(tt.source), func(r *csi.CreateVolumeRequest) {
				if mode, ok := strings.CutPrefix(tt.mode, "attributes "); ok {
					r.MutableParameters = map[string]string{"mountPermissions": mode}
				} else {
					r.Parameters["mountPermissions"] = tt.mode
				}
			}))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, nfs.VolumeSpec{Source: got.Source, Mode: got.Mode}); diff != "" {
				t.Errorf("spec (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.source, resp.GetVolume().GetContentSource(), protocmp.Transform()); diff != "" {
				t.Errorf("content source (-want +got):\n%s", diff)
			}
			again := contentSource(nfs.Export{Server: "10.0.0.1", Share: "/data"}, got.Source)
			if want := resp.GetVolume().GetContentSource(); tt.name != "mounted otherwise" && !proto.Equal(again, want) {
				t.Errorf("in a listing the source is %v, want %v", again, want)
			}
		})
	}
}

func TestCreateSnapshot(t *testing.T) {
	var name, volume string
	result := nfs.Snapshot{ID: "snap-1", Name: "snap-1", Volume: "pvc-1", Created: time.Unix(5, 6), SizeBytes: 7, Ready: true}
	var failure error
	c := serve(t, Config{Stores: oneStore(&fakeStore{createSnapshot: func(_ context.Context, n, v string) (nfs.Snapshot, error) {
		name, volume = n, v
		return result, failure
	}})})
	request := func(edit func(*csi.CreateSnapshotRequest)) *csi.CreateSnapshotRequest {
		r := &csi.CreateSnapshotRequest{Name: "snap-1", SourceVolumeId: testHandle, Parameters: map[string]string{"csi.storage.k8s.io/volumesnapshot/name": "x"}}
		edit(r)
		return r
	}
	resp, err := c.CreateSnapshot(t.Context(), request(func(*csi.CreateSnapshotRequest) {}))
	if err != nil {
		t.Fatal(err)
	}
	want := &csi.Snapshot{SnapshotId: testSnapshotHandle, SourceVolumeId: testHandle, CreationTime: timestamppb.New(result.Created), SizeBytes: 7, ReadyToUse: true}
	if diff := cmp.Diff(want, resp.GetSnapshot(), protocmp.Transform()); diff != "" || name != "snap-1" || volume != "pvc-1" {
		t.Errorf("asked for %q of %q (-want +got):\n%s", name, volume, diff)
	}
	for _, tt := range []struct {
		what string
		edit func(*csi.CreateSnapshotRequest)
		err  error
		code codes.Code
		part string
	}{
		{"no name", func(r *csi.CreateSnapshotRequest) { r.Name = "" }, nil, codes.InvalidArgument, "name is missing"},
		{"control character", func(r *csi.CreateSnapshotRequest) { r.Name = "a\x01" }, nil, codes.InvalidArgument, "control character"},
		{"no volume", func(r *csi.CreateSnapshotRequest) { r.SourceVolumeId = "" }, nil, codes.InvalidArgument, "source_volume_id is missing"},
		{"no such volume", func(r *csi.CreateSnapshotRequest) { r.SourceVolumeId = "x" }, nil, codes.NotFound, `"x"`},
		{"other driver's", func(r *csi.CreateSnapshotRequest) { r.SourceVolumeId = "a#b#c" }, nil, codes.InvalidArgument, "csi-driver-nfs"},
		{"parameter", func(r *csi.CreateSnapshotRequest) { r.Parameters["compress"] = "true" }, nil, codes.InvalidArgument, `unknown parameter "compress"`},
		{"full", func(*csi.CreateSnapshotRequest) {}, nfs.ErrFull, codes.ResourceExhausted, "10.0.0.1:/data"},
		{"of another volume", func(*csi.CreateSnapshotRequest) {}, nfs.ErrConflict, codes.AlreadyExists, ""},
		{"being deleted", func(*csi.CreateSnapshotRequest) {}, nfs.ErrBusy, codes.Aborted, ""},
	} {
		t.Run(tt.what, func(t *testing.T) {
			failure = tt.err
			_, err := c.CreateSnapshot(t.Context(), request(tt.edit))
			wantStatus(t, err, tt.code, tt.part)
		})
	}
}

func TestDeleteSnapshot(t *testing.T) {
	var deleted []string
	c := serve(t, Config{Stores: oneStore(&fakeStore{deleteSnapshot: func(_ context.Context, id string) error {
		deleted = append(deleted, id)
		if id == "busy" {
			return nfs.ErrBusy
		}
		return nil
	}})})
	for id, code := range map[string]codes.Code{
		testSnapshotHandle:           codes.OK,
		"s1:10.0.0.1:/data::busy":    codes.Aborted,
		"never-ours":                 codes.OK,
		"":                           codes.InvalidArgument,
		"s2:10.0.0.1:/data::snap-1":  codes.InvalidArgument,
		"s1:10.0.0.1:/data/::snap-1": codes.InvalidArgument,
	} {
		_, err := c.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: id})
		wantStatus(t, err, code)
	}
	slices.Sort(deleted)
	if !slices.Equal(deleted, []string{"busy", "snap-1"}) {
		t.Errorf("deleted: %v", deleted)
	}
}

// Two exports with snapshots of two volumes each, which have the same ids on both.
func TestListSnapshots(t *testing.T) {
	exports := []nfs.Export{{Server: "a", Share: "/x"}, {Server: "b", Share: "/x"}, {Server: "c", Share: "/x"}}
	var all, ofV1 []string
	stored := map[string][]nfs.Snapshot{}
	for _, e := range exports[:2] {
		for n := range 5 {
			v := nfs.Snapshot{ID: fmt.Sprintf("s%d", n), Volume: fmt.Sprintf("v%d", n%2), Created: time.Unix(int64(n), 0)}
			stored[e.Server] = append(stored[e.Server], v)
			handle := nfs.SnapshotHandle{Export: e, ID: v.ID}.String()
			all = append(all, handle)
			if e.Server == "a" && v.Volume == "v1" {
				ofV1 = append(ofV1, handle)
			}
		}
	}
	c := serve(t, Config{Stores: &fakeStores{exports: func() []nfs.Export { return exports }, open: func(_ context.Context, e nfs.Export) (Store, error) {
		return &fakeStore{
			listSnapshots: func(_ context.Context, volumeID, after string, limit int) (out []nfs.Snapshot, err error) {
				for _, v := range stored[e.Server] {
					if v.ID > after && (volumeID == "" || v.Volume == volumeID) && (limit == 0 || len(out) < limit) {
						out = append(out, v)
					}
				}
				return out, nil
			},
			getSnapshot: func(_ context.Context, id string) (nfs.Snapshot, error) {
				for _, v := range stored[e.Server] {
					if v.ID == id {
						return v, nil
					}
				}
				return nfs.Snapshot{}, nfs.ErrNotFound
			},
		}, nil
	}}})
	for _, tt := range []struct {
		what string
		req  *csi.ListSnapshotsRequest
		want []string
	}{
		{"all", &csi.ListSnapshotsRequest{}, all},
		{"one a page", &csi.ListSnapshotsRequest{MaxEntries: 1}, all},
		{"four a page", &csi.ListSnapshotsRequest{MaxEntries: 4}, all},
		{"five a page", &csi.ListSnapshotsRequest{MaxEntries: 5}, all},
		{"of a volume", &csi.ListSnapshotsRequest{SourceVolumeId: "v1:a:/x::v1", MaxEntries: 1}, ofV1},
		{"of no volume", &csi.ListSnapshotsRequest{SourceVolumeId: "v1:a:/x::none"}, nil},
		{"of nobody's volume", &csi.ListSnapshotsRequest{SourceVolumeId: "x"}, nil},
		{"one", &csi.ListSnapshotsRequest{SnapshotId: all[6]}, all[6:7]},
		{"one of that volume", &csi.ListSnapshotsRequest{SnapshotId: all[6], SourceVolumeId: "v1:b:/x::v1"}, all[6:7]},
		{"one of another volume", &csi.ListSnapshotsRequest{SnapshotId: all[6], SourceVolumeId: "v1:a:/x::v1"}, nil},
		{"one that is not", &csi.ListSnapshotsRequest{SnapshotId: "s1:a:/x::none"}, nil},
		{"nobody's", &csi.ListSnapshotsRequest{SnapshotId: "x"}, nil},
	} {
		t.Run(tt.what, func(t *testing.T) {
			var got []string
			for {
				resp, err := c.ListSnapshots(t.Context(), tt.req)
				if err != nil {
					t.Fatal(err)
				}
				if n := int(tt.req.GetMaxEntries()); n > 0 && len(resp.GetEntries()) > n {
					t.Errorf("%d on a page, want %d", len(resp.GetEntries()), n)
				}
				for _, e := range resp.GetEntries() {
					got = append(got, e.GetSnapshot().GetSnapshotId())
				}
				if tt.req.StartingToken = resp.GetNextToken(); tt.req.GetStartingToken() == "" {
					break
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	_, err := c.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{StartingToken: "x"})
	wantStatus(t, err, codes.Aborted, `"x"`)
	_, err = c.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{MaxEntries: -1})
	wantStatus(t, err, codes.InvalidArgument, "max_entries")

	got, err := c.GetSnapshot(t.Context(), &csi.GetSnapshotRequest{SnapshotId: all[6]})
	if err != nil || got.GetSnapshot().GetSnapshotId() != all[6] || got.GetSnapshot().GetSourceVolumeId() != "v1:b:/x::v1" {
		t.Errorf("get: %v, %v", got, err)
	}
	for id, code := range map[string]codes.Code{"": codes.InvalidArgument, "x": codes.NotFound, "s1:a:/x::none": codes.NotFound} {
		_, err := c.GetSnapshot(t.Context(), &csi.GetSnapshotRequest{SnapshotId: id})
		wantStatus(t, err, code)
	}
}
