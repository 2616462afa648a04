package driver

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	mountutils "k8s.io/mount-utils"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/mount"
)

// nodeBed is a node service with a mount table and the kubelet's directories.
type nodeBed struct {
	*client
	*table
	t          *testing.T
	staging    string
	targets    string
	volumeID   string
	mode       accessMode
	flags      []string
	attributes map[string]string
}

func newNodeBed(t *testing.T) *nodeBed {
	dir := t.TempDir()
	b := &nodeBed{
		table:      &table{usageErr: map[string]error{}},
		t:          t,
		staging:    filepath.Join(dir, "plugins", "globalmount"),
		targets:    filepath.Join(dir, "pods"),
		volumeID:   testHandle,
		mode:       multiWriter,
		attributes: map[string]string{"server": "10.0.0.1", "share": "/data", "subDir": "a"},
	}
	match := mount.New(mount.Options{}).Match
	b.client = serve(t, Config{Mounter: b.table, Match: match, NodeID: "n"})
	return b
}

func (b *nodeBed) target(pod string) string { return filepath.Join(b.targets, pod) }

func (b *nodeBed) stage() error {
	_, err := b.NodeStageVolume(b.t.Context(), &csi.NodeStageVolumeRequest{
		VolumeId: b.volumeID, StagingTargetPath: b.staging, VolumeCapability: mountCapability(b.mode, b.flags...), VolumeContext: b.attributes,
	})
	return err
}

func (b *nodeBed) publish(pod string, readOnly bool) error {
	_, err := b.NodePublishVolume(b.t.Context(), &csi.NodePublishVolumeRequest{
		VolumeId: b.volumeID, StagingTargetPath: b.staging, TargetPath: b.target(pod), Readonly: readOnly,
		VolumeCapability: mountCapability(b.mode, b.flags...), VolumeContext: b.attributes,
	})
	return err
}

func (b *nodeBed) unpublish(pod string) error {
	_, err := b.NodeUnpublishVolume(b.t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: b.volumeID, TargetPath: b.target(pod)})
	return err
}

func (b *nodeBed) unstage() error {
	_, err := b.NodeUnstageVolume(b.t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: b.volumeID, StagingTargetPath: b.staging})
	return err
}

func (b *nodeBed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *nodeBed) wantDone(want ...string) {
	b.t.Helper()
	if diff := cmp.Diff(want, b.done()); diff != "" {
		b.t.Errorf("done (-want +got):\n%s", diff)
	}
}

func (b *nodeBed) wantGone(path string) {
	b.t.Helper()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		b.t.Errorf("%s is still there (%v)", path, err)
	}
}

func TestNodeFlow(t *testing.T) {
	b := newNodeBed(t)
	for range 3 {
		b.must(b.stage())
	}
	b.wantDone("mount 10.0.0.1:/data/a at globalmount ro=false options=[]")
	for range 3 {
		b.must(b.publish("p1", false))
		b.must(b.publish("p2", true))
	}
	b.wantDone("bind globalmount to p1 ro=false", "bind globalmount to p2 ro=true")
	wantStatus(t, b.publish("p1", true), codes.AlreadyExists, b.target("p1"), "10.0.0.1:/data/a")
	wantStatus(t, b.publish("p2", false), codes.AlreadyExists, b.target("p2"))
	b.wantDone()

	stats, err := b.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: b.volumeID, VolumePath: b.target("p1")})
	b.must(err)
	want := &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: 100, Available: 60, Used: 40},
		{Unit: csi.VolumeUsage_INODES, Total: 10, Available: 3, Used: 7},
	}}
	if diff := cmp.Diff(want, stats, protocmp.Transform()); diff != "" {
		t.Errorf("stats (-want +got):\n%s", diff)
	}

	for range 2 {
		b.must(b.unpublish("p1"))
		b.wantGone(b.target("p1"))
	}
	b.must(b.unpublish("p2"))
	for range 2 {
		b.must(b.unstage())
		b.wantGone(b.staging)
	}
	b.wantDone("unmount p1", "unmount p2", "unmount globalmount")
	_, err = b.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: b.volumeID, VolumePath: b.target("p1")})
	wantStatus(t, err, codes.NotFound, b.target("p1"))
}

