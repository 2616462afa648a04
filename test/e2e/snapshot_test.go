package e2e

import (
	"context"
	"fmt"
	"path"
	"strings"
	"testing"
)

const (
	classManifest = `
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: %[1]s, labels: {scene: %[1]s}}
driver: %[2]s
deletionPolicy: Delete
`
	snapshotManifest = `
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: %s}
spec: {volumeSnapshotClassName: %s, source: {persistentVolumeClaimName: %s}}
`
	copyManifest = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec: {accessModes: [ReadWriteMany], storageClassName: %s, resources: {requests: {storage: 1Gi}}, dataSource: %s}
`
	// treeText is one line for every name in a directory: its type, mode, owner, size, time of
	// change, target and names, and at the end the sum of every file.
	treeText = `cd %s && find . -printf '%%y %%m %%U:%%G %%s %%T@ %%l %%n %%p\n' | sed -E 's/^d ([0-9]+) ([0-9:]+) [0-9]+/d \1 \2/' | sort && find . -type f -exec sha256sum {} + | sort`
)

// snapshotClass makes a VolumeSnapshotClass with the name of the scene, and removes the scene's
// snapshots when it ends.
func (s *scene) snapshotClass() {
	s.t.Helper()
	s.apply(classManifest, s.name, s.driver)
	s.t.Cleanup(func() {
		if _, err := s.c.Kubectl(s.ctx, "delete", "volumesnapshotclass", s.name, "--wait=false"); err != nil {
			s.t.Error(err)
		}
	})
}

// snapshot takes a snapshot of a claim and waits for it to be ready. It returns its directory in
// the scene's share.
func (s *scene) snapshot(name, claim string) string {
	s.t.Helper()
	s.apply(snapshotManifest, name, s.name, claim)
	s.wait("the snapshot "+name+" to be ready", func(ctx context.Context) error {
		out, err := s.c.Kubectl(ctx, "get", "volumesnapshot", name, "-n", s.name, "-o", "jsonpath={.status.readyToUse} {.status.error.message}")
		if err == nil && strings.TrimSpace(out) != "true" {
			err = fmt.Errorf("ready: %s", out)
		}
		return err
	})
	uid := s.kubectl("get", "volumesnapshot", name, "-o", "jsonpath={.metadata.uid}")
	return ".nfs-csi/snapshots/snapshot-" + uid
}

// deleteSnapshot deletes a snapshot and waits until it has left the export.
func (s *scene) deleteSnapshot(name, dir string) {
	s.t.Helper()
	s.kubectl("delete", "volumesnapshot", name, "--timeout="+patience.String())
	s.wait("the snapshot's directory to go", func(context.Context) error {
		if left := s.server("ls -d " + dir + " .nfs-csi/trash/*/*.tree 2>/dev/null || true"); left != "" {
			return fmt.Errorf("there are %s", left)
		}
		return nil
	})
}

// copyOf makes a claim from a snapshot or another claim and returns its volume.
func (s *scene) copyOf(name, source string) string {
	s.t.Helper()
	s.apply(copyManifest, name, s.name, source)
	return s.volume(name)
}

// fill makes a tree, in a pod, with most of what a copy can lose.
const fill = `set -e; umask 022; cd /data; mkdir -p tree/sub/empty
echo one >tree/file; echo two >tree/sub/linked; ln tree/sub/linked tree/other-name; ln -s ../file tree/sub/symlink
mkfifo tree/fifo; echo x >tree/set-id; chown 1:2 tree/set-id; chmod 6750 tree/set-id; chmod 2500 tree/sub/empty
dd if=/dev/zero of=tree/sparse bs=1 count=1 seek=10M 2>/dev/null; i=0
while [ $i -lt 200 ]; do i=$((i+1)); echo $i >tree/sub/$i; done
touch -d '2001-02-03 04:05:06' tree/file tree/sub`

// TestSnapshotAndRestore: a snapshot is taken while a pod writes; a volume restored from it has all
// that was not written to just then, and the snapshot outlives the volume that it is of.
func TestSnapshotAndRestore(t *testing.T) {
	t.Parallel()
	s := newScene(t, "snapshot")
	s.snapshotClass()
	s.claim("data")
	source := s.volume("data")
	s.pod("app", s.c.Nodes()[0].Name(), "data")
	s.sh("app", fill)
	s.sh("app", `mkdir /data/busy; (i=0; while test ! -e /data/stop; do i=$(((i+1)%50)); date >/data/busy/$i.new; mv /data/busy/$i.new /data/busy/$i; done) >/dev/null 2>&1 &`)
	dir := s.snapshot("first", "data")
	s.sh("app", "touch /data/stop")
	tree := s.server(fmt.Sprintf(treeText, source+"/tree"))
	expect(t, "the tree in the snapshot", s.server(fmt.Sprintf(treeText, dir+"/data/tree")), tree)

	s.kubectl("delete", "pod", "app", "--wait")
	s.kubectl("delete", "pvc", "data")
	s.gone(source)
	// The file with a hole alone is longer than its disk space.
	if found := s.ctlList("snapshots", 1)[0]; ".nfs-csi/snapshots/"+found.Name != dir || found.Source != source || found.SizeBytes <= 10<<20 {
		t.Errorf("ctl lists the snapshot %s of %s as %+v", dir, source, found)
	}
	restored := s.copyOf("restored", "{apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: first}")
	expect(t, "the tree in the restored volume", s.server(fmt.Sprintf(treeText, restored+"/tree")), tree)
	s.pod("reader", s.c.Nodes()[1].Name(), "restored")
	expect(t, "a file of the restored volume", s.sh("reader", "cat /data/tree/other-name; echo more >>/data/tree/file; ls /data/tree/sub | wc -l"), "two\n203")
	expect(t, "the snapshot, when the restored volume has changed", s.server(fmt.Sprintf(treeText, dir+"/data/tree")), tree)
	s.kubectl("delete", "pod", "reader", "--wait")
	s.deleteSnapshot("first", dir)
}

// TestClone: volumes are made of another one, on its export and on another.
func TestClone(t *testing.T) {
	t.Parallel()
	s := newScene(t, "clone")
	elsewhere := path.Join(quickShare, s.name)
	onServer(s.ctx, t, s.c, "mkdir -p "+elsewhere)
	s.apply("{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: clone-elsewhere, labels: {scene: %s}}, provisioner: %s, parameters: {server: %q, share: %s}}",
		s.name, s.driver, s.c.Server().IPv4(), elsewhere)
	s.claim("data")
	source := s.volume("data")
	s.pod("app", s.c.Nodes()[0].Name(), "data")
	s.sh("app", fill)
	tree := s.server(fmt.Sprintf(treeText, source+"/tree"))
	const claim = "{kind: PersistentVolumeClaim, name: data}"
	s.apply(copyManifest, "far", "clone-elsewhere", claim)
	clone := s.copyOf("copy", claim)
	expect(t, "the tree in the clone", s.server(fmt.Sprintf(treeText, clone+"/tree")), tree)
	far := elsewhere + "/" + s.volume("far")
	expect(t, "the tree in the clone on the other export", onServer(s.ctx, t, s.c, fmt.Sprintf(treeText, far+"/tree")), tree)
	s.sh("app", "rm -r /data/tree/sub/1*")
	expect(t, "the clone, when its source has changed", s.server(fmt.Sprintf(treeText, clone+"/tree")), tree)
}
