package driver

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// TestRegistration plays the kubelet: it finds the socket, asks, and tells how
// it went; then the socket is removed, and it does so again.
func TestRegistration(t *testing.T) {
	dir := t.TempDir()
	logs := &logBuffer{}
	r := NewRegistration(RegistrationOptions{
		Dir: dir, DriverName: DefaultName, Endpoint: "/var/lib/kubelet/plugins/x/csi.sock",
		CheckInterval: 5 * time.Millisecond, Logger: logs.logger(),
	})
	stop := run(t, r.Serve)
	socket := filepath.Join(dir, "csi.nfs-csi.io-reg.sock")
	status := func() string {
		if err := r.Check().Check(); err != nil {
			return err.Error()
		}
		return "registered"
	}
	// kubelet asks as the kubelet's plugin watcher does: a connection for each look.
	kubelet := func(do func(context.Context, registerapi.RegistrationClient)) {
		t.Helper()
		eventually(t, func() (bool, string) {
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", socket)
			if err != nil {
				return false, err.Error()
			}
			_ = conn.Close()
			return true, ""
		})
		conn := dial(t, socket)
		defer conn.Close()
		do(t.Context(), registerapi.NewRegistrationClient(conn))
	}
	if s := status(); !strings.Contains(s, "has not asked") {
		t.Errorf("at the start: %s", s)
	}

	kubelet(func(ctx context.Context, c registerapi.RegistrationClient) {
		info, err := c.GetInfo(ctx, &registerapi.InfoRequest{})
		want := &registerapi.PluginInfo{
			Type: "CSIPlugin", Name: DefaultName, Endpoint: "/var/lib/kubelet/plugins/x/csi.sock", SupportedVersions: []string{"1.0.0"},
		}
		if diff := cmp.Diff(want, info, protocmp.Transform()); err != nil || diff != "" {
			t.Errorf("GetInfo: %v (-want +got):\n%s", err, diff)
		}
		if _, err := c.NotifyRegistrationStatus(ctx, &registerapi.RegistrationStatus{Error: "no such node"}); err != nil {
			t.Error(err)
		}
	})
	if s := status(); !strings.Contains(s, "refused the driver: no such node") {
		t.Errorf("after a refusal: %s", s)
	}
	registered := func() bool {
		select {
		case <-r.Registered():
			return true
		default:
			return false
		}
	}
	if registered() {
		t.Error("registered after a refusal")
	}
	register := func(ctx context.Context, c registerapi.RegistrationClient) {
		if _, err := c.NotifyRegistrationStatus(ctx, &registerapi.RegistrationStatus{PluginRegistered: true}); err != nil {
			t.Error(err)
		}
	}
	kubelet(register)
	if s := status(); s != "registered" {
		t.Errorf("after the registration: %s", s)
	}
	if !registered() || registered() {
		t.Error("not registered once")
	}

	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() (bool, string) { s := status(); return strings.Contains(s, "was removed"), s })
	kubelet(register)
	if s := status(); s != "registered" {
		t.Errorf("after the second registration: %s", s)
	}
	if !registered() {
		t.Error("the second registration was not told")
	}

	stop()
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}
	for _, want := range []string{"The kubelet registered the driver", "Registration failed", "was removed"} {
		if !strings.Contains(logs.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, logs.String())
		}
	}
}

// TestRegistrationWithoutDirectory: a wrong directory is an error at once.
func TestRegistrationWithoutDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "missing")
	err := NewRegistration(RegistrationOptions{Dir: dir, DriverName: DefaultName}).Serve(t.Context())
	if err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("Serve: %v", err)
	}
}