// TestReadOnlyModes: the access mode alone makes a volume read-only.
func TestReadOnlyModes(t *testing.T) {
	for _, mode := range []accessMode{csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY, csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY} {
		t.Run(mode.String(), func(t *testing.T) {
			b := newNodeBed(t)
			b.mode = mode
			b.must(b.stage())
			b.must(b.publish("p1", false))
			b.must(b.publish("p1", false))
			b.wantDone("mount 10.0.0.1:/data/a at globalmount ro=true options=[]", "bind globalmount to p1 ro=true")
		})
	}
	t.Run("published by another mode than staged", func(t *testing.T) {
		b := newNodeBed(t)
		b.must(b.stage())
		b.mode = csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
		b.must(b.publish("p1", false))
		b.wantDone("mount 10.0.0.1:/data/a at globalmount ro=false options=[]", "bind globalmount to p1 ro=true")
		b.must(b.unstage())
		b.must(b.stage())
		b.mode = multiWriter
		wantStatus(t, b.publish("p2", false), codes.FailedPrecondition, "10.0.0.1:/data", `"a"`)
	})
}

// TestSingleTarget follows the second table of NodePublishVolume in the specification.
func TestSingleTarget(t *testing.T) {
	for number, name := range csi.VolumeCapability_AccessMode_Mode_name {
		mode := accessMode(number)
		if mode == csi.VolumeCapability_AccessMode_UNKNOWN {
			continue
		}
		t.Run(name, func(t *testing.T) {
			b := newNodeBed(t)
			b.mode = mode
			b.must(b.stage())
			b.must(b.publish("p1", false))
			b.must(b.publish("p1", false))
			err := b.publish("p2", false)
			if strings.HasPrefix(name, "MULTI_NODE") || mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER {
				b.must(err)
				return
			}
			wantStatus(t, err, codes.FailedPrecondition, b.target("p1"), name)
			b.must(b.unpublish("p1"))
			b.must(b.publish("p2", false))
		})
	}
}

func TestStageRefuses(t *testing.T) {
	t.Run("another volume is there", func(t *testing.T) {
		b := newNodeBed(t)
		b.must(b.stage())
		b.attributes = map[string]string{"server": "10.0.0.1", "share": "/data", "subDir": "b"}
		wantStatus(t, b.stage(), codes.AlreadyExists, b.staging, "10.0.0.1:/data/a", `"b"`)
		wantStatus(t, b.publish("p1", false), codes.FailedPrecondition, b.staging, "10.0.0.1:/data/a", `"b"`)
	})
	t.Run("other options", func(t *testing.T) {
		b := newNodeBed(t)
		b.must(b.stage())
		b.flags = []string{"vers=3"}
		wantStatus(t, b.stage(), codes.AlreadyExists, "version")
	})
	t.Run("the directory is gone", func(t *testing.T) {
		b := newNodeBed(t)
		b.mountErr = fmt.Errorf("%w: no such directory", nfs.ErrNoExport)
		wantStatus(t, b.stage(), codes.NotFound, "10.0.0.1:/data", `"a"`, "no such directory")
	})
	t.Run("the server is down", func(t *testing.T) {
		b := newNodeBed(t)
		b.mountErr = fmt.Errorf("%w: no answer", nfs.ErrUnavailable)
		wantStatus(t, b.stage(), codes.Unavailable, "10.0.0.1:/data", "no answer")
	})
}

