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
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func TestCreateVolume(t *testing.T) {
	var opened nfs.Export
	var asked nfs.VolumeSpec
	store := echoStore()
	echo := store.create
	store.create = func(ctx context.Context, s nfs.VolumeSpec) (nfs.Volume, error) { asked = s; return echo(ctx, s) }
	c := serve(t, Config{Stores: &fakeStores{open: func(_ context.Context, e nfs.Export) (Store, error) { opened = e; return store, nil }}})

	uid, gid := uint32(1000), uint32(4294967294)
	resp, err := c.CreateVolume(t.Context(), createRequest(func(r *csi.CreateVolumeRequest) {
		r.VolumeCapabilities = []*csi.VolumeCapability{
			mountCapability(multiWriter, "nfsvers=4.1", "ro"),
			mountCapability(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY, "nfsvers=4.1", "ro"),
		}
		r.CapacityRange.LimitBytes = 2 << 30
		r.Parameters = map[string]string{
			"SERVER": "nfs.example", "Share": "/srv/", "subdir": "${pvc.metadata.namespace}/${pvc.metadata.name}/${pv.metadata.name}",
			"onDelete": "archive", "archiveretention": "1d12h", "mountPermissions": "02770", "uid": "1000", "gid": "4294967294",
			"csi.storage.k8s.io/pvc/name": "claim", "csi.storage.k8s.io/pvc/namespace": "team", "csi.storage.k8s.io/pv/name": "pv-7",
			"csi.storage.k8s.io/fstype": "nfs",
		}
		r.AccessibilityRequirements = &csi.TopologyRequirement{}
	}))
	if err != nil {
		t.Fatal(err)
	}
	wantExport := nfs.Export{Server: "nfs.example", Share: "/srv", Options: []string{"nfsvers=4.1"}}
	if diff := cmp.Diff(wantExport, opened); diff != "" {
		t.Errorf("export (-want +got):\n%s", diff)
	}
	wantSpec := nfs.VolumeSpec{
		Name: "pvc-1", Dir: "team/claim/pv-7", MinBytes: 1 << 30, MaxBytes: 2 << 30, OnDelete: nfs.Archive, ArchiveRetention: 36 * time.Hour,
		Mode: nfs.FileMode(0o2770), UID: &uid, GID: &gid, Claim: nfs.Claim{Namespace: "team", Name: "claim"},
	}
	if diff := cmp.Diff(wantSpec, asked); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
	want := &csi.CreateVolumeResponse{Volume: &csi.Volume{
		VolumeId:      "v1:nfs.example:/srv:nfsvers=4.1:pvc-1",
		CapacityBytes: 1 << 30,
		VolumeContext: map[string]string{"server": "nfs.example", "share": "/srv", "subDir": "team/claim/pv-7"},
	}}
	if diff := cmp.Diff(want, resp, protocmp.Transform()); diff != "" {
		t.Errorf("response (-want +got):\n%s", diff)
	}
}

// TestCreateVolumeNames: every name that the specification allows gives a
// directory, also those that no directory can have.
func TestCreateVolumeNames(t *testing.T) {
	c := serve(t, Config{Stores: oneStore(echoStore())})
	for _, tt := range []struct{ name, dir string }{
		{"pvc-1", "pvc-1"},
		{strings.Repeat("x", 128), strings.Repeat("x", 128)},
		{"größe 50% #1", "größe 50% #1"},
		{"a/b", nfs.RecordID("a/b")},
		{"..", nfs.RecordID("..")},
		{".nfs-csi", nfs.RecordID(".nfs-csi")},
		{"tab\tand\nline", nfs.RecordID("tab\tand\nline")},
	} {
		resp, err := c.CreateVolume(t.Context(), createRequest(func(r *csi.CreateVolumeRequest) { r.Name = tt.name }))
		if err != nil {
			t.Errorf("name %q: %v", tt.name, err)
			continue
		}
		if dir := resp.GetVolume().GetVolumeContext()["subDir"]; dir != tt.dir {
			t.Errorf("name %q has the directory %q, want %q", tt.name, dir, tt.dir)
		}
	}
}

