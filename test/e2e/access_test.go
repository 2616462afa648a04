package e2e

import (
	"strings"
	"testing"

	"github.com/nfs-csi/nfs-csi-driver/test/cluster"
)

// modeClaim is a claim with an access mode.
const modeClaim = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec: {accessModes: [%s], storageClassName: %s, resources: {requests: {storage: 1Gi}}}
`

// TestReadWriteMany: pods on both nodes see each other's writes, renames and appends.
func TestReadWriteMany(t *testing.T) {
	t.Parallel()
	s := newScene(t, "read-write-many")
	s.claim("data")
	s.pod("one", s.c.Nodes()[0].Name(), "data")
	s.pod("two", s.c.Nodes()[1].Name(), "data")

	s.sh("one", "echo first >/data/file")
	s.sh("two", "cat /data/file >/dev/null; echo second >>/data/file; mv /data/file /data/renamed")
	if got := s.sh("one", "ls /data; cat /data/renamed"); got != "renamed\nfirst\nsecond" {
		t.Errorf("the first pod sees %q", got)
	}
	if got := s.server("cat " + s.volume("data") + "/renamed"); got != "first\nsecond" {
		t.Errorf("the server holds %q", got)
	}
}

// TestReadWriteOnce: pods of one node share the volume, and it moves to the other node with them.
func TestReadWriteOnce(t *testing.T) {
	t.Parallel()
	s := newScene(t, "read-write-once")
	s.apply(modeClaim, "data", "ReadWriteOnce", s.name)
	one, two := s.c.Nodes()[0].Name(), s.c.Nodes()[1].Name()
	s.pod("first", one, "data")
	s.pod("second", one, "data")
	s.sh("first", "echo first >/data/file")
	s.sh("second", "echo second >>/data/file")
	s.kubectl("delete", "pod", "first", "second", "--wait")
	s.pod("third", two, "data")
	if got := s.sh("third", "cat /data/file"); got != "first\nsecond" {
		t.Errorf("on the other node the file holds %q", got)
	}
}

// TestReadWriteOncePod: a second pod is refused, by the scheduler, and by the kubelet if the pod
// came past the scheduler; it runs when the first is gone.
func TestReadWriteOncePod(t *testing.T) {
	t.Parallel()
	s := newScene(t, "read-write-once-pod")
	s.apply(modeClaim, "data", "ReadWriteOncePod", s.name)
	node := s.c.Nodes()[0].Name()
	s.pod("first", node, "data")
	s.apply(podManifest, "scheduled", "", waits, "data")
	s.apply(podManifest, "placed", node, waits, "data")
	s.event("scheduled", "FailedScheduling", "ReadWriteOncePod")
	s.event("placed", "FailedMount", "ReadWriteOncePod")
	s.kubectl("delete", "pod", "first", "scheduled", "--wait")
	s.podReady("placed")
}

// TestReadOnly: what is mounted read-only by access mode, by the pod's volume or by the container's
// mount is read and not written.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	s := newScene(t, "read-only")
	s.apply(modeClaim, "rox", "ReadOnlyMany", s.name)
	s.claim("source")
	s.claim("mount")
	for _, claim := range []string{"rox", "source", "mount"} {
		s.server("echo hello >" + s.volume(claim) + "/file")
	}
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    image: %s
    command: [sh, -c, %q]
    volumeMounts:
    - {name: rox, mountPath: /rox}
    - {name: source, mountPath: /source}
    - {name: mount, mountPath: /mount, readOnly: true}
    - {name: mount, mountPath: /writable}
  volumes:
  - {name: rox, persistentVolumeClaim: {claimName: rox}}
  - {name: source, persistentVolumeClaim: {claimName: source, readOnly: true}}
  - {name: mount, persistentVolumeClaim: {claimName: mount}}
`, cluster.BusyboxImage, waits)
	s.podReady("reader")
	for _, dir := range []string{"/rox", "/source", "/mount"} {
		if got := s.sh("reader", "cat "+dir+"/file"); got != "hello" {
			t.Errorf("%s/file holds %q", dir, got)
		}
		got := s.sh("reader", "if echo changed >"+dir+"/file; then echo written; fi 2>&1")
		if !strings.Contains(got, "Read-only file system") {
			t.Errorf("a write to %s: %q", dir, got)
		}
	}
	// The same volume, without readOnly: the share itself can be written.
	s.sh("reader", "echo changed >/writable/file")
	if got := s.sh("reader", "cat /mount/file"); got != "changed" {
		t.Errorf("after the write /mount/file holds %q", got)
	}
}
