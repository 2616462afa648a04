// Command nfs shows the main job of the driver, end to end, on real NFS: a
// volume is provisioned on a kernel NFS server, mounted by two nodes, written
// and read across them, and reclaimed.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/nfs-csi/nfs-csi-driver/test/demo/story"
	"github.com/nfs-csi/nfs-csi-driver/test/lab"
	"github.com/nfs-csi/nfs-csi-driver/test/testbed"
)

// budget bounds the whole story, builds included, so that a demo that hangs says so.
const budget = 15 * time.Minute

func main() { testbed.Main("demo failed", budget, run) }

const (
	share   = "/srv/data"
	staging = "/var/lib/kubelet/staging/pvc-demo"
	target  = "/var/lib/kubelet/pods/demo/mount"
)

func run(ctx context.Context) (err error) {
	s := &story.Story{Out: os.Stdout}
	s.Say("Starting a lab: one machine with a kernel NFS server, two machines as Kubernetes nodes.")
	logFile, err := labLog()
	if err != nil {
		return err
	}
	defer logFile.Close()
	s.Say("(builds and boots; what it does in detail is in %s)", logFile.Name())
	bed, err := testbed.Start(ctx, testbed.Options{
		Name:    "demo",
		Clients: 2,
		Exports: []lab.ExportSpec{{Path: share, FS: lab.XFS, SizeMB: 2048}},
		Log:     logFile,
	})
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, bed.Close())
		if err == nil {
			s.Say("Everything is stopped. Next: make test runs csi-sanity and all other tests; README.md says how to install.")
		}
	}()
	began := time.Now()
	s.Say("%s exports %s (XFS); %s and %s are up.", bed.Server.Name(), share, bed.Clients[0].Name(), bed.Clients[1].Name())

	d := &demo{Story: s, bed: bed}
	for _, chapter := range []func(context.Context) error{d.start, d.create, d.mount, d.share, d.stats, d.reclaim, d.stop} {
		if err := chapter(ctx); err != nil {
			return err
		}
	}
	s.Say("The story took %s.", time.Since(began).Round(100*time.Millisecond))
	return nil
}

func labLog() (*os.File, error) {
	if err := os.MkdirAll("out", 0o755); err != nil {
		return nil, err
	}
	return os.Create(filepath.Join("out", "demo-nfs.log"))
}

type demo struct {
	*story.Story
	bed        *testbed.Bed
	controller *testbed.Driver
	nodes      []*testbed.Driver
	volume     *csi.Volume
}

func (d *demo) start(ctx context.Context) (err error) {
	d.Chapter("Start the driver: one controller, one node plugin per node")
	if d.controller, err = d.bed.StartDriver(ctx, d.bed.Clients[0], "controller"); err != nil {
		return err
	}
	for _, c := range d.bed.Clients {
		node, err := d.bed.StartDriver(ctx, c, "node")
		if err != nil {
			return err
		}
		d.nodes = append(d.nodes, node)
	}
	var info csi.GetPluginInfoResponse
	if err := d.controller.Call(ctx, "Identity/GetPluginInfo", &csi.GetPluginInfoRequest{}, &info); err != nil {
		return err
	}
	d.Say("%s %s answers on all of them.", info.Name, info.VendorVersion)
	return nil
}

var capability = &csi.VolumeCapability{
	AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
	AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER},
}

func (d *demo) create(ctx context.Context) error {
	d.Chapter("Create a volume, as a PersistentVolumeClaim would")
	request := &csi.CreateVolumeRequest{
		Name:               "pvc-demo",
		CapacityRange:      &csi.CapacityRange{RequiredBytes: 1 << 30},
		VolumeCapabilities: []*csi.VolumeCapability{capability},
		Parameters: map[string]string{
			"server":                           d.bed.Server.IPv4(),
			"share":                            share,
			"subDir":                           "${pvc.metadata.namespace}/${pvc.metadata.name}",
			"mountPermissions":                 "0770",
			"csi.storage.k8s.io/pvc/name":      "demo",
			"csi.storage.k8s.io/pvc/namespace": "team-a",
			"csi.storage.k8s.io/pv/name":       "pvc-demo",
		},
	}
	var response csi.CreateVolumeResponse
	began := time.Now()
	if err := d.controller.Call(ctx, "Controller/CreateVolume", request, &response); err != nil {
		return err
	}
	d.volume = response.Volume
	d.Say("Volume %q, made in %s (the first on this export, so it was mounted too).", d.volume.VolumeId, time.Since(began).Round(time.Millisecond))
	d.Say("On the server there is now a directory, and a record that says whose it is:")
	if err := d.show(ctx, d.bed.Server.Guest, "ls", "-ld", share+"/team-a/demo"); err != nil {
		return err
	}
	return d.show(ctx, d.bed.Server.Guest, "cat", share+"/.nfs-csi/volumes/pvc-demo.json")
}