func TestNodeRequests(t *testing.T) {
	b := newNodeBed(t)
	capability := mountCapability(multiWriter)
	good := func() *csi.NodePublishVolumeRequest {
		return &csi.NodePublishVolumeRequest{
			VolumeId: b.volumeID, StagingTargetPath: b.staging, TargetPath: b.target("p"), VolumeCapability: capability, VolumeContext: b.attributes,
		}
	}
	for _, tt := range []struct {
		name string
		edit func(*csi.NodePublishVolumeRequest)
		code codes.Code
		part string
	}{
		{"nothing staged", func(*csi.NodePublishVolumeRequest) {}, codes.FailedPrecondition, "NodeStageVolume comes first"},
		{"no staging path", func(r *csi.NodePublishVolumeRequest) { r.StagingTargetPath = "" }, codes.FailedPrecondition, "staging_target_path"},
		{"no volume", func(r *csi.NodePublishVolumeRequest) { r.VolumeId = "" }, codes.InvalidArgument, "volume_id"},
		{"no target", func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "" }, codes.InvalidArgument, "target_path"},
		{"relative target", func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "some/path" }, codes.InvalidArgument, "target_path"},
		{"target is /", func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "/tmp/.." }, codes.InvalidArgument, "target_path"},
		{"target is staging", func(r *csi.NodePublishVolumeRequest) { r.TargetPath = b.staging }, codes.InvalidArgument, "both"},
		{"no capability", func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability = nil }, codes.InvalidArgument, "volume_capability"},
		{"no context", func(r *csi.NodePublishVolumeRequest) { r.VolumeContext = nil }, codes.InvalidArgument, "volumeAttributes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := good()
			tt.edit(r)
			_, err := b.NodePublishVolume(t.Context(), r)
			wantStatus(t, err, tt.code, tt.part)
		})
	}
	_, err := b.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: "v", VolumeCapability: capability})
	wantStatus(t, err, codes.InvalidArgument, "staging_target_path")
	_, err = b.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: "v", StagingTargetPath: b.staging})
	wantStatus(t, err, codes.InvalidArgument, "volume_capability")
	_, err = b.NodeUnstageVolume(t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: "v"})
	wantStatus(t, err, codes.InvalidArgument, "staging_target_path")
	_, err = b.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: "v"})
	wantStatus(t, err, codes.InvalidArgument, "target_path")
	_, err = b.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: "v"})
	wantStatus(t, err, codes.InvalidArgument, "volume_path")
	_, err = b.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: "v", VolumePath: "some/path"})
	wantStatus(t, err, codes.NotFound, "some/path")
	b.wantDone()
}

func TestLocateVolume(t *testing.T) {
	for _, tt := range []struct {
		name, id string
		context  map[string]string
		want     string // export and directory, or the error after "!"
	}{
		{"ours", testHandle, map[string]string{"server": "10.0.0.1", "share": "/data", "subDir": "a"}, `10.0.0.1:/data, directory "a"`},
		{"static, whole share", "anything", map[string]string{"server": "h", "share": "/s"}, "h:/s"},
		{"static, any case, other keys", "x", map[string]string{
			"Server": "h", "SHARE": "/s", "subdir": "/a/b/", "storage.kubernetes.io/csiProvisionerIdentity": "i", "csi.storage.k8s.io/pv/name": "p",
		}, `h:/s, directory "a/b"`},
		{"csi-driver-nfs without attributes", "h#s#a#u#", nil, `h:/s, directory "a"`},
		{"csi-driver-nfs with attributes", "h#s#a#u#", map[string]string{"server": "h2", "share": "/s", "subdir": "a"}, `h2:/s, directory "a"`},
		{"ours without context", testHandle, nil, "!volumeAttributes"},
		{"no share", "x", map[string]string{"server": "h"}, "!volumeAttributes"},
		{"twice", "x", map[string]string{"server": "h", "share": "/s", "subDir": "a", "subdir": "b"}, "!more than once"},
		{"climbs", "x", map[string]string{"server": "h", "share": "/s", "subDir": "a/../.."}, "!.."},
		{"driver's own", "x", map[string]string{"server": "h", "share": "/s", "subDir": ".nfs-csi"}, "!reserved"},
	} {
		l, err := locateVolume(tt.id, tt.context, nil)
		part, bad := strings.CutPrefix(tt.want, "!")
		switch {
		case bad && (err == nil || !strings.Contains(err.Error(), part)):
			t.Errorf("%s: %v, %v, want an error with %q", tt.name, l, err, part)
		case !bad && (err != nil || l.String() != tt.want):
			t.Errorf("%s: %v, %v, want %s", tt.name, l, err, tt.want)
		}
	}
}

func TestStaleMountIsRepaired(t *testing.T) {
	b := newNodeBed(t)
	b.must(b.stage())
	b.must(b.publish("running", false))
	b.done()
	stale := fmt.Errorf("statfs: %w", nfs.ErrStale)

	b.usageErr[b.staging] = stale
	b.usageErr[b.target("running")] = stale
	b.must(b.publish("running", false)) // A running pod keeps what it has.
	b.wantDone()
	b.must(b.publish("new", false))
	b.wantDone("unmount globalmount", "mount 10.0.0.1:/data/a at globalmount ro=false options=[]", "bind globalmount to new ro=false")

	b.usageErr[b.staging] = stale
	b.must(b.stage())
	b.wantDone("unmount globalmount", "mount 10.0.0.1:/data/a at globalmount ro=false options=[]")

	b.usageErr[b.staging] = stale
	b.mountErr = fmt.Errorf("%w: gone", nfs.ErrNoExport)
	wantStatus(t, b.publish("newer", false), codes.NotFound, "gone")
	b.wantGone(b.target("newer"))
}

