// Package acceptance tests the built driver on real NFS: bad input and faults,
// each through the driver's own sockets, with what the server then holds checked
// on the server. Run it with LAB=1; it takes root and a few minutes.
package acceptance

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
	"github.com/nfs-csi/nfs-csi-driver/test/testbed"
)

// Shares of the server "server".
const (
	data    = "/srv/data"
	odd     = "/srv/o#d %d ü"
	squash  = "/srv/squash"
	readRO  = "/srv/ro"
	small   = "/srv/small"
	refused = "/srv/refused"
	nested  = "/srv/nested"
	looked  = "/srv/looked"
)

// Bounds of the driver under test, small so that what must give up does so soon.
const operationTimeout = 10 * time.Second

// bed is the lab that all tests share, set by TestMain.
type bed struct {
	*testbed.Bed
	controller, node *testbed.Driver
}

var shared *bed

func TestMain(m *testing.M) {
	if os.Getenv("LAB") == "" {
		os.Exit(m.Run())
	}
	os.Exit(runInLab(m))
}

func runInLab(m *testing.M) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b, err := start(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the lab:", err)
		return 1
	}
	shared = b
	code := m.Run()
	if code != 0 {
		fmt.Fprintln(os.Stderr, "the driver's logs are in", b.LogDir())
	}
	if err := b.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "close the lab:", err)
		return 1
	}
	return code
}

func start(ctx context.Context) (_ *bed, err error) {
	tb, err := testbed.Start(ctx, testbed.Options{
		Name:    "acceptance",
		Clients: 2,
		Log:     os.Stderr,
		Exports: []lab.ExportSpec{
			{Path: data, FS: lab.XFS, SizeMB: 1024},
			{Path: odd, FS: lab.Ext4, SizeMB: 256},
			{Path: squash, Options: "rw,sync,no_subtree_check,root_squash"},
			{Path: readRO, Options: "ro,sync,no_subtree_check,no_root_squash"},
			{Path: small, SizeMB: 1},
			{Path: refused, Clients: "192.0.2.1"},
			{Path: nested},
			{Path: looked, FS: lab.XFS, SizeMB: 512},
		},
	})
	if err != nil {
		return nil, err
	}
	b := &bed{Bed: tb}
	bound := "--operation-timeout=" + operationTimeout.String()
	if b.controller, err = tb.StartDriver(ctx, tb.Clients[0], "controller", "-v=4", bound, "--admin-endpoint=unix:///run/nfs-csi/admin.sock"); err == nil {
		b.node, err = tb.StartDriver(ctx, tb.Clients[0], "node", "-v=4", bound)
	}
	if err != nil {
		return nil, fmt.Errorf("%w (lab closed: %v)", err, tb.Close())
	}
	return b, nil
}

// inLab returns the lab, and a context that lasts until the test has cleaned up.
func inLab(t *testing.T) (context.Context, *bed) {
	t.Helper()
	if shared == nil {
		t.Skip("needs the lab (root, User Mode Linux): LAB=1 go test ./test/acceptance")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx, shared
}

func capability(mode csi.VolumeCapability_AccessMode_Mode, flags ...string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{MountFlags: flags}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
	}
}

var manyWriters = capability(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)

// create asks the controller d for a volume; parameters are key, value, key, value...
func create(ctx context.Context, d *testbed.Driver, name, server, share string, parameters ...string) (*csi.Volume, error) {
	request := &csi.CreateVolumeRequest{
		Name:               name,
		VolumeCapabilities: []*csi.VolumeCapability{manyWriters},
		Parameters:         map[string]string{"server": server, "share": share},
	}
	for i := 0; i+1 < len(parameters); i += 2 {
		request.Parameters[parameters[i]] = parameters[i+1]
	}
	var response csi.CreateVolumeResponse
	err := d.Call(ctx, "Controller/CreateVolume", request, &response)
	return response.Volume, err
}

func remove(ctx context.Context, d *testbed.Driver, id string) error {
	return d.Call(ctx, "Controller/DeleteVolume", &csi.DeleteVolumeRequest{VolumeId: id}, &csi.DeleteVolumeResponse{})
}

// mustCreate makes a volume on the share of the main server and deletes it after the test.
func (b *bed) mustCreate(ctx context.Context, t *testing.T, name, share string, parameters ...string) *csi.Volume {
	t.Helper()
	v, err := create(ctx, b.controller, name, b.Server.IPv4(), share, parameters...)
	if err != nil {
		t.Fatalf("create %s on %s: %v", name, share, err)
	}
	t.Cleanup(func() {
		if err := remove(ctx, b.controller, v.VolumeId); err != nil {
			t.Errorf("delete %s: %v", name, err)
		}
	})
	return v
}

