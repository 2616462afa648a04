// Package e2e tests the driver on a real Kubernetes cluster, installed with Helm
// as the README says: claims, pods on two nodes, and what the NFS server then
// holds. It takes root, the image of `make image`, and, the first time, half an
// hour to build Kubernetes:
//
//	make image && E2E=1 go test -v ./test/e2e
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/test/cluster"
	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

const (
	share   = "/srv/data"
	image   = "../../out/image.tar"
	chart   = "../../charts/nfs-csi-driver"
	release = "nfs-csi"
)

// shared is the cluster that all tests use, set by TestMain.
var shared *cluster.Cluster

func TestMain(m *testing.M) {
	if os.Getenv("E2E") == "" {
		os.Exit(m.Run())
	}
	os.Exit(runOnCluster(m))
}

func runOnCluster(m *testing.M) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c, err := cluster.Start(ctx, cluster.Options{
		Name:    "e2e",
		Log:     os.Stderr,
		Exports: []lab.ExportSpec{{Path: share, FS: lab.XFS, SizeMB: 2048, Options: "rw,sync,no_subtree_check,no_root_squash,insecure"}},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the cluster:", err)
		return 1
	}
	shared = c
	code := 1
	if err := install(ctx, c); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	if code != 0 {
		fmt.Fprintln(os.Stderr, c.Diagnose(ctx, "at the end"))
	}
	if err := c.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "close the cluster:", err)
		return 1
	}
	return code
}

// install brings the images to the nodes and installs the chart.
func install(ctx context.Context, c *cluster.Cluster) error {
	if err := c.LoadImage(ctx, image); err != nil {
		return fmt.Errorf("load %s, which `make image` makes: %w", image, err)
	}
	if err := c.LoadSidecars(ctx, "csi-provisioner"); err != nil {
		return err
	}
	tag := os.Getenv("IMAGE_TAG")
	if tag == "" {
		return fmt.Errorf("set IMAGE_TAG to the tag of the image in %s", image)
	}
	_, err := c.Helm(ctx, "install", release, chart, "--namespace", "nfs-csi", "--create-namespace",
		"--set", "image.registry=docker.io", "--set", "image.tag="+tag,
		"--set", "storageClasses[0].name=nfs",
		"--set", "storageClasses[0].server="+c.Server().IPv4(),
		"--set", "storageClasses[0].share="+share,
		"--wait", "--timeout", "3m")
	if err != nil {
		return fmt.Errorf("helm install: %w\n%s", err, c.Diagnose(ctx, "helm install"))
	}
	return nil
}

func onCluster(t *testing.T) (context.Context, *cluster.Cluster) {
	t.Helper()
	if shared == nil {
		t.Skip("needs a cluster (root, User Mode Linux): make image && E2E=1 IMAGE_TAG=... go test ./test/e2e")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx, shared
}

const claim = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %[1]s}
spec:
  accessModes: [%[2]s]
  storageClassName: nfs
  resources: {requests: {storage: 1Gi}}
`

const pod = `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  nodeName: %[2]s
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: %[4]s
    command: [sleep, "3600"]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes:
  - name: data
    persistentVolumeClaim: {claimName: %[3]s}
`

func apply(ctx context.Context, t *testing.T, c *cluster.Cluster, manifest string, args ...any) {
	t.Helper()
	if err := c.Apply(ctx, fmt.Sprintf(manifest, args...)); err != nil {
		t.Fatal(err)
	}
}

// startPod runs a pod on the node with the claim at /data.
func startPod(ctx context.Context, t *testing.T, c *cluster.Cluster, name, node, claim string) {
	t.Helper()
	apply(ctx, t, c, pod, name, node, claim, cluster.BusyboxImage)
	t.Cleanup(func() { remove(ctx, t, c, "pod", name) })
	if err := c.WaitPod(ctx, "default", name); err != nil {
		t.Fatal(err)
	}
}

func remove(ctx context.Context, t *testing.T, c *cluster.Cluster, kind, name string) {
	t.Helper()
	if _, err := c.Kubectl(ctx, "delete", kind, name, "--ignore-not-found", "--wait", "--timeout=60s"); err != nil {
		t.Error(err)
	}
}

func sh(ctx context.Context, t *testing.T, c *cluster.Cluster, pod, script string) string {
	t.Helper()
	out, err := c.Exec(ctx, "default", pod, "sh", "-c", script)
	if err != nil {
		t.Fatalf("in pod %s: %v", pod, err)
	}
	return strings.TrimSpace(out)
}

func onServer(ctx context.Context, t *testing.T, c *cluster.Cluster, script string) string {
	t.Helper()
	out, err := c.Server().Output(ctx, "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// TestReadWriteMany: a claim becomes a directory that pods on both nodes share,
// and goes with the claim.
func TestReadWriteMany(t *testing.T) {
	ctx, c := onCluster(t)
	apply(ctx, t, c, claim, "shared", "ReadWriteMany")
	t.Cleanup(func() { remove(ctx, t, c, "pvc", "shared") })
	startPod(ctx, t, c, "one", c.Nodes()[0].Name(), "shared")
	startPod(ctx, t, c, "two", c.Nodes()[1].Name(), "shared")

	sh(ctx, t, c, "one", "echo first >/data/file")
	sh(ctx, t, c, "two", "cat /data/file >/dev/null; echo second >>/data/file; mv /data/file /data/renamed")
	if got := sh(ctx, t, c, "one", "ls /data; cat /data/renamed"); got != "renamed\nfirst\nsecond" {
		t.Errorf("the first pod sees %q", got)
	}
	volume, err := c.Kubectl(ctx, "get", "pvc", "shared", "-o", "jsonpath={.spec.volumeName}")
	if err != nil {
		t.Fatal(err)
	}
	if got := onServer(ctx, t, c, "cat "+share+"/"+strings.TrimSpace(volume)+"/renamed"); got != "first\nsecond" {
		t.Errorf("the server holds %q", got)
	}

	remove(ctx, t, c, "pod", "one")
	remove(ctx, t, c, "pod", "two")
	remove(ctx, t, c, "pvc", "shared")
	err = c.WaitFor(ctx, "the volume's directory and record to go", func(ctx context.Context) error {
		if left := onServer(ctx, t, c, "ls "+share+" "+share+"/.nfs-csi/volumes | grep pvc- || true"); left != "" {
			return fmt.Errorf("there are %s", left)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestPluginRestart: a pod goes on writing while the node plugin is killed, and a
// new pod mounts when it is back.
func TestPluginRestart(t *testing.T) {
	ctx, c := onCluster(t)
	node := c.Nodes()[0].Name()
	apply(ctx, t, c, claim, "restart", "ReadWriteMany")
	t.Cleanup(func() { remove(ctx, t, c, "pvc", "restart") })
	startPod(ctx, t, c, "writer", node, "restart")
	if _, err := c.Kubectl(ctx, "-n", "nfs-csi", "delete", "pod", "-l", "app.kubernetes.io/component=node", "--field-selector", "spec.nodeName="+node, "--wait"); err != nil {
		t.Fatal(err)
	}
	sh(ctx, t, c, "writer", "echo still here >/data/file && sync /data/file")
	startPod(ctx, t, c, "after", node, "restart")
	if got := sh(ctx, t, c, "after", "cat /data/file"); got != "still here" {
		t.Errorf("the new pod reads %q", got)
	}
}
