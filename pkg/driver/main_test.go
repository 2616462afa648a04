package driver

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
	mountutils "k8s.io/mount-utils"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// csi-sanity runs in ginkgo, which handles signals until the process ends.
		goleak.IgnoreTopFunction("github.com/onsi/ginkgo/v2/internal/interrupt_handler.(*InterruptHandler).registerForInterrupts.func2"),
	)
}

// fakeStores and fakeStore are structs of functions. An unset one that is
// called panics on nil, which the recovery turns into Internal and so fails any
// test that expects something else.
type fakeStores struct {
	open    func(ctx context.Context, export nfs.Export) (Store, error)
	exports func() []nfs.Export
}

func (f *fakeStores) Open(ctx context.Context, e nfs.Export) (Store, error) { return f.open(ctx, e) }
func (f *fakeStores) Exports() []nfs.Export                                 { return f.exports() }

// oneStore opens the same store for every export.
func oneStore(s *fakeStore) *fakeStores {
	return &fakeStores{open: func(context.Context, nfs.Export) (Store, error) { return s, nil }}
}

type fakeStore struct {
	create func(context.Context, nfs.VolumeSpec) (nfs.Volume, error)
	get    func(context.Context, string) (nfs.Volume, error)
	list   func(context.Context, string, int) ([]nfs.Volume, error)
	update func(context.Context, string, nfs.VolumeChange) (nfs.Volume, error)
	delete func(context.Context, string, string) error
	usage  func(context.Context) (nfs.Usage, error)

	createSnapshot func(ctx context.Context, name, volumeID string) (nfs.Snapshot, error)
	getSnapshot    func(context.Context, string) (nfs.Snapshot, error)
	listSnapshots  func(ctx context.Context, volumeID, after string, limit int) ([]nfs.Snapshot, error)
	deleteSnapshot func(context.Context, string) error
}

func (f *fakeStore) CreateVolume(ctx context.Context, s nfs.VolumeSpec) (nfs.Volume, error) {
	return f.create(ctx, s)
}
func (f *fakeStore) GetVolume(ctx context.Context, id string) (nfs.Volume, error) {
	return f.get(ctx, id)
}
func (f *fakeStore) ListVolumes(ctx context.Context, after string, limit int) ([]nfs.Volume, error) {
	return f.list(ctx, after, limit)
}
func (f *fakeStore) UpdateVolume(ctx context.Context, id string, c nfs.VolumeChange) (nfs.Volume, error) {
	return f.update(ctx, id, c)
}
func (f *fakeStore) DeleteVolume(ctx context.Context, id, dir string) error {
	return f.delete(ctx, id, dir)
}
func (f *fakeStore) CreateSnapshot(ctx context.Context, name, volumeID string) (nfs.Snapshot, error) {
	return f.createSnapshot(ctx, name, volumeID)
}
func (f *fakeStore) GetSnapshot(ctx context.Context, id string) (nfs.Snapshot, error) {
	return f.getSnapshot(ctx, id)
}
func (f *fakeStore) ListSnapshots(ctx context.Context, volumeID, after string, limit int) ([]nfs.Snapshot, error) {
	return f.listSnapshots(ctx, volumeID, after, limit)
}
func (f *fakeStore) DeleteSnapshot(ctx context.Context, id string) error {
	return f.deleteSnapshot(ctx, id)
}
func (f *fakeStore) Usage(ctx context.Context) (nfs.Usage, error) { return f.usage(ctx) }

// echoStore creates whatever it is asked for.
func echoStore() *fakeStore {
	return &fakeStore{create: func(_ context.Context, s nfs.VolumeSpec) (nfs.Volume, error) {
		return nfs.Volume{ID: nfs.RecordID(s.Name), Name: s.Name, Dir: s.Dir, CapacityBytes: s.MinBytes}, nil
	}}
}

