package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/test/cluster"
)

// deployment has one pod, on the node if that takes pods, and leaves a node that is gone at once.
const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: app}
spec:
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      terminationGracePeriodSeconds: 2
      affinity:
        nodeAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
          - weight: 100
            preference: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%s]}]}
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 0}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 0}
      containers:
      - name: main
        image: ` + cluster.BusyboxImage + `
        # The claim has what every earlier pod wrote.
        command: [sh, -c, "trap exit TERM; echo $NODE >>/data/nodes; sleep 3600 & wait"]
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
`

// runsOn waits until the deployment's pod runs on the node and the volume has the names of all
// nodes where it ran.
func (s *scene) runsOn(node string, nodes ...string) {
	s.t.Helper()
	s.wait("the pod to run on "+node, func(ctx context.Context) error {
		out, err := s.c.Kubectl(ctx, "get", "pods", "-n", s.name, "-l", "app=app", "--field-selector", "spec.nodeName="+node+",status.phase=Running",
			"-o", "jsonpath={.items[*].metadata.name}")
		if err == nil && out == "" {
			err = errors.New("it does not")
		}
		return err
	})
	s.wait("the pod's line in the volume", func(ctx context.Context) error {
		want := strings.Join(nodes, " ")
		if got := strings.Join(strings.Fields(onServer(ctx, s.t, s.c, "cat "+s.dir+"/"+s.volume("data")+"/nodes")), " "); got != want {
			return fmt.Errorf("it has %q, want %q", got, want)
		}
		return nil
	})
}

// TestNodeDrained: a drain moves the pod with its volume to the other node, and leaves nothing behind.
func TestNodeDrained(t *testing.T) {
	s := newScene(t, "node-drained")
	stays, drained := s.c.Nodes()[0], s.c.Nodes()[1]
	s.claim("data")
	s.apply(deployment, drained.Name())
	s.runsOn(drained.Name(), drained.Name())
	w := s.writer("writer", stays.Name(), "data")
	plugin := s.plugin(drained.Name())

	began := time.Now()
	t.Cleanup(func() { s.kubectl("uncordon", drained.Name()) })
	s.kubectl("drain", drained.Name(), "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=90s")
	t.Logf("drained in %v", time.Since(began).Round(time.Second))
	s.runsOn(stays.Name(), drained.Name(), stays.Name())
	s.clean(drained, s.volume("data"))
	w.check(hiccup)

	s.kubectl("uncordon", drained.Name())
	if now := s.plugin(drained.Name()); now.Metadata.UID != plugin.Metadata.UID {
		t.Errorf("the drain replaced the plugin %s by %s", plugin.Metadata.Name, now.Metadata.Name)
	}
	s.partsReady(controllers, 2)
	s.reader("after", drained.Name(), "data", "nodes")
}

// TestNodeLost: the pod of a node that lost its power runs on the other node; the node comes back
// clean and useful.
func TestNodeLost(t *testing.T) {
	s := newScene(t, "node-lost")
	stays, lost := s.c.Nodes()[0], s.c.Nodes()[1]
	s.claim("data")
	s.apply(deployment, lost.Name())
	s.runsOn(lost.Name(), lost.Name())
	s.reader("single", lost.Name(), "data", "nodes")
	w := s.writer("writer", stays.Name(), "data")
	volume := s.volume("data")

	began := time.Now()
	back := false
	t.Cleanup(func() {
		if !back {
			s.must(lost.Restart(s.ctx))
		}
	})
	// The kubelet does not sync what it writes about a pod's volumes. Of a volume that it mounted in
	// the last seconds before a power failure it knows nothing, and leaves its directory for good.
	_, err := lost.Output(s.ctx, "sync", "-f", "/var/lib/kubelet")
	s.must(err)
	s.must(lost.Kill())
	s.claim("meanwhile")
	s.bound(2)
	t.Logf("a claim was bound %v after the node's end", time.Since(began).Round(time.Second))
	s.must(s.c.WaitNode(s.ctx, lost.Name(), false))
	s.runsOn(stays.Name(), lost.Name(), stays.Name())
	t.Logf("the pod runs on the other node after %v", time.Since(began).Round(time.Second))
	s.kubectl("delete", "pod", "single", "--wait=false")
	w.check(hiccup)

	s.must(lost.Restart(s.ctx))
	back = true
	s.heard(lost)
	s.kubectl("wait", "--for=delete", "pod/single", "--timeout=60s")
	s.clean(lost, volume)
	s.partsReady(plugins, 2)
	s.partsReady(controllers, 2)
	s.reader("after", lost.Name(), "data", "nodes")
	if left := s.kubectl("get", "volumeattachments", "-o", "name"); left != "" {
		t.Errorf("something was attached: %s", left)
	}
}