// mustStartServer starts a server with one share, on ext4, and kills it after the test.
func (b *bed) mustStartServer(ctx context.Context, t *testing.T, name, share string) *lab.Server {
	t.Helper()
	server, err := b.StartServer(ctx, lab.ServerSpec{Name: name, Exports: []lab.ExportSpec{{Path: share, FS: lab.Ext4, SizeMB: 256}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Kill(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// mounted is a volume in use on a node.
type mounted struct {
	node            *testbed.Driver
	volume          *csi.Volume
	staging, target string
}

func stage(ctx context.Context, m mounted, c *csi.VolumeCapability) error {
	return m.node.Call(ctx, "Node/NodeStageVolume", &csi.NodeStageVolumeRequest{
		VolumeId: m.volume.VolumeId, StagingTargetPath: m.staging, VolumeCapability: c, VolumeContext: m.volume.VolumeContext,
	}, &csi.NodeStageVolumeResponse{})
}

func publish(ctx context.Context, m mounted, c *csi.VolumeCapability, readOnly bool) error {
	return m.node.Call(ctx, "Node/NodePublishVolume", &csi.NodePublishVolumeRequest{
		VolumeId: m.volume.VolumeId, StagingTargetPath: m.staging, TargetPath: m.target, VolumeCapability: c,
		VolumeContext: m.volume.VolumeContext, Readonly: readOnly,
	}, &csi.NodePublishVolumeResponse{})
}

func unpublish(ctx context.Context, m mounted) error {
	return m.node.Call(ctx, "Node/NodeUnpublishVolume", &csi.NodeUnpublishVolumeRequest{
		VolumeId: m.volume.VolumeId, TargetPath: m.target,
	}, &csi.NodeUnpublishVolumeResponse{})
}

func unstage(ctx context.Context, m mounted) error {
	return m.node.Call(ctx, "Node/NodeUnstageVolume", &csi.NodeUnstageVolumeRequest{
		VolumeId: m.volume.VolumeId, StagingTargetPath: m.staging,
	}, &csi.NodeUnstageVolumeResponse{})
}

func stats(ctx context.Context, m mounted) error {
	return m.node.Call(ctx, "Node/NodeGetVolumeStats", &csi.NodeGetVolumeStatsRequest{
		VolumeId: m.volume.VolumeId, VolumePath: m.target,
	}, &csi.NodeGetVolumeStatsResponse{})
}

// mustMount stages and publishes a volume on client1 and takes it down after the test.
func (b *bed) mustMount(ctx context.Context, t *testing.T, v *csi.Volume, name string, c *csi.VolumeCapability, readOnly bool) mounted {
	t.Helper()
	m := mounted{node: b.node, volume: v, staging: "/var/lib/kubelet/staging/" + name, target: "/var/lib/kubelet/pods/" + name + "/mount"}
	if _, err := b.Clients[0].Output(ctx, "mkdir", "-p", m.staging, path.Dir(m.target)); err != nil {
		t.Fatal(err)
	}
	if err := stage(ctx, m, c); err != nil {
		t.Fatalf("stage %s: %v", name, err)
	}
	if err := publish(ctx, m, c, readOnly); err != nil {
		t.Fatalf("publish %s: %v", name, err)
	}
	t.Cleanup(func() {
		if err := unpublish(ctx, m); err != nil {
			t.Errorf("unpublish %s: %v", name, err)
		}
		if err := unstage(ctx, m); err != nil {
			t.Errorf("unstage %s: %v", name, err)
		}
	})
	return m
}

// shell runs a script in a guest and returns its output without the last newline.
func shell(ctx context.Context, t *testing.T, g *lab.Guest, script string, args ...string) string {
	t.Helper()
	out, err := g.Output(ctx, append([]string{"sh", "-c", script, "sh"}, args...)...)
	if err != nil {
		t.Fatalf("on %s: %v", g.Name(), err)
	}
	return strings.TrimSuffix(out, "\n")
}

// wantCode fails unless err is a status of the code whose message holds every text.
func wantCode(t *testing.T, err error, code codes.Code, texts ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Fatalf("got %v: %v\nwant %v", status.Code(err), err, code)
	}
	for _, text := range texts {
		if !strings.Contains(status.Convert(err).Message(), text) {
			t.Errorf("the message %q does not say %q", status.Convert(err).Message(), text)
		}
	}
}

// eventually polls a condition in the lab, where one try takes a while, until it
// holds or the time is over; it then says what was seen last.
func eventually(t *testing.T, within time.Duration, condition func() (seen string, ok bool)) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		seen, ok := condition()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s; last seen: %s", within, seen)
		}
	}
}
