package driver

import (
	"strings"
	"testing"
	"time"
)

func TestOptions(t *testing.T) {
	good := func() Options {
		return Options{
			Endpoint: "unix:///csi/csi.sock", DriverName: DefaultName, OperationTimeout: time.Second, WorkerIdleTimeout: time.Minute,
			Controller: ControllerOptions{InstanceID: "a", Exports: []string{"nfs.example:/srv nfsvers=4.2"}, PurgeConcurrency: 1},
			Node:       NodeOptions{NodeID: "n"},
		}
	}
	for _, tt := range []struct {
		name string
		edit func(*Options)
		want string // in the error of ValidateController or ValidateNode; "" for none
	}{
		{"good", func(*Options) {}, ""},
		{"no endpoint", func(o *Options) { o.Endpoint = "" }, "--endpoint"},
		{"TCP endpoint", func(o *Options) { o.Endpoint = "tcp://:1" }, "--endpoint"},
		{"driver name with a slash", func(o *Options) { o.DriverName = "a/b" }, "--driver-name"},
		{"long driver name", func(o *Options) { o.DriverName = strings.Repeat("x", 64) }, "--driver-name"},
		{"HTTP endpoint without port", func(o *Options) { o.HTTPEndpoint = "localhost" }, "--http-endpoint"},
		{"HTTP endpoint", func(o *Options) { o.HTTPEndpoint = "[::1]:8080" }, ""},
		{"no time", func(o *Options) { o.OperationTimeout = 0 }, "--operation-timeout"},
		{"negative idle time", func(o *Options) { o.WorkerIdleTimeout = -1 }, "--worker-idle-timeout"},
		{"bad export", func(o *Options) { o.Controller.Exports = []string{"nfs.example"} }, "--export"},
		{"no instance", func(o *Options) { o.Controller.InstanceID = "" }, "--instance-id"},
		{"negative rate", func(o *Options) { o.Controller.PurgeRate = -1 }, "--purge-rate"},
		{"no concurrency", func(o *Options) { o.Controller.PurgeConcurrency = 0 }, "--purge-concurrency"},
		{"no node id", func(o *Options) { o.Node.NodeID = "" }, "--node-id"},
		{"long node id", func(o *Options) { o.Node.NodeID = strings.Repeat("x", 257) }, "--node-id"},
		{"taint without registration", func(o *Options) { o.Node.StartupTaint = "a" }, "--startup-taint"},
		{"taint", func(o *Options) { o.Node.StartupTaint, o.Node.KubeletRegistrationDir = "a", "/b" }, ""},
		{"relative kubelet socket", func(o *Options) { o.Node.KubeletCSISocket = "csi.sock" }, "--kubelet-csi-socket"},
	} {
		o := good()
		tt.edit(&o)
		var got string
		for _, err := range []error{o.ValidateController(), o.ValidateNode()} {
			if err != nil {
				got = err.Error()
			}
		}
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