type fakeMounts struct {
	mount   func(ctx context.Context, e nfs.Export, dir, target string, readOnly bool) error
	bind    func(ctx context.Context, source, target string, readOnly bool) error
	unmount func(ctx context.Context, target string) error
	list    func() ([]mountutils.MountInfo, error)
	usage   func(ctx context.Context, path string) (nfs.Usage, error)
}

func (f *fakeMounts) Mount(ctx context.Context, e nfs.Export, dir, target string, ro bool) error {
	return f.mount(ctx, e, dir, target, ro)
}
func (f *fakeMounts) Bind(ctx context.Context, s, t string, ro bool) error {
	return f.bind(ctx, s, t, ro)
}
func (f *fakeMounts) Unmount(ctx context.Context, t string) error            { return f.unmount(ctx, t) }
func (f *fakeMounts) List() ([]mountutils.MountInfo, error)                  { return f.list() }
func (f *fakeMounts) Usage(ctx context.Context, p string) (nfs.Usage, error) { return f.usage(ctx, p) }

// logBuffer collects log lines.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *logBuffer) logger() klog.Logger {
	return textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(b), textlogger.Verbosity(9)))
}

// client is a connection to a running server.
type client struct {
	csi.IdentityClient
	csi.ControllerClient
	csi.NodeClient
	server *Server
	logs   *logBuffer
	conn   *grpc.ClientConn
}

// serve runs a server on a socket of its own until the test ends.
func serve(t *testing.T, c Config) *client {
	t.Helper()
	logs := &logBuffer{}
	c.Logger = logs.logger()
	if c.Name == "" {
		c.Name = DefaultName
	}
	server := NewServer(c)
	socket := filepath.Join(t.TempDir(), "csi.sock")
	listener, err := Listen(t.Context(), "unix://"+socket)
	if err != nil {
		t.Fatal(err)
	}
	run(t, func(ctx context.Context) error { return server.Serve(ctx, listener) })
	conn := dial(t, socket)
	return &client{csi.NewIdentityClient(conn), csi.NewControllerClient(conn), csi.NewNodeClient(conn), server, logs, conn}
}

// run runs f until the test ends and fails the test with its error.
func run(t *testing.T, f func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("ended with %v", err)
				}
			case <-time.After(30 * time.Second):
				t.Errorf("did not end within 30 s of being told to")
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// wantStatus fails the test unless err has the code and every part of the message.
func wantStatus(t *testing.T, err error, code codes.Code, parts ...string) {
	t.Helper()
	s, _ := status.FromError(err)
	if s.Code() != code {
		t.Fatalf("code is %v, want %v; message: %s", s.Code(), code, s.Message())
	}
	for _, p := range parts {
		if !strings.Contains(s.Message(), p) {
			t.Errorf("message %q does not hold %q", s.Message(), p)
		}
	}
	if len(s.Details()) > 0 {
		t.Errorf("status has details, which the CSI specification forbids: %v", s.Details())
	}
}

// eventually waits until the condition holds and fails with what was last seen.
func eventually(t *testing.T, condition func() (bool, string)) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		ok, seen := condition()
		if ok {
			return
		}
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("not within 20 s; last seen: %s", seen)
		}
	}
}

func mountCapability(mode accessMode, flags ...string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{MountFlags: flags}},
	}
}

const multiWriter = csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER

func createRequest(edit ...func(*csi.CreateVolumeRequest)) *csi.CreateVolumeRequest {
	r := &csi.CreateVolumeRequest{
		Name:               "pvc-1",
		VolumeCapabilities: []*csi.VolumeCapability{mountCapability(multiWriter)},
		Parameters:         map[string]string{"server": "10.0.0.1", "share": "/data"},
		CapacityRange:      &csi.CapacityRange{RequiredBytes: 1 << 30},
	}
	for _, e := range edit {
		e(r)
	}
	return r
}

const (
	testHandle         = "v1:10.0.0.1:/data::pvc-1"
	testSnapshotHandle = "s1:10.0.0.1:/data::snap-1"
)
