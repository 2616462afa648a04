package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
)

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
