package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nfs-csi/nfs-csi-driver/test/cluster"
)

// TestControllerKilled: however the leading controller ends while it makes volumes, every claim gets
// exactly one directory and one record.
func TestControllerKilled(t *testing.T) {
	s := newScene(t, "controller-killed")
	s.claim("first")
	s.bound(1)
	total := 1
	for _, end := range []struct {
		how string
		end func(part)
	}{
		// It starts again in place and takes its lease up.
		{"killed", s.kill},
		// It may end in its own time while the other replica is the leader already.
		{"deleted by force", s.forceDelete},
	} {
		leader := s.leader()
		before := s.creating(leader)
		const claims = 20
		var manifests strings.Builder
		for i := range claims {
			fmt.Fprintf(&manifests, sceneClaim, fmt.Sprintf("claim-%d", total+i), s.name)
		}
		s.whileFrozen(func() {
			s.apply("%s", manifests.String())
			s.wait("all volumes to be under way", func(context.Context) error {
				if n := s.creating(leader) - before; n < claims {
					return fmt.Errorf("%d are", n)
				}
				return nil
			})
			end.end(leader)
		})
		total += claims
		volumes := s.bound(total)
		t.Logf("all %d claims are bound after the controller was %s", total, end.how)
		s.partsReady(controllers, 2, leader)

		got := s.stored()
		if diff := cmp.Diff(volumes, got.directories); diff != "" {
			t.Errorf("%s: directories (-volumes +server):\n%s", end.how, diff)
		}
		if len(got.records) != total || len(got.claims) != total {
			t.Errorf("%s: %d volumes have %d records and %d claimed directories: %v", end.how, total, len(got.records), len(got.claims), got)
		}
	}
}

// whileFrozen does something while the NFS server stands still, and lets it go on.
func (s *scene) whileFrozen(do func()) {
	s.t.Helper()
	s.must(s.c.Server().Freeze())
	defer func() {
		if err := s.c.Server().Thaw(); err != nil {
			s.t.Error(err)
		}
	}()
	do()
}

// metrics returns what a controller says at /metrics.
func (s *scene) metrics(controller part) string {
	s.t.Helper()
	// The API server connects to the pod.
	out, err := s.c.Kubectl(s.ctx, "get", "--raw", "/api/v1/namespaces/"+namespace+"/pods/"+controller.Metadata.Name+":8080/proxy/metrics")
	s.must(err)
	return out
}

// creating returns how many CreateVolume calls the controller has begun and not ended.
func (s *scene) creating(controller part) int {
	s.t.Helper()
	count := 0
	for line := range strings.Lines(s.metrics(controller)) {
		if !strings.Contains(line, `grpc_method="CreateVolume"`) {
			continue
		}
		f := strings.Fields(line)
		n, err := strconv.Atoi(f[len(f)-1])
		switch {
		case strings.HasPrefix(line, "grpc_server_started_total") && err == nil:
			count += n
		case strings.HasPrefix(line, "grpc_server_handled_total") && err == nil:
			count -= n
		}
	}
	return count
}

// TestPluginKilled: a pod goes on writing while its node's plugin crashes and while it is replaced;
// then pods come and go again.
func TestPluginKilled(t *testing.T) {
	s := newScene(t, "plugin-killed")
	node := s.c.Nodes()[0]
	s.claim("data")
	w := s.writer("writer", node.Name(), "data")
	s.reader("before", node.Name(), "data", w.pod)
	for _, end := range []struct {
		pod string
		end func(part)
	}{
		{"after-kill", s.kill},
		{"after-delete", s.forceDelete},
	} {
		plugin := s.plugin(node.Name())
		end.end(plugin)
		s.pluginReady(node.Name(), plugin)
		s.reader(end.pod, node.Name(), "data", w.pod)
	}
	s.kubectl("delete", "pod", "before", "--wait", "--timeout=60s")
	w.check(hiccup)
	if got := s.mounts(node, s.volume("data")); len(got) != 4 {
		t.Errorf("three pods have the volume at %q, want it staged once and published thrice", got)
	}
}

// TestKubeletRestarted: the driver is registered again whatever restarts first, kubelet or plugin,
// and pods never notice.
func TestKubeletRestarted(t *testing.T) {
	s := newScene(t, "kubelet-restarted")
	node := s.c.Nodes()[0]
	s.claim("data")
	w := s.writer("writer", node.Name(), "data")
	s.reader("gone", node.Name(), "data", w.pod)
	for i, restart := range []struct {
		name string
		do   func(plugin part)
	}{
		{"the kubelet", func(part) { s.must(node.RestartKubelet(s.ctx)) }},
		{"the plugin, then the kubelet", func(plugin part) {
			s.forceDelete(plugin)
			s.must(node.RestartKubelet(s.ctx))
		}},
		{"the kubelet, then the plugin", func(plugin part) {
			s.must(node.RestartKubelet(s.ctx))
			s.forceDelete(plugin)
		}},
		{"the plugin without a kubelet", func(plugin part) {
			s.must(node.StopKubelet(s.ctx))
			s.kubectl("delete", "pod", "gone", "--wait=false")
			s.kill(plugin)
			s.must(node.StartKubelet(s.ctx))
		}},
	} {
		plugin := s.plugin(node.Name())
		restart.do(plugin)
		// Until the kubelet speaks again the API server shows what was.
		s.heard(node)
		t.Logf("restarted: %s", restart.name)
		s.reader(fmt.Sprintf("after-%d", i), node.Name(), "data", w.pod)
	}
	s.kubectl("wait", "--for=delete", "pod/gone", "--timeout=60s")
	w.check(hiccup)
	if got := s.mounts(node, s.volume("data")); len(got) != 6 {
		t.Errorf("five pods have the volume at %q, want it staged once and published five times", got)
	}
}

// heard waits until the node's kubelet answers and the node is ready.
func (s *scene) heard(node *cluster.Node) {
	s.t.Helper()
	s.wait("the kubelet of "+node.Name(), func(ctx context.Context) error {
		_, err := s.c.Kubectl(ctx, "get", "--raw", "/api/v1/nodes/"+node.Name()+"/proxy/healthz")
		return err
	})
	s.must(s.c.WaitNode(s.ctx, node.Name(), true))
}