func TestCreateVolumeRefuses(t *testing.T) {
	param := func(k, v string) func(*csi.CreateVolumeRequest) {
		return func(r *csi.CreateVolumeRequest) { r.Parameters[k] = v }
	}
	caps := func(c ...*csi.VolumeCapability) func(*csi.CreateVolumeRequest) {
		return func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = c }
	}
	size := func(low, high int64) func(*csi.CreateVolumeRequest) {
		return func(r *csi.CreateVolumeRequest) {
			r.CapacityRange = &csi.CapacityRange{RequiredBytes: low, LimitBytes: high}
		}
	}
	invalid := codes.InvalidArgument
	tests := []struct {
		name string
		edit func(*csi.CreateVolumeRequest)
		code codes.Code
		part string
	}{
		{"no name", func(r *csi.CreateVolumeRequest) { r.Name = "" }, invalid, "name is missing"},
		{"long name", func(r *csi.CreateVolumeRequest) { r.Name = strings.Repeat("x", 129) }, invalid, "129 bytes"},
		{"control character in name", func(r *csi.CreateVolumeRequest) { r.Name = "a\x01" }, invalid, "control character"},
		{"no capabilities", caps(), invalid, "volume_capabilities are missing"},
		{"empty capability", caps(&csi.VolumeCapability{}), invalid, "no access type"},
		{"no access mode", caps(mountCapability(0)), invalid, "access mode"},
		{"unknown access mode", caps(mountCapability(99)), invalid, "access mode"},
		{"block", caps(&csi.VolumeCapability{AccessType: &csi.VolumeCapability_Block{}, AccessMode: &csi.VolumeCapability_AccessMode{Mode: multiWriter}}), invalid, "block volumes"},
		{"mount group", caps(&csi.VolumeCapability{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{VolumeMountGroup: "5"}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: multiWriter},
		}), invalid, "volume_mount_group"},
		{"flags differ", caps(mountCapability(multiWriter, "soft"), mountCapability(multiWriter)), invalid, "mount options of the volume capabilities differ"},
		{"bad flag", caps(mountCapability(multiWriter, "a b")), invalid, "mount option"},
		{"empty source", fromSource(&csi.VolumeContentSource{}), invalid, "neither a snapshot nor a volume"},
		{"source without a volume", fromSource(volumeSource("")), invalid, "volume_id is missing"},
		{"source without a snapshot", fromSource(snapshotSource("")), invalid, "snapshot_id is missing"},
		{"source volume of nobody", fromSource(volumeSource("no-handle")), codes.NotFound, `"no-handle"`},
		{"source snapshot of nobody", fromSource(snapshotSource(testHandle)), codes.NotFound, testHandle},
		{"source of the other driver", fromSource(volumeSource("10.0.0.1#data#a")), invalid, "csi-driver-nfs"},
		{"mutable parameters", func(r *csi.CreateVolumeRequest) { r.MutableParameters = map[string]string{"subDir": "b"} }, invalid, "VolumeAttributesClass"},
		{"no server", func(r *csi.CreateVolumeRequest) { delete(r.Parameters, "server") }, invalid, `"server" is missing`},
		{"no share", func(r *csi.CreateVolumeRequest) { delete(r.Parameters, "share") }, invalid, `"share" is missing`},
		{"bad server", param("server", "a b"), invalid, `"a b"`},
		{"relative share", param("share", "data"), invalid, "not an absolute path"},
		{"climbing share", param("share", "/a/../b"), invalid, `".."`},
		{"unknown parameter", param("shar", "/x"), invalid, `unknown parameter "shar": the nearest known one is "share"`},
		{"misspelt parameter", param("mountPermission", "0777"), invalid, `nearest known one is "mountPermissions"`},
		{"shared by nobody", param("shared", "true"), invalid, `"shared" needs a "subDir"`},
		{"shared neither way", param("shared", "yes"), invalid, `shared "yes" is neither`},
		{"shared archive", func(r *csi.CreateVolumeRequest) {
			r.Parameters["shared"], r.Parameters["subDir"], r.Parameters["restoreArchive"] = "true", "x", "y"
		}, invalid, "exclude each other"},
		{"retention without an archive", param("archiveRetention", "1h"), invalid, `"archiveRetention" needs "onDelete" archive`},
		{"retention that is none", func(r *csi.CreateVolumeRequest) {
			r.Parameters["onDelete"], r.Parameters["archiveRetention"] = "archive", "a month"
		}, invalid, `archiveRetention "a month"`},
		{"parameter twice", param("Server", "10.0.0.2"), invalid, "more than once"},
		{"bad onDelete", param("onDelete", "burn"), invalid, `onDelete "burn"`},
		{"mode not octal", param("mountPermissions", "0888"), invalid, `"0888"`},
		{"mode too large", param("mountPermissions", "10000"), invalid, `"10000"`},
		{"negative uid", param("uid", "-1"), invalid, `uid "-1"`},
		{"uid name", param("uid", "root"), invalid, `uid "root"`},
		{"gid is (gid_t)-1", param("gid", "4294967295"), invalid, `gid "4294967295"`},
		{"subDir climbs", param("subDir", "../x"), invalid, `".."`},
		{"subDir is the share", param("subDir", "/"), invalid, "empty"},
		{"subDir is ours", param("subDir", ".nfs-csi/trash"), invalid, "reserved"},
		{"unknown template variable", param("subDir", "${pvc.name}"), invalid, "pvc.name"},
		{"template without a value", param("subDir", "${pvc.metadata.name}"), invalid, "--extra-create-metadata"},
		{"template with a slash", func(r *csi.CreateVolumeRequest) {
			r.Parameters["subDir"], r.Parameters["csi.storage.k8s.io/pvc/name"] = "${pvc.metadata.name}", "a/b"
		}, invalid, "slash"},
		{"bad name from Kubernetes", param("csi.storage.k8s.io/pv/name", ".."), invalid, `".."`},
		{"negative size", size(-1, 0), invalid, "negative"},
		{"negative limit", size(0, -1), invalid, "negative"},
		{"limit below size", size(10, 5), codes.OutOfRange, "the limit of 5 bytes is less than the 10 required"},
	}
	c := serve(t, Config{Stores: &fakeStores{}})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := c.CreateVolume(t.Context(), createRequest(tt.edit))
			wantStatus(t, err, tt.code, tt.part)
		})
	}
}

