package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/nfs-csi/nfs-csi-driver/pkg/driver"
)

func TestMain(m *testing.M) {
	// The pools execute this binary for their workers.
	if len(os.Args) == 2 && os.Args[1] == "worker" {
		os.Exit(runWorker())
	}
	if len(os.Args) == 2 && os.Args[1] == "show-slack" {
		if err := showSlack(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestCommandLine(t *testing.T) {
	for _, tt := range []struct {
		name string
		args string
		env  map[string]string
		code int
		want string // on stdout for code 0, else on stderr
	}{
		{"no command", "", nil, 2, "controller, node, ctl or version"},
		{"unknown command", "serve", nil, 2, `unknown command "serve"`},
		{"unknown flag", "node --nodeid=x", nil, 2, "unknown flag: --nodeid"},
		{"argument", "controller now", nil, 2, `unexpected argument "now"`},
		{"no node id", "node", nil, 2, "--node-id is missing"},
		{"bad endpoint", "node --node-id=n --endpoint=tcp://:1", nil, 2, `--endpoint "tcp://:1" is not of the form unix:///`},
		{"bad environment", "node --node-id=n", map[string]string{"NFS_CSI_OPERATION_TIMEOUT": "soon"}, 2, "NFS_CSI_OPERATION_TIMEOUT"},
		{"bad export in the environment", "controller", map[string]string{"NFS_CSI_EXPORT": "a:/b\nc"}, 2, `export "c" is not of the form server:/share`},
		{"bad log format", "node --node-id=n --log-format=xml", nil, 2, `--log-format "xml"`},
		{"bad verbosity", "node --node-id=n -v=99", nil, 2, `--v "99"`},
		{"endpoint that cannot be", "node --node-id=n --endpoint=unix:///nonexistent/csi.sock", nil, 1, "/nonexistent/csi.sock"},
		{"taint without registration", "node --node-id=n --startup-taint=a", nil, 2, "--startup-taint needs --kubelet-registration-dir"},
		{"taint without a cluster", "node --node-id=n --startup-taint=a --kubelet-registration-dir=/x", nil, 2, "--startup-taint: not in a Kubernetes cluster; set --kubeconfig"},
		{"no such kubeconfig", "controller", map[string]string{"NFS_CSI_KUBECONFIG": "/nonexistent"}, 2, "--kubeconfig /nonexistent: "},
		{"admin endpoint", "controller --admin-endpoint=/run/x", nil, 2, `--admin-endpoint "/run/x" is not of the form unix:///`},
		{"one socket for two", "controller --admin-endpoint=unix:///a --endpoint=unix:///a", nil, 2, "a socket of its own"},
		{"ctl without a command", "ctl", nil, 2, "which one: volumes, snapshots, trash"},
		{"ctl with an unknown command", "ctl volume", nil, 2, `unknown command "volume"`},
		{"ctl with a bad output", "ctl volumes -o yaml", nil, 2, `--output "yaml" is none of table, wide, json`},
		{"ctl with an argument", "ctl trash now", nil, 2, `unexpected argument "now"`},
		{"ctl without a controller", "ctl orphans --socket=/nonexistent", nil, 1, "no controller answers"},
		{"ctl without an export", "ctl volumes --path=/nonexistent", nil, 1, "--path: stat /nonexistent: no such file or directory"},
		{"adopt nothing", "ctl adopt --name=x", nil, 2, "it takes one argument, and 0 are given"},
		{"restore without a name", "ctl restore x", nil, 2, "--name is missing"},
		{"adopt without a name", "ctl adopt a/b", nil, 2, "--name is missing"},
		{"adopt with a bad size", "ctl adopt a/b --name=x --capacity=big", nil, 2, `--capacity: "big" is not a size`},
		{"adopt with a bad claim", "ctl adopt a/b --name=x --claim=pvc", nil, 2, `--claim "pvc" is not namespace/name`},
		{"adopt by path without export", "ctl adopt a/b --name=x --path=/tmp", nil, 2, "--path needs --export"},
		{"help of ctl", "ctl --help", nil, 0, "orphans  "},
		{"help of purge", "ctl purge --help", nil, 0, "--purge-rate"},
		{"help", "--help", nil, 0, "controller  "},
		{"help of node", "node --help", nil, 0, "$NODE_ID, $KUBE_NODE_NAME]"},
		{"help of controller", "controller --help", nil, 0, "nfs-csi-driver controller --export="},
		{"version", "version", nil, 0, "nfs-csi-driver "},
		{"bad version output", "version -o yaml", nil, 2, `--output "yaml"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("KUBERNETES_SERVICE_HOST", "")
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			var stdout, stderr buffer
			code := execute(t.Context(), strings.Fields(tt.args), &stdout, &stderr)
			out := &stderr
			if tt.code == 0 {
				out = &stdout
			}
			if code != tt.code || !strings.Contains(out.String(), tt.want) {
				t.Errorf("exit %d, want %d and %q; stdout:\n%s\nstderr:\n%s", code, tt.code, tt.want, stdout.String(), stderr.String())
			}
		})
	}
}

func TestVersionJSON(t *testing.T) {
	var stdout, stderr buffer
	if code := execute(t.Context(), []string{"version", "--output", "json"}, &stdout, &stderr); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr.String())
	}
	var got map[string]string
	if err := json.Unmarshal([]byte(stdout.String()), &got); err != nil {
		t.Fatal(err)
	}
	if got["version"] == "" || got["commit"] == "" || !strings.HasPrefix(got["go"], "go1.") || len(got) != 3 {
		t.Errorf("version: %v", got)
	}
}

func TestEnvironment(t *testing.T) {
	parse := func(args ...string) settings {
		t.Helper()
		var s settings
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		for _, g := range append(s.commonGroups(), s.controllerGroup(), s.nodeGroup()) {
			flags.AddFlagSet(g.flags)
		}
		if err := flags.Parse(args); err != nil {
			t.Fatal(err)
		}
		if err := applyEnvironment(flags); err != nil {
			t.Fatal(err)
		}
		return s
	}
	t.Setenv("NFS_CSI_DRIVER_NAME", "from.environment")
	t.Setenv("NFS_CSI_HTTP_ENDPOINT", ":1")
	t.Setenv("NFS_CSI_EXPORT", "a:/b vers=3\n\n c:/d \n")
	t.Setenv("CSI_ENDPOINT", "unix:///spec.sock")
	t.Setenv("KUBE_NODE_NAME", "third")
	t.Setenv("NODE_ID", "second")
	s := parse("--http-endpoint=:2")
	got := []string{s.DriverName, s.HTTPEndpoint, s.Endpoint, s.Node.NodeID, strings.Join(s.Controller.Exports, "|")}
	want := []string{"from.environment", ":2", "unix:///spec.sock", "second", "a:/b vers=3|c:/d"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	t.Setenv("NFS_CSI_NODE_ID", "first")
	t.Setenv("NFS_CSI_ENDPOINT", "unix:///ours.sock")
	if s := parse("--export=x:/y"); s.Node.NodeID != "first" || s.Endpoint != "unix:///ours.sock" || !cmp.Equal(s.Controller.Exports, []string{"x:/y"}) {
		t.Errorf("settings: %+v", s)
	}
}

// TestRun starts each process with its workers, asks it something and ends it.
func TestRun(t *testing.T) {
	for _, role := range []string{"controller", "node"} {
		t.Run(role, func(t *testing.T) {
			dir := t.TempDir()
			socket := filepath.Join(dir, "csi.sock")
			asked, kubeconfig := apiServer(t)
			args := []string{role, "--endpoint=unix://" + socket, "--http-endpoint=127.0.0.1:0", "--log-format=json", "-v=5", "--kubeconfig=" + kubeconfig}
			if role == "node" {
				t.Setenv("NODE_ID", "n")
				args = append(args, "--kubelet-registration-dir="+dir, "--startup-taint=a")
			}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var stdout, stderr buffer
			ended := make(chan int, 1)
			go func() { ended <- execute(ctx, args, &stdout, &stderr) }()

			conn, err := grpc.NewClient("passthrough:///csi", grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
					var d net.Dialer
					return d.DialContext(ctx, "unix", socket)
				}))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			wait, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			info, err := csi.NewIdentityClient(conn).GetPluginInfo(wait, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
			if err != nil || info.GetName() != driver.DefaultName || info.GetVendorVersion() == "" {
				t.Fatalf("GetPluginInfo: %v, %v; stderr:\n%s", info, err, stderr.String())
			}
			if role == "node" {
				info, err := csi.NewNodeClient(conn).NodeGetInfo(wait, &csi.NodeGetInfoRequest{})
				if err != nil || info.GetNodeId() != "n" {
					t.Errorf("NodeGetInfo: %v, %v", info, err)
				}
				if _, err := os.Lstat(filepath.Join(dir, driver.DefaultName+"-reg.sock")); err != nil {
					t.Errorf("no registration: %v", err)
				}
				register(t, filepath.Join(dir, driver.DefaultName+"-reg.sock"))
				waitFor(t, asked, "/api/v1/nodes/n")
			} else {
				list, err := csi.NewControllerClient(conn).ListVolumes(wait, &csi.ListVolumesRequest{})
				if err != nil || len(list.GetEntries()) > 0 {
					t.Errorf("ListVolumes: %v, %v", list, err)
				}
				waitFor(t, asked, "/apis/storage.k8s.io/v1/storageclasses")
				waitFor(t, asked, "/api/v1/persistentvolumes")
			}

			stop()
			select {
			case code := <-ended:
				if code != 0 {
					t.Errorf("exit %d; stderr:\n%s", code, stderr.String())
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("does not end; stderr:\n%s", stderr.String())
			}
			for line := range strings.Lines(stderr.String()) {
				if !json.Valid([]byte(line)) {
					t.Errorf("a line of the log is no JSON: %s", line)
				}
			}
			left, err := filepath.Glob(filepath.Join(dir, "*.sock"))
			if err != nil || len(left) > 0 {
				t.Errorf("sockets left: %v, %v", left, err)
			}
		})
	}
}

// apiServer is one that refuses everything, which must not keep the driver from
// its work. asked reports whether a path was asked for.
func apiServer(t *testing.T) (asked func(path string) bool, kubeconfig string) {
	t.Helper()
	var paths sync.Map
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		paths.Store(r.URL.Path, nil)
		w.WriteHeader(http.StatusForbidden)
	}))
	t.Cleanup(server.Close)
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("current-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n"+
		"clusters: [{name: c, cluster: {server: %q}}]\nusers: [{name: u, user: {token: x}}]\n", server.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return func(path string) bool { _, ok := paths.Load(path); return ok }, kubeconfig
}

func waitFor(t *testing.T, asked func(string) bool, path string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !asked(path) {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("the API server was not asked for %s within 20 s", path)
		}
	}
}

// register tells the driver what the kubelet does once it has registered it.
func register(t *testing.T, socket string) {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err = registerapi.NewRegistrationClient(conn).NotifyRegistrationStatus(ctx, &registerapi.RegistrationStatus{PluginRegistered: true}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
}