func (d *demo) mount(ctx context.Context) error {
	d.Chapter("Mount it on both nodes: stage once per node, publish into a pod's directory")
	for i, node := range d.nodes {
		guest := d.bed.Clients[i]
		if _, err := guest.Output(ctx, "mkdir", "-p", staging, path.Dir(target)); err != nil {
			return err
		}
		stage := &csi.NodeStageVolumeRequest{
			VolumeId:          d.volume.VolumeId,
			StagingTargetPath: staging,
			VolumeCapability:  capability,
			VolumeContext:     d.volume.VolumeContext,
		}
		if err := node.Call(ctx, "Node/NodeStageVolume", stage, &csi.NodeStageVolumeResponse{}); err != nil {
			return err
		}
		publish := &csi.NodePublishVolumeRequest{
			VolumeId:          d.volume.VolumeId,
			StagingTargetPath: staging,
			TargetPath:        target,
			VolumeCapability:  capability,
			VolumeContext:     d.volume.VolumeContext,
		}
		if err := node.Call(ctx, "Node/NodePublishVolume", publish, &csi.NodePublishVolumeResponse{}); err != nil {
			return err
		}
		if err := d.show(ctx, guest, "findmnt", "-n", "-o", "SOURCE,FSTYPE,TARGET", target); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) share(ctx context.Context) error {
	d.Chapter("Write on one node, read on the other")
	const text = "written on client1"
	file := path.Join(target, "hello.txt")
	if err := d.bed.Clients[0].WriteFile(ctx, file, strings.NewReader(text+"\n"), 0o644); err != nil {
		return err
	}
	d.Say("client1 wrote %s", file)
	got, err := d.bed.Clients[1].Output(ctx, "cat", file)
	if err != nil {
		return err
	}
	d.Say("client2 reads it: %q", strings.TrimSpace(got))
	if strings.TrimSpace(got) != text {
		return fmt.Errorf("client2 read %q, client1 wrote %q", got, text)
	}
	return nil
}

func (d *demo) stats(ctx context.Context) error {
	d.Chapter("Ask the node for the volume's numbers, as the kubelet does")
	request := &csi.NodeGetVolumeStatsRequest{VolumeId: d.volume.VolumeId, VolumePath: target}
	var response csi.NodeGetVolumeStatsResponse
	if err := d.nodes[1].Call(ctx, "Node/NodeGetVolumeStats", request, &response); err != nil {
		return err
	}
	for _, u := range response.Usage {
		d.Say("%-6s %12d available of %12d", u.Unit, u.Available, u.Total)
	}
	return nil
}

func (d *demo) reclaim(ctx context.Context) error {
	d.Chapter("Unmount it everywhere and delete it")
	for _, node := range d.nodes {
		unpublish := &csi.NodeUnpublishVolumeRequest{VolumeId: d.volume.VolumeId, TargetPath: target}
		if err := node.Call(ctx, "Node/NodeUnpublishVolume", unpublish, &csi.NodeUnpublishVolumeResponse{}); err != nil {
			return err
		}
		unstage := &csi.NodeUnstageVolumeRequest{VolumeId: d.volume.VolumeId, StagingTargetPath: staging}
		if err := node.Call(ctx, "Node/NodeUnstageVolume", unstage, &csi.NodeUnstageVolumeResponse{}); err != nil {
			return err
		}
	}
	for _, c := range d.bed.Clients {
		if mounts, err := c.Output(ctx, "sh", "-c", "grep -c pvc-demo /proc/self/mountinfo || true"); err != nil || strings.TrimSpace(mounts) != "0" {
			return fmt.Errorf("%s still has %s mounts of the volume (%w)", c.Name(), strings.TrimSpace(mounts), err)
		}
	}
	d.Say("No mount of it is left on client1 and client2.")
	began := time.Now()
	if err := d.controller.Call(ctx, "Controller/DeleteVolume", &csi.DeleteVolumeRequest{VolumeId: d.volume.VolumeId}, &csi.DeleteVolumeResponse{}); err != nil {
		return err
	}
	d.Say("Deleted in %s: renamed into the trash, unlinked in the background.", time.Since(began).Round(time.Millisecond))
	if err := d.emptied(ctx); err != nil {
		return err
	}
	d.Say("The export is empty again, but for the driver's own empty directories:")
	return d.show(ctx, d.bed.Server.Guest, "find", share, "-mindepth", "1")
}

// emptied waits until no file is left on the export.
func (d *demo) emptied(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		left, err := d.bed.Server.Output(ctx, "sh", "-c", "find "+share+" -mindepth 1 -not -type d; ls "+share+"; find "+share+"/.nfs-csi/trash -mindepth 2")
		if err != nil {
			return fmt.Errorf("wait for the purge: %w", err)
		}
		if strings.TrimSpace(left) == "" {
			return nil
		}
	}
}

func (d *demo) stop(ctx context.Context) error {
	d.Chapter("Stop the driver")
	for _, p := range append(d.nodes, d.controller) {
		if err := p.Stop(ctx); err != nil {
			return err
		}
	}
	d.Say("All three processes drained and ended by themselves.")
	return nil
}

// show runs a command on a guest and prints it with its output.
func (d *demo) show(ctx context.Context, g *lab.Guest, args ...string) error {
	_, err := d.Run(g.Name()+"$", args, func() (string, error) { return g.Output(ctx, args...) })
	return err
}