func TestModes(t *testing.T) {
	for in, want := range map[string]uint32{"": 0o755, "0": 0o755, "00": 0o755, "700": 0o700, "0777": 0o777, "7777": 0o7777} {
		m, given, err := parseMode(in)
		if err != nil || nfs.UnixMode(m) != want || given != (strings.Trim(in, "0") != "") {
			t.Errorf("parseMode(%q) = %#o, %v, %v, want %#o", in, nfs.UnixMode(m), given, err, want)
		}
	}
}

func TestDeleteVolume(t *testing.T) {
	var got []string
	c := serve(t, Config{Stores: &fakeStores{open: func(_ context.Context, e nfs.Export) (Store, error) {
		return &fakeStore{delete: func(_ context.Context, id, dir string) error {
			got = append(got, e.String()+" "+id+" "+dir)
			return nil
		}}, nil
	}}})
	for _, id := range []string{testHandle, "nfs.example#srv/share#team/a#pvc-2#archive"} {
		if _, err := c.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	want := []string{"10.0.0.1:/data pvc-1 ", "nfs.example:/srv/share pvc-2 team/a"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("deleted (-want +got):\n%s", diff)
	}

	// What was never ours needs no deleting; what may be ours is not given up.
	for _, id := range []string{"fake-vol-id", "very-static", "vm:5"} {
		if _, err := c.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	if s := c.logs.String(); !strings.Contains(s, "never made a volume") || !strings.Contains(s, "very-static") {
		t.Errorf("nothing in the log says that a handle is unknown:\n%s", s)
	}
	for _, id := range []string{"v2:10.0.0.1:/data::pvc-1", "v1:10.0.0.1:/data:pvc-1", "a#b#c#d#delete#e", "a#b", "10.0.0.1#data#../x"} {
		_, err := c.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: id})
		wantStatus(t, err, codes.InvalidArgument, id)
	}
	_, err := c.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{})
	wantStatus(t, err, codes.InvalidArgument, "volume_id is missing")
	if len(got) != 2 {
		t.Errorf("the store was asked for unreadable handles: %v", got)
	}
}

