// Command sanity runs csi-sanity against the built driver on real NFS: the
// controller and a node plugin in one client guest of the lab, a kernel NFS
// server in another. No test is skipped or focused here; what the driver does
// not advertise, csi-sanity skips by itself. The JUnit report is out/sanity.xml.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
	"github.com/nfs-csi/nfs-csi-driver/test/testbed"
)

const (
	budget        = 20 * time.Minute
	share         = "/srv/xfs"
	sanityPackage = "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"
	report        = "sanity.xml"
)

func main() { testbed.Main("sanity", budget, run) }

func run(ctx context.Context) (err error) {
	if err := os.MkdirAll("out", 0o755); err != nil {
		return err
	}
	bed, err := testbed.Start(ctx, testbed.Options{
		Name:     "sanity",
		Clients:  1,
		Exports:  []lab.ExportSpec{{Path: share, FS: lab.XFS, SizeMB: 4096}},
		Log:      os.Stderr,
		Programs: []string{sanityPackage},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	client := bed.Clients[0]
	controller, err := bed.StartDriver(ctx, client, "controller", "-v=4")
	if err != nil {
		return err
	}
	node, err := bed.StartDriver(ctx, client, "node", "-v=4")
	if err != nil {
		return err
	}
	// csi-sanity makes the directories that it mounts on, but not their parent.
	if _, err := client.Output(ctx, "mkdir", "-p", "/var/lib/csi-sanity"); err != nil {
		return err
	}
	for name, parameters := range map[string]string{
		"parameters.yaml": fmt.Sprintf("server: %s\nshare: %s\n", bed.Server.IPv4(), share),
		"mutable.yaml":    "onDelete: delete\nmountPermissions: \"0770\"\nuid: \"1000\"\n",
	} {
		if err := os.WriteFile(filepath.Join(bed.OutDir(), name), []byte(parameters), 0o644); err != nil {
			return err
		}
	}
	fmt.Fprintf(os.Stderr, "running csi-sanity in %s; the driver's logs are in %s\n", client.Name(), bed.LogDir())
	runErr := client.Run(ctx, lab.Cmd{
		Args: []string{
			bed.Path("csi-sanity"),
			"--csi.endpoint=" + node.Endpoint,
			"--csi.controllerendpoint=" + controller.Endpoint,
			"--csi.testvolumeparameters=/out/parameters.yaml",
			"--csi.testvolumemutableparameters=/out/mutable.yaml",
			"--csi.mountdir=/var/lib/csi-sanity/mount",
			"--csi.stagingdir=/var/lib/csi-sanity/staging",
			"--ginkgo.junit-report=/out/" + report,
			"--ginkgo.no-color",
		},
		Stdout: os.Stdout,
		Stderr: os.Stderr,
	})
	if err := copyFile(filepath.Join("out", report), filepath.Join(bed.OutDir(), report)); err != nil {
		return errors.Join(runErr, err)
	}
	if runErr != nil {
		return fmt.Errorf("%w (the driver's logs are in %s)", runErr, bed.LogDir())
	}
	return errors.Join(controller.Stop(ctx), node.Stop(ctx))
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return errors.Join(err, out.Close())
	}
	return out.Close()
}
