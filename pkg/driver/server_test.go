package driver

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// TestDrain: a call that runs when the server is told to stop still ends well,
// Probe is not ready any more, and a call that does not end is cut off.
func TestDrain(t *testing.T) {
	for _, tt := range []struct {
		name  string
		drain time.Duration
		code  codes.Code
	}{
		{"in time", time.Minute, codes.OK},
		{"too late", 50 * time.Millisecond, codes.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			entered, goOn := make(chan struct{}), make(chan struct{})
			logs := &logBuffer{}
			server := NewServer(Config{Name: DefaultName, Logger: logs.logger(), DrainTimeout: tt.drain, Stores: oneStore(&fakeStore{
				delete: func(ctx context.Context, _, _ string) error {
					close(entered)
					select {
					case <-goOn:
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				},
			})})
			socket := filepath.Join(t.TempDir(), "csi.sock")
			listener, err := Listen(t.Context(), "unix://"+socket)
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			served := make(chan error, 1)
			go func() { served <- server.Serve(ctx, listener) }()

			controller := csi.NewControllerClient(dial(t, socket))
			called := make(chan error, 1)
			go func() {
				_, err := controller.DeleteVolume(context.Background(), &csi.DeleteVolumeRequest{VolumeId: testHandle})
				called <- err
			}()
			<-entered
			if !server.Serving() || server.ServerCheck().Check() != nil {
				t.Error("a server that serves is not ready")
			}
			stop()
			eventually(t, func() (bool, string) { return !server.Serving(), "still serving" })
			if server.ServerCheck().Check() == nil {
				t.Error("a server that drains is ready")
			}
			if tt.code == codes.OK {
				close(goOn)
			}
			wantStatus(t, <-called, tt.code)
			if err := <-served; err != nil {
				t.Errorf("Serve: %v", err)
			}
			if _, err := os.Lstat(socket); !os.IsNotExist(err) {
				t.Errorf("the socket is still there: %v", err)
			}
		})
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "csi.sock")
	first, err := Listen(t.Context(), "unix://"+socket)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(socket)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket is %v, %v, want mode 0660", info.Mode(), err)
	}
	if _, err := Listen(t.Context(), "unix://"+socket); err == nil || !strings.Contains(err.Error(), "another process listens") {
		t.Errorf("a second server on the socket: %v", err)
	}
	// A process that was killed leaves its socket.
	first.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Listen(t.Context(), "unix://"+socket)
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	_ = again.Close()

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), "unix://"+file); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("over a file: %v", err)
	}
	if content, err := os.ReadFile(file); err != nil || string(content) != "mine" {
		t.Errorf("the file is harmed: %q, %v", content, err)
	}
	for _, endpoint := range []string{"", "tcp://1.2.3.4:5", "unix://relative", "/path", "unix:///dir/", "unix:///" + strings.Repeat("x", 120)} {
		if _, err := Listen(t.Context(), endpoint); err == nil || !strings.Contains(err.Error(), "--endpoint") {
			t.Errorf("endpoint %q: %v", endpoint, err)
		}
	}
}

func TestHTTP(t *testing.T) {
	c := serve(t, Config{Stores: oneStore(&fakeStore{get: func(context.Context, string) (nfs.Volume, error) {
		return nfs.Volume{}, nfs.ErrNotFound
	}}), Mounter: &fakeMounts{}, NodeID: "n"})
	registration := NewRegistration(RegistrationOptions{Dir: t.TempDir(), DriverName: DefaultName})
	registry, err := c.server.NewRegistry(Build{Version: "1.2.3", Commit: "abc"}, registration.Collector())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() (bool, string) { return c.server.Serving(), "not serving" })
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	handler := NewHTTPHandler(registry, c.server.ServerCheck(), registration.Check())
	run(t, func(ctx context.Context) error { return ServeHTTP(ctx, listener, handler) })

	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	get := func(path string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+listener.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}

	if code, body := get("/healthz"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("/healthz: %d %q", code, body)
	}
	if code, body := get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "csi: ok") || !strings.Contains(body, "kubelet-registration: the kubelet has not asked") {
		t.Errorf("/readyz before the registration: %d %q", code, body)
	}
	registration.setStatus(nil)
	if code, body := get("/readyz"); code != http.StatusOK || body != "csi: ok\nkubelet-registration: ok\n" {
		t.Errorf("/readyz after the registration: %d %q", code, body)
	}

	const (
		handled = `grpc_server_handled_total{grpc_code="NotFound",grpc_method="ControllerGetVolume",grpc_service="csi.v1.Controller",grpc_type="unary"} `
		bucket  = `grpc_server_handling_seconds_count{grpc_method="ControllerGetVolume",grpc_service="csi.v1.Controller",grpc_type="unary"} `
	)
	_, before := get("/metrics")
	for _, want := range []string{
		handled + "0\n", bucket + "0\n", "go_goroutines ", "process_resident_memory_bytes ", "nfs_csi_kubelet_registered 1\n",
		`nfs_csi_build_info{commit="abc",go_version="go`, `version="1.2.3"} 1`,
	} {
		if !strings.Contains(before, want) {
			t.Errorf("/metrics does not hold %q", want)
		}
	}
	_, err = c.ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: testHandle})
	wantStatus(t, err, codes.NotFound)
	eventually(t, func() (bool, string) {
		_, after := get("/metrics")
		return strings.Contains(after, handled+"1\n") && strings.Contains(after, bucket+"1\n"), "no count of the call in /metrics"
	})

	if code, _ := get("/nothing"); code != http.StatusNotFound {
		t.Errorf("/nothing: %d", code)
	}
}