func TestGetAndValidate(t *testing.T) {
	c := serve(t, Config{Stores: oneStore(&fakeStore{get: func(_ context.Context, id string) (nfs.Volume, error) {
		if id != "pvc-1" {
			return nfs.Volume{}, fmt.Errorf("%w: no record %q", nfs.ErrNotFound, id)
		}
		return nfs.Volume{ID: id, Name: id, Dir: "a/b", CapacityBytes: 5}, nil
	}})})
	got, err := c.ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: testHandle})
	if err != nil {
		t.Fatal(err)
	}
	attributes := map[string]string{"server": "10.0.0.1", "share": "/data", "subDir": "a/b"}
	want := &csi.ControllerGetVolumeResponse{
		Volume: &csi.Volume{VolumeId: testHandle, CapacityBytes: 5, VolumeContext: attributes},
		Status: &csi.ControllerGetVolumeResponse_VolumeStatus{},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("volume (-want +got):\n%s", diff)
	}
	for _, id := range []string{"garbage", "v1:10.0.0.1:/data::pvc-2"} {
		_, err := c.ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: id})
		wantStatus(t, err, codes.NotFound)
		_, err = c.ValidateVolumeCapabilities(t.Context(), &csi.ValidateVolumeCapabilitiesRequest{
			VolumeId: id, VolumeCapabilities: []*csi.VolumeCapability{mountCapability(multiWriter)},
		})
		wantStatus(t, err, codes.NotFound)
	}

	all := func() (c []*csi.VolumeCapability) {
		for mode := range csi.VolumeCapability_AccessMode_Mode_name {
			if mode != 0 {
				c = append(c, mountCapability(accessMode(mode)))
			}
		}
		return c
	}()
	block := &csi.VolumeCapability{AccessType: &csi.VolumeCapability_Block{}, AccessMode: &csi.VolumeCapability_AccessMode{Mode: multiWriter}}
	for _, tt := range []struct {
		name    string
		caps    []*csi.VolumeCapability
		context map[string]string
		message string
	}{
		{"every access mode", all, nil, ""},
		{"right context", all, attributes, ""},
		{"block", append(slices.Clone(all), block), nil, "block volumes are not supported"},
		{"wrong directory", all, map[string]string{"server": "10.0.0.1", "share": "/data", "subDir": "other"}, `"other"`},
		{"wrong server", all, map[string]string{"server": "10.0.0.2", "share": "/data", "subDir": "a/b"}, "10.0.0.2"},
	} {
		resp, err := c.ValidateVolumeCapabilities(t.Context(), &csi.ValidateVolumeCapabilitiesRequest{
			VolumeId: testHandle, VolumeCapabilities: tt.caps, VolumeContext: tt.context,
		})
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		want := &csi.ValidateVolumeCapabilitiesResponse{}
		if tt.message == "" {
			want.Confirmed = &csi.ValidateVolumeCapabilitiesResponse_Confirmed{VolumeCapabilities: tt.caps, VolumeContext: tt.context}
		} else if strings.Contains(resp.GetMessage(), tt.message) {
			want.Message = resp.GetMessage()
		}
		if diff := cmp.Diff(want, resp, protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// listed is a set of exports with volumes, and a store for each.
type listed map[string][]string

func (l listed) stores(t *testing.T) *fakeStores {
	return &fakeStores{
		exports: func() []nfs.Export {
			var exports []nfs.Export
			for share := range l {
				exports = append(exports, nfs.Export{Server: "s", Share: share})
			}
			slices.SortFunc(exports, func(a, b nfs.Export) int { return strings.Compare(a.Key(), b.Key()) })
			return exports
		},
		open: func(_ context.Context, e nfs.Export) (Store, error) {
			ids, ok := l[e.Share]
			if !ok {
				t.Errorf("opened %s", e)
			}
			return &fakeStore{list: func(_ context.Context, after string, limit int) ([]nfs.Volume, error) {
				var out []nfs.Volume
				for _, id := range ids {
					if id > after && (limit == 0 || len(out) < limit) {
						out = append(out, nfs.Volume{ID: id, Dir: id})
					}
				}
				return out, nil
			}}, nil
		},
	}
}

func TestListVolumes(t *testing.T) {
	volumes := listed{"/a": {"a1", "a2", "a3"}, "/b": nil, "/c": {"c1"}, "/d": {"d1", "d2"}, "/e": nil}
	all := []string{"a1", "a2", "a3", "c1", "d1", "d2"}
	c := serve(t, Config{Stores: volumes.stores(t)})
	for limit := range int32(8) {
		var got []string
		var token string
		for page := 0; ; page++ {
			resp, err := c.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: limit, StartingToken: token})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range resp.GetEntries() {
				got = append(got, e.GetVolume().GetVolumeContext()["subDir"])
			}
			if limit > 0 && len(resp.GetEntries()) > int(limit) {
				t.Fatalf("limit %d: a page has %d entries", limit, len(resp.GetEntries()))
			}
			if token = resp.GetNextToken(); token == "" {
				break
			}
			if len(resp.GetEntries()) != int(limit) || page > 6 {
				t.Fatalf("limit %d: page %d has %d entries and a token", limit, page, len(resp.GetEntries()))
			}
		}
		if diff := cmp.Diff(all, got); diff != "" {
			t.Errorf("limit %d (-want +got):\n%s", limit, diff)
		}
	}

	first, err := c.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: 2})
	if err != nil {
		t.Fatal(err)
	}
	volumes["/a"] = []string{"a1", "a3"} // The token's own volume goes.
	second, err := c.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: 1, StartingToken: first.GetNextToken()})
	if err != nil {
		t.Fatal(err)
	}
	if id := second.GetEntries()[0].GetVolume().GetVolumeId(); id != "v1:s:/a::a3" {
		t.Errorf("after the deletion the page begins with %s", id)
	}

	for _, token := range []string{"invalid-token", "s#a#b#c#d", "v1:s:/a::"} {
		_, err := c.ListVolumes(t.Context(), &csi.ListVolumesRequest{StartingToken: token})
		wantStatus(t, err, codes.Aborted, token)
	}
	_, err = c.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: -1})
	wantStatus(t, err, codes.InvalidArgument, "max_entries")
}

