// Package e2e tests the driver on a real Kubernetes cluster, installed with Helm
// as the README says: claims, pods on two nodes, and what the NFS server then
// holds.
//
// Cases that stop or replace something of the cluster run alone, one after the other.
// Those that keep to a scene of their own are parallel, and run when the others have.
//
// `make e2e` runs it. One case is
//
//	make image && E2E=1 IMAGE_TAG=$(git describe --tags --always --dirty) go test -v -run TestReadWriteMany ./test/e2e
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
	share      = "/srv/data"
	quickShare = "/srv/memory" // in the server's memory
	image      = "../../out/image.tar"
	chart      = "../../charts/nfs-csi-driver"
	release    = "nfs-csi-driver"
	namespace  = "nfs-csi" // of the release
	driverName = "csi.nfs-csi.io"
	// exportOptions: pods connect from ports above 1023.
	exportOptions = "rw,sync,no_subtree_check,no_root_squash,insecure"
	// caseTimeout bounds one case, its end included.
	caseTimeout = 8 * time.Minute
)

// shared is what all cases use, set by TestMain.
var shared struct {
	*cluster.Cluster
	// ctx ends when the run is interrupted.
	ctx context.Context
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(fillEnv); dir != "" {
		if err := fillDirectory(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv("E2E") == "" {
		os.Exit(m.Run())
	}
	os.Exit(runOnCluster(m))
}

func runOnCluster(m *testing.M) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c, err := cluster.Start(ctx, cluster.Options{
		Name: "e2e",
		Log:  os.Stderr,
		Exports: []lab.ExportSpec{
			{Path: share, FS: lab.XFS, SizeMB: 2048, Options: exportOptions},
			{Path: quickShare, FS: lab.Tmpfs, SizeMB: 64, Options: exportOptions},
		},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the cluster:", err)
		return 1
	}
	shared.Cluster, shared.ctx = c, ctx
	code := 1
	if err := install(ctx, c); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	if code != 0 && ctx.Err() == nil {
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
	if err := c.LoadSidecars(ctx, "csi-provisioner", "csi-resizer", "csi-snapshotter"); err != nil {
		return err
	}
	if err := c.InstallSnapshots(ctx); err != nil {
		return err
	}
	tag := os.Getenv("IMAGE_TAG")
	if tag == "" {
		return fmt.Errorf("set IMAGE_TAG to the tag of the image in %s", image)
	}
	_, err := c.Helm(ctx, "install", release, chart, "--namespace", namespace, "--create-namespace",
		"--set", "image.registry=docker.io,image.tag="+tag,
		"--set", "storageClasses[0].name=nfs,storageClasses[0].server="+c.Server().IPv4()+",storageClasses[0].share="+share,
		"--set", "controller.snapshotter.enabled=true",
		"--wait", "--timeout", "3m")
	if err != nil {
		return fmt.Errorf("helm install: %w\n%s", err, c.Diagnose(ctx, "helm install"))
	}
	return nil
}

// onCluster returns the cluster and the context of a case.
func onCluster(t *testing.T) (context.Context, *cluster.Cluster) {
	t.Helper()
	if shared.Cluster == nil {
		t.Skip("needs a cluster (root, User Mode Linux): make e2e")
	}
	ctx, cancel := context.WithTimeout(shared.ctx, caseTimeout)
	t.Cleanup(cancel)
	if err := ctx.Err(); err != nil {
		t.Fatal("the run was interrupted:", err)
	}
	guests := []*lab.Guest{shared.Server().Guest}
	for _, n := range shared.Nodes() {
		guests = append(guests, n.Guest)
	}
	for _, g := range guests {
		if !g.Running() {
			t.Fatalf("nothing can be shown without guest %s, which has ended", g.Name())
		}
	}
	return ctx, shared.Cluster
}

func onServer(ctx context.Context, t *testing.T, c *cluster.Cluster, script string) string {
	t.Helper()
	out, err := c.Server().Output(ctx, "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}
