package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/test/cluster"
)

// plainPod has no volume.
const plainPod = `
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  nodeName: %s
  restartPolicy: Never
  containers: [{name: main, image: %s, command: ["true"]}]
`

// lookScript looks for names that no cache knows: without the server it hangs at once.
const lookScript = `trap exit TERM
i=0
while ! ls /data/none-$i 2>/dev/null; do
	i=$((i+1))
	usleep 100000
done`

// TestServerDead: while the NFS server is dead, pods that wait for it can be deleted, the node takes
// other pods, and claims and pods that need it say so. When it is back, all goes on.
func TestServerDead(t *testing.T) {
	s := newScene(t, "server-dead")
	node := s.c.Nodes()[0]
	server := s.c.Server()
	s.claim("data")
	w := s.writer("writer", node.Name(), "data")
	s.writer("stuck", node.Name(), "data")
	s.apply(podManifest, "victim", node.Name(), lookScript, "data")
	s.podReady("victim")

	t.Cleanup(func() { _ = server.StartNFS(context.WithoutCancel(s.ctx)) })
	s.must(server.StopNFS(s.ctx))
	s.claim("meanwhile")
	s.wait("the pods to hang", func(context.Context) error {
		hang, err := node.Output(s.ctx, "sh", "-c", "ps axwwo stat,wchan:24,args | grep '^D.*/data/'; true")
		for _, want := range []string{"ls /data/none", "sync", "sync"} {
			before, after, found := strings.Cut(hang, want)
			if err == nil && !found {
				err = fmt.Errorf("no process hangs in %s", want)
			}
			hang = before + after
		}
		return err
	})
	began := time.Now()
	s.kubectl("delete", "pod", "victim", "--wait", "--timeout=60s")
	t.Logf("the pod was gone %v after its delete", time.Since(began).Round(time.Second))
	// Linux lets no process go, even with SIGKILL, that waits for its own data to be written to a hard
	// mount. So this pod must go with the server's return only.
	s.kubectl("delete", "pod", "stuck", "--wait=false")
	s.apply(podManifest, "late", node.Name(), waits, "data")
	s.apply(plainPod, node.Name(), cluster.BusyboxImage)
	s.podReady("plain")
	s.event("meanwhile", "ProvisioningFailed", server.IPv4())
	s.event("late", "FailedMount", server.IPv4())

	s.must(server.StartNFS(s.ctx))
	began = time.Now()
	s.bound(2)
	s.podReady("late")
	s.kubectl("wait", "--for=delete", "pod/stuck", "--timeout=60s")
	t.Logf("all was well %v after the server was back", time.Since(began).Round(time.Second))
	w.check(patience)
}