// TestListVolumesIsWhole: one export that does not answer fails the list.
func TestListVolumesIsWhole(t *testing.T) {
	stores := listed{"/a": {"a1"}, "/b": {"b1"}}.stores(t)
	open := stores.open
	stores.open = func(ctx context.Context, e nfs.Export) (Store, error) {
		if e.Share == "/b" {
			return nil, fmt.Errorf("%w: no answer", nfs.ErrUnavailable)
		}
		return open(ctx, e)
	}
	_, err := serve(t, Config{Stores: stores}).ListVolumes(t.Context(), &csi.ListVolumesRequest{})
	wantStatus(t, err, codes.Unavailable, "s:/b", "no answer")
}

func TestGetCapacity(t *testing.T) {
	free := map[string]int64{
		nfs.Export{Server: "s", Share: "/a"}.Key():                                10,
		nfs.Export{Server: "s", Share: "/b", Options: []string{"vers=3"}}.Key():   30,
		nfs.Export{Server: "s", Share: "/new"}.Key():                              7,
		nfs.Export{Server: "s", Share: "/b", Options: []string{"vers=4.1"}}.Key(): 20,
	}
	stores := &fakeStores{
		exports: func() []nfs.Export {
			return []nfs.Export{{Server: "s", Share: "/a"}, {Server: "s", Share: "/b", Options: []string{"vers=3"}}}
		},
		open: func(_ context.Context, e nfs.Export) (Store, error) {
			n, ok := free[e.Key()]
			if !ok {
				return nil, fmt.Errorf("%w: %s", nfs.ErrNoExport, e.Key())
			}
			return &fakeStore{usage: func(context.Context) (nfs.Usage, error) { return nfs.Usage{AvailableBytes: n}, nil }}, nil
		},
	}
	c := serve(t, Config{Stores: stores})
	of := func(share string) map[string]string { return map[string]string{"server": "s", "share": share} }
	for _, tt := range []struct {
		name string
		req  *csi.GetCapacityRequest
		want int64
	}{
		{"everywhere", &csi.GetCapacityRequest{}, 30},
		{"known", &csi.GetCapacityRequest{Parameters: of("/a")}, 10},
		{"known with options", &csi.GetCapacityRequest{Parameters: of("/b")}, 30},
		{"new", &csi.GetCapacityRequest{Parameters: of("/new")}, 7},
		{"by capability", &csi.GetCapacityRequest{Parameters: of("/b"), VolumeCapabilities: []*csi.VolumeCapability{mountCapability(multiWriter, "vers=4.1")}}, 20},
	} {
		resp, err := c.GetCapacity(t.Context(), tt.req)
		if err != nil || resp.GetAvailableCapacity() != tt.want {
			t.Errorf("%s: %d, %v, want %d", tt.name, resp.GetAvailableCapacity(), err, tt.want)
		}
	}
	_, err := c.GetCapacity(t.Context(), &csi.GetCapacityRequest{Parameters: of("/missing")})
	wantStatus(t, err, codes.FailedPrecondition, "s:/missing")
	_, err = c.GetCapacity(t.Context(), &csi.GetCapacityRequest{Parameters: map[string]string{"server": "s"}})
	wantStatus(t, err, codes.InvalidArgument, "share")
}

