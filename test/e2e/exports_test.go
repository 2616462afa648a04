package e2e

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestTrashIsResumed: the controllers are killed while they unlink two deleted volumes; those that
// come after them go on, with nobody calling. Only a StorageClass names the one export, and only
// a PersistentVolume the other.
func TestTrashIsResumed(t *testing.T) {
	const files = 5000
	s := newScene(t, "resumed")
	by := map[string]string{"class": s.dir, "volume": s.dir + "-by-volume"}
	s.server("mkdir -p " + by["volume"])
	s.apply(`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: resumed-by-volume, labels: {scene: resumed}}
provisioner: %s
parameters: {server: %q, share: %s}
`, driverName, s.c.Server().IPv4(), by["volume"])
	s.claim("by-class")
	s.claim("by-volume", "resumed-by-volume")
	s.claim("kept", "resumed-by-volume")
	s.bound(3)
	deleted := map[string]string{"class": s.volume("by-class"), "volume": s.volume("by-volume")}
	s.kubectl("delete", "storageclass", "resumed-by-volume")

	fill := "cd %s/%s && i=0; while [ $i -lt %d ]; do : >$i; i=$((i+1)); done"
	s.server(fmt.Sprintf("("+fill+"); "+fill, by["class"], deleted["class"], files, by["volume"], deleted["volume"], files))
	s.kubectl("delete", "pvc", "by-class", "by-volume", "--wait=false")
	s.wait("the two volumes to be deleted", func(ctx context.Context) error {
		out, err := s.c.Kubectl(ctx, "get", "pv", "--ignore-not-found", "-o", "name", deleted["class"], deleted["volume"])
		if err == nil && out != "" {
			err = fmt.Errorf("there is %s", out)
		}
		return err
	})
	_, err := s.c.Kubectl(s.ctx, "-n", namespace, "delete", "pod", "-l", "app.kubernetes.io/component=controller", "--grace-period=0", "--force")
	s.must(err)

	left := func(share string) int {
		s.t.Helper()
		n, err := strconv.Atoi(s.server("find " + share + "/.nfs-csi/trash -type f | wc -l"))
		s.must(err)
		return n
	}
	before := map[string]int{}
	s.wait("nobody to unlink any more", func(context.Context) error {
		for name, share := range by {
			last, had := before[name]
			before[name] = left(share)
			if !had || before[name] != last {
				return fmt.Errorf("of %s there are %d files, and were %d", name, before[name], last)
			}
		}
		return nil
	})
	for name, n := range before {
		if n < 1000 {
			t.Fatalf("%d files are left of the export that a %s names: killed too late to show anything", n, name)
		}
	}
	began := time.Now()
	_, err = s.c.Kubectl(s.ctx, "-n", namespace, "rollout", "status", "deployment", "-l", "app.kubernetes.io/component=controller", "--timeout=90s")
	s.must(err)
	// What another process has put into the trash lies for a minute.
	ctx, cancel := context.WithTimeout(s.ctx, 3*time.Minute)
	defer cancel()
	s.must(s.c.WaitFor(ctx, "the trash to be empty", func(context.Context) error {
		for name, share := range by {
			if n := left(share); n > 0 {
				return fmt.Errorf("on the export that a %s names there are %d files of %d", name, n, before[name])
			}
		}
		return nil
	}))
	t.Logf("%d and %d files were unlinked within %s of the restart", before["class"], before["volume"], time.Since(began).Round(time.Second))
}

// TestStartupTaint: the node plugin takes the start-up taint off its node when it is registered, and
// leaves others alone. A release of its own shows it, so that the shared one stays as it is.
func TestStartupTaint(t *testing.T) {
	const (
		name  = "taint"
		key   = "taint.nfs-csi.io/agent-not-ready"
		other = "e2e.nfs-csi.io/other"
	)
	ctx, c := onCluster(t)
	node := c.Nodes()[0].Name()
	kubectl := func(args ...string) string {
		t.Helper()
		out, err := c.Kubectl(ctx, args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	taints := func(ctx context.Context) (string, error) {
		out, err := c.Kubectl(ctx, "get", "node", node, "-o", "jsonpath={range .spec.taints[*]}{.key}:{.effect} {end}")
		return strings.TrimSpace(out), err
	}
	onlyOther := func(when string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		err := c.WaitFor(ctx, "the taint to go "+when, func(ctx context.Context) error {
			got, err := taints(ctx)
			if err == nil && got != other+":NoSchedule" {
				err = fmt.Errorf("the taints are %q", got)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, k := range []string{key, other} {
			if _, err := c.Kubectl(ctx, "taint", "node", node, k+"-"); err != nil && !strings.Contains(err.Error(), "not found") {
				t.Error(err)
			}
		}
	})
	kubectl("taint", "node", node, other+":NoSchedule", key+"=:NoSchedule")
	t.Cleanup(func() {
		if _, err := c.Helm(ctx, "uninstall", name, "--namespace", name, "--wait", "--timeout", "2m"); err != nil {
			t.Error(err)
		}
		if _, err := c.Kubectl(ctx, "delete", "namespace", name, "--wait=false"); err != nil {
			t.Error(err)
		}
	})
	_, err := c.Helm(ctx, "install", name, chart, "--namespace", name, "--create-namespace",
		"--set", "image.registry=docker.io", "--set", "image.tag="+os.Getenv("IMAGE_TAG"),
		"--set", "driverName=taint.nfs-csi.io", "--set", "controller.replicas=0",
		"--set", "node.httpPort=29813", "--set", "node.startupTaint="+key,
		"--wait", "--timeout", "3m")
	if err != nil {
		t.Fatalf("helm install: %v\n%s", err, c.Diagnose(ctx, "the second release"))
	}
	onlyOther("when the driver is registered")
	if drivers := kubectl("get", "csinode", node, "-o", "jsonpath={.spec.drivers[*].name}"); !strings.Contains(drivers, "taint.nfs-csi.io") {
		t.Errorf("the taint went before the node knew the driver: it has %q", drivers)
	}

	// As when the node is made anew under the same name.
	kubectl("taint", "node", node, key+"=again:NoSchedule")
	if err := c.Node(node).RestartKubelet(ctx); err != nil {
		t.Fatal(err)
	}
	onlyOther("when a new kubelet has registered the driver")

	// The right to patch nodes comes with the value.
	for ns, want := range map[string]string{name: "yes", namespace: "no"} {
		account := kubectl("get", "daemonset", "-n", ns, "-o", "jsonpath={.items[0].spec.template.spec.serviceAccountName}")
		// It exits with 1 for a "no".
		if got, err := c.Kubectl(ctx, "auth", "can-i", "patch", "nodes", "--as=system:serviceaccount:"+ns+":"+account); strings.TrimSpace(got) != want {
			t.Errorf("may %s in %s patch nodes: %q (%v), want %s", account, ns, got, err, want)
		}
	}
}
