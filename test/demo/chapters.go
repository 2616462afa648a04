package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	imageTar     = "out/image.tar"
	examples     = "deploy/kubernetes/examples/"
	share        = "/export/kubernetes"
	claimFile    = examples + "pvc.yaml"
	podsFile     = examples + "deployment.yaml"
	snapshotFile = examples + "snapshot.yaml"
	restoreFile  = examples + "restore.yaml"
	claimName    = "shared"
	restored     = "restored" // the claim and the pod of restoreFile
	podSelector  = "app=shared"
	greeting     = "hello from the first pod"
)

// kubectl shows a kubectl command and its output.
func (d *demo) kubectl(ctx context.Context, args ...string) error {
	_, err := d.Run("$", append([]string{"kubectl"}, args...), func() (string, error) {
		return d.cluster.Kubectl(ctx, args...)
	})
	return err
}

// server shows a command on the NFS server and its output.
func (d *demo) server(ctx context.Context, args ...string) error {
	_, err := d.Run("server#", args, func() (string, error) { return d.cluster.Server().Output(ctx, args...) })
	return err
}

// install brings the images to the nodes and installs the chart with the README's command.
func (d *demo) install(ctx context.Context) error {
	d.Chapter("Install the driver with Helm, as the README says")
	d.Say("There is no registry here: the nodes import the images, as `ctr -n k8s.io images import` does.")
	if err := d.cluster.LoadImage(ctx, imageTar); err != nil {
		return err
	}
	if err := d.cluster.LoadSidecars(ctx, "csi-provisioner", "csi-resizer", "csi-snapshotter"); err != nil {
		return err
	}
	d.Say("For snapshots, a cluster needs their CRDs and the snapshot-controller, whatever its drivers: this one has them.")
	if err := d.cluster.InstallSnapshots(ctx); err != nil {
		return err
	}
	args := []string{"install", "nfs-csi-driver", "charts/nfs-csi-driver", "--namespace", "nfs-csi", "--create-namespace",
		"--set", "image.registry=docker.io,image.tag=" + d.version,
		"--set", "controller.snapshotter.enabled=true",
		"--set", fmt.Sprintf("storageClasses[0].name=nfs,storageClasses[0].server=%s,storageClasses[0].share=%s", d.cluster.Server().IPv4(), share)}
	_, err := d.Run("$", append([]string{"helm"}, args...), func() (string, error) {
		out, err := d.cluster.Helm(ctx, args...)
		// How to go on, which the next chapters show.
		out, _, _ = strings.Cut(out, "NOTES:")
		return out, err
	})
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"-n", "nfs-csi", "rollout", "status", "deployment,daemonset", "--timeout=3m"},
		{"-n", "nfs-csi", "get", "pods", "-o", "wide"},
		{"get", "csinodes", "-o", "custom-columns=NODE:.metadata.name,DRIVERS:.spec.drivers[*].name"},
	} {
		if err := d.kubectl(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// provision makes a claim and shows what it became.
func (d *demo) provision(ctx context.Context) error {
	d.Chapter("Ask for storage: a PersistentVolumeClaim becomes a directory on the server")
	for _, args := range [][]string{
		{"apply", "-f", claimFile},
		{"wait", "pvc/" + claimName, "--for=jsonpath={.status.phase}=Bound", "--timeout=60s"},
		{"get", "pvc,pv"},
	} {
		if err := d.kubectl(ctx, args...); err != nil {
			return err
		}
	}
	volume, err := d.volume(ctx, claimName)
	if err != nil {
		return err
	}
	if err := d.server(ctx, "ls", "-ld", share+"/"+volume); err != nil {
		return err
	}
	d.Say("Beside it, a record says what it is and who may delete it:")
	return d.server(ctx, "cat", record(volume))
}

// volume returns the name of a claim's volume.
func (d *demo) volume(ctx context.Context, claim string) (string, error) {
	return d.cluster.Kubectl(ctx, "get", "pvc", claim, "-o", "jsonpath={.spec.volumeName}")
}

func record(volume string) string { return share + "/.nfs-csi/volumes/" + volume + ".json" }

// share lets pods on two nodes use the volume.
func (d *demo) share(ctx context.Context) error {
	d.Chapter("Share it: two pods, on two nodes, write and read the same files")
	for _, args := range [][]string{
		{"apply", "-f", podsFile},
		{"rollout", "status", "deployment/shared", "--timeout=2m"},
		{"get", "pods", "-o", "wide"},
	} {
		if err := d.kubectl(ctx, args...); err != nil {
			return err
		}
	}
	pods, err := d.pods(ctx)
	if err != nil {
		return err
	}
	if err := d.kubectl(ctx, "exec", pods[0], "--", "sh", "-c", "echo "+greeting+" > /data/hello"); err != nil {
		return err
	}
	if err := d.readGreeting(ctx, pods[1]); err != nil {
		return err
	}
	if err := d.bothWrite(ctx, pods); err != nil {
		return err
	}
	d.Say("Both append their names to one file, once a second:")
	if err := d.kubectl(ctx, "exec", "deployment/shared", "--", "sh", "-c", "sort /data/hosts | uniq -c"); err != nil {
		return err
	}
	d.Say("On the server they are plain files:")
	volume, err := d.volume(ctx, claimName)
	if err != nil {
		return err
	}
	return d.server(ctx, "ls", "-l", share+"/"+volume)
}

// pods returns the names of two pods that are on different nodes.
func (d *demo) pods(ctx context.Context) ([]string, error) {
	out, err := d.cluster.Kubectl(ctx, "get", "pods", "-l", podSelector,
		"-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName}{"\n"}{end}`)
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(out)
	if len(fields) != 4 || fields[1] == fields[3] {
		return nil, fmt.Errorf("want two pods on two nodes, there are:\n%s", out)
	}
	return []string{fields[0], fields[2]}, nil
}

// bothWrite waits until both pods' names are in the file that they share.
func (d *demo) bothWrite(ctx context.Context, pods []string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return d.cluster.WaitFor(ctx, "both pods to write", func(ctx context.Context) error {
		hosts, err := d.cluster.Exec(ctx, "default", pods[0], "cat", "/data/hosts")
		if err != nil {
			return err
		}
		for _, p := range pods {
			if !strings.Contains(hosts, p) {
				return fmt.Errorf("%s has not", p)
			}
		}
		return nil
	})
}

// readGreeting shows that a pod reads what the first pod wrote.
func (d *demo) readGreeting(ctx context.Context, pod string) error {
	args := []string{"exec", pod, "--", "cat", "/data/hello"}
	read, err := d.Run("$", append([]string{"kubectl"}, args...), func() (string, error) { return d.cluster.Kubectl(ctx, args...) })
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(read); got != greeting {
		return fmt.Errorf("%s reads %q, the first pod wrote %q", pod, got, greeting)
	}
	return nil
}

// snapshot loses a file of which there is a snapshot, and gets it back.
func (d *demo) snapshot(ctx context.Context) error {
	d.Chapter("Take a snapshot, lose a file, and get it back")
	for _, args := range [][]string{
		{"apply", "-f", snapshotFile},
		{"wait", "volumesnapshot/shared-snapshot", "--for=jsonpath={.status.readyToUse}=true", "--timeout=60s"},
		{"get", "volumesnapshot"},
	} {
		if err := d.kubectl(ctx, args...); err != nil {
			return err
		}
	}
	d.Say("Ready means: a whole copy of the volume is on the server's disk, and was compared with what was read.")
	d.Say("Now somebody makes a mistake. The file is gone, for both pods:")
	for _, args := range [][]string{
		{"exec", "deployment/shared", "--", "rm", "/data/hello"},
		{"exec", "deployment/shared", "--", "ls", "/data"},
	} {
		if err := d.kubectl(ctx, args...); err != nil {
			return err
		}
	}
	d.Say("A new claim names the snapshot as its source, and becomes a volume with what was in it:")
	for _, args := range [][]string{
		{"apply", "-f", restoreFile},
		{"wait", "pvc/" + restored, "--for=jsonpath={.status.phase}=Bound", "--timeout=60s"},
		{"wait", "pod/" + restored, "--for=condition=Ready", "--timeout=60s"},
	} {
		if err := d.kubectl(ctx, args...); err != nil {
			return err
		}
	}
	d.Say("The file is there again:")
	return d.readGreeting(ctx, restored)
}

// reclaim deletes everything and shows that the export is empty again.
func (d *demo) reclaim(ctx context.Context) error {
	d.Chapter("Delete it all: directories, records, the snapshot and all files go")
	deletes := []string{"delete", "-f", restoreFile, "-f", snapshotFile, "-f", podsFile, "-f", claimFile}
	gone := []string{"wait", "--for=delete", "--timeout=60s"}
	for _, claim := range []string{claimName, restored} {
		volume, err := d.volume(ctx, claim)
		if err != nil {
			return err
		}
		gone = append(gone, "pv/"+volume)
	}
	if err := d.kubectl(ctx, deletes...); err != nil {
		return err
	}
	if err := d.kubectl(ctx, gone...); err != nil {
		return err
	}
	d.Say("What is deleted is renamed into the driver's trash at once; its files are unlinked in the background.")
	if err := d.emptied(ctx); err != nil {
		return err
	}
	d.Say("Nothing is left on the export but the driver's own directories, which are empty:")
	return d.server(ctx, "find", share, "-mindepth", "1")
}

// emptied waits until no file and no directory of a volume is left on the export.
func (d *demo) emptied(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return d.cluster.WaitFor(ctx, "the files to go", func(ctx context.Context) error {
		left, err := d.cluster.Server().Output(ctx, "sh", "-c",
			"cd "+share+" && { find . -not -type d; ls; find .nfs-csi/trash -mindepth 2; }")
		if err == nil && strings.TrimSpace(left) != "" {
			err = errors.New("there are " + left)
		}
		return err
	})
}