func TestCapabilitiesAndIdentity(t *testing.T) {
	c := serve(t, Config{Stores: &fakeStores{}, Mounter: &fakeMounts{}, NodeID: "node-1", Version: "1.2.3"})
	var got []string
	cc, err := c.ControllerGetCapabilities(t.Context(), &csi.ControllerGetCapabilitiesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range cc.GetCapabilities() {
		got = append(got, "controller "+x.GetRpc().GetType().String())
	}
	nc, err := c.NodeGetCapabilities(t.Context(), &csi.NodeGetCapabilitiesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range nc.GetCapabilities() {
		got = append(got, "node "+x.GetRpc().GetType().String())
	}
	pc, err := c.GetPluginCapabilities(t.Context(), &csi.GetPluginCapabilitiesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range pc.GetCapabilities() {
		if expansion := x.GetVolumeExpansion(); expansion != nil {
			got = append(got, "plugin expansion "+expansion.GetType().String())
		} else {
			got = append(got, "plugin "+x.GetService().GetType().String())
		}
	}
	want := []string{
		"controller CREATE_DELETE_VOLUME", "controller LIST_VOLUMES", "controller GET_VOLUME",
		"controller SINGLE_NODE_MULTI_WRITER", "controller GET_CAPACITY",
		"controller EXPAND_VOLUME", "controller MODIFY_VOLUME",
		"controller CREATE_DELETE_SNAPSHOT", "controller LIST_SNAPSHOTS", "controller GET_SNAPSHOT", "controller CLONE_VOLUME",
		"node STAGE_UNSTAGE_VOLUME", "node GET_VOLUME_STATS", "node SINGLE_NODE_MULTI_WRITER",
		"plugin CONTROLLER_SERVICE", "plugin expansion ONLINE",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("capabilities (-want +got):\n%s", diff)
	}
	info, err := c.GetPluginInfo(t.Context(), &csi.GetPluginInfoRequest{})
	if err != nil || info.GetName() != DefaultName || info.GetVendorVersion() != "1.2.3" {
		t.Errorf("plugin info: %v, %v", info, err)
	}
	node, err := c.NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
	if diff := cmp.Diff(&csi.NodeGetInfoResponse{NodeId: "node-1"}, node, protocmp.Transform()); err != nil || diff != "" {
		t.Errorf("node info: %v\n%s", err, diff)
	}
	probe, err := c.Probe(t.Context(), &csi.ProbeRequest{})
	if err != nil || !probe.GetReady().GetValue() {
		t.Errorf("probe: %v, %v", probe, err)
	}
}