// TestDeadServer: no mount is taken away because a server does not answer, no
// pod is started on it, and nothing keeps a pod from ending.
func TestDeadServer(t *testing.T) {
	b := newNodeBed(t)
	b.must(b.stage())
	b.must(b.publish("p1", false))
	b.done()
	dead := fmt.Errorf("%w: no answer", nfs.ErrUnavailable)
	b.usageErr[b.staging], b.usageErr[b.target("p1")] = dead, dead
	wantStatus(t, b.stage(), codes.Unavailable, "10.0.0.1:/data", b.staging)
	wantStatus(t, b.publish("p2", false), codes.Unavailable, "10.0.0.1:/data", b.staging)
	_, err := b.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: b.volumeID, VolumePath: b.target("p1")})
	wantStatus(t, err, codes.Unavailable, b.target("p1"))
	b.wantDone()
	b.must(b.unpublish("p1"))
	b.must(b.unstage())
	b.wantDone("unmount p1", "unmount globalmount")
}

// TestLostStagingMount: a bind that caught the node's own disk is undone.
func TestLostStagingMount(t *testing.T) {
	b := newNodeBed(t)
	b.must(b.stage())
	b.done()
	b.beforeBind = func(tb *table) { tb.remove(b.staging) }
	wantStatus(t, b.publish("p1", false), codes.Unavailable, b.staging)
	b.wantDone("bind globalmount to p1 ro=false", "unmount p1")
	b.wantGone(b.target("p1"))
	if len(b.mounts) > 0 {
		t.Errorf("left over: %v", b.mounts)
	}
}

func TestBindFails(t *testing.T) {
	b := newNodeBed(t)
	b.must(b.stage())
	b.bindErr = fmt.Errorf("%w: CAP_SYS_ADMIN is missing", nfs.ErrPermission)
	wantStatus(t, b.publish("p1", false), codes.PermissionDenied, "CAP_SYS_ADMIN", b.target("p1"))
	b.wantGone(b.target("p1"))
}

// TestUnpublishKeepsFiles: what was written below a missing mount is not deleted.
func TestUnpublishKeepsFiles(t *testing.T) {
	b := newNodeBed(t)
	b.must(os.MkdirAll(b.target("p1"), 0o755))
	file := filepath.Join(b.target("p1"), "precious")
	b.must(os.WriteFile(file, nil, 0o644))
	wantStatus(t, b.unpublish("p1"), codes.FailedPrecondition, b.target("p1"), "own disk")
	if _, err := os.Stat(file); err != nil {
		t.Errorf("the file is gone: %v", err)
	}
}

// TestUnpublishStillMounted: while mountinfo shows a mount, the
// directory is left alone.
func TestUnpublishStillMounted(t *testing.T) {
	b := newNodeBed(t)
	b.must(b.stage())
	b.must(b.publish("p1", false))
	b.stuck = true
	wantStatus(t, b.unpublish("p1"), codes.Unavailable, b.target("p1"), "still mounted")
	if _, err := os.Stat(b.target("p1")); err != nil {
		t.Errorf("the mount point is gone: %v", err)
	}
}

// TestSymlinkedKubeletDirectory: mountinfo shows resolved paths, the kubelet
// gives its own.
func TestSymlinkedKubeletDirectory(t *testing.T) {
	b := newNodeBed(t)
	elsewhere := t.TempDir()
	link := filepath.Join(t.TempDir(), "kubelet")
	b.must(os.Symlink(elsewhere, link))
	b.must(os.Mkdir(filepath.Join(elsewhere, "globalmount"), 0o750))
	b.add(mountutils.MountInfo{
		Source: "10.0.0.1:/data/a", FsType: "nfs4", MountPoint: filepath.Join(elsewhere, "globalmount"),
		SuperOptions: []string{"rw", "vers=4.2", "proto=tcp"},
	}, false)
	b.staging = filepath.Join(link, "globalmount")
	b.must(b.stage())
	_, mounted := topMount(b.mounts, b.staging)
	if !mounted {
		t.Errorf("no mount is found at %s", b.staging)
	}
	b.wantDone()
}
