package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/nfs-csi/nfs-csi-driver/test/cluster"
)

// mountOptions are those that the node's kernel has for the volume: per mount and per file system.
func (s *scene) mountOptions(node, volume string) string {
	s.t.Helper()
	out, err := s.c.Node(node).Output(s.ctx, "cat", "/proc/self/mountinfo")
	s.must(err)
	for line := range strings.Lines(out) {
		// proc_pid_mountinfo(5): ... root, mount point, options, optional fields, "-", type, source, options.
		before, after, _ := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if len(f) > 5 && len(g) > 2 && strings.HasPrefix(g[0], "nfs") && strings.HasSuffix(g[1], "/"+volume) {
			return g[0] + "," + f[5] + "," + g[2]
		}
	}
	s.t.Fatalf("volume %s is not mounted on %s:\n%s", volume, node, out)
	return ""
}

// TestMountOptions: the options of the class are those that the node mounts with.
func TestMountOptions(t *testing.T) {
	t.Parallel()
	s := newScene(t, "mount-options")
	node := s.c.Nodes()[0].Name()
	cases := []struct {
		name string
		give string
		want string
	}{
		{"default", "", "nfs4 rw hard vers=4.2 proto=tcp"},
		{"tuned", "nfsvers=4.1, hard, rsize=65536, wsize=32768, noatime, nodiratime", "nfs4 rw hard vers=4.1 rsize=65536 wsize=32768 noatime nodiratime"},
		{"soft", "nfsvers=4.0, softerr, timeo=50, retrans=2, ro", "nfs4 ro softerr vers=4.0"},
		{"three", "nfsvers=3, nolock", "nfs rw vers=3 nolock"},
	}
	for _, tt := range cases {
		s.class("mount-options-"+tt.name, "mountOptions: ["+tt.give+"]")
		s.claim(tt.name, "mount-options-"+tt.name)
	}
	var mounts, volumes strings.Builder
	for _, tt := range cases {
		fmt.Fprintf(&mounts, "    - {name: %[1]s, mountPath: /%[1]s}\n", tt.name)
		fmt.Fprintf(&volumes, "  - {name: %[1]s, persistentVolumeClaim: {claimName: %[1]s}}\n", tt.name)
	}
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    image: %s
    command: [sh, -c, %q]
    volumeMounts:
%s  volumes:
%s`, node, cluster.BusyboxImage, waits, mounts.String(), volumes.String())
	s.podReady("app")
	for _, tt := range cases {
		got := s.mountOptions(node, s.volume(tt.name))
		t.Logf("%s: %s", tt.name, got)
		for want := range strings.FieldsSeq(tt.want) {
			if !strings.Contains(","+got+",", ","+want+",") {
				t.Errorf("%s: mounted with %s, want %s", tt.name, got, want)
			}
		}
	}
}

// TestUnstage: a volume leaves the node with its last pod, also while another
// volume of the same export is in use there.
func TestUnstage(t *testing.T) {
	t.Parallel()
	s := newScene(t, "unstage")
	node := s.c.Nodes()[0]
	s.claim("one")
	s.claim("two")
	s.pod("one", node.Name(), "one")
	s.pod("two", node.Name(), "two")
	s.kubectl("delete", "pod", "one", "--wait")
	s.clean(node, s.volume("one"))
	s.sh("two", "echo hello >/data/file")
}

// TestStaticVolume: a directory that is there already is mounted as the manifest of the documentation
// says, read-only, and outlives claim and volume.
func TestStaticVolume(t *testing.T) {
	t.Parallel()
	s := newScene(t, "static-volume")
	s.server("mkdir reports && echo 42 >reports/total")
	s.example("static-pv.yaml", "nfs.example.com", s.c.Server().IPv4(), "/export/company", s.dir)
	t.Cleanup(func() { s.kubectl("delete", "pv", "reports") })
	node := s.c.Nodes()[1].Name()
	s.pod("reader", node, "reports")
	expect(t, "the file", s.sh("reader", "cat /data/total"), "42")
	if got := s.sh("reader", "if echo 43 >/data/total; then echo written; fi 2>&1"); !strings.Contains(got, "Read-only file system") {
		t.Errorf("a write: %q", got)
	}
	s.kubectl("delete", "pod", "reader", "--wait")
	s.kubectl("delete", "pvc", "reports", "--wait")
	expect(t, "the file", s.server("cat reports/total && rm -r reports"), "42")
}

// TestTakeover: a volume that csi-driver-nfs made goes on with its data, and is never deleted.
func TestTakeover(t *testing.T) {
	t.Parallel()
	s := newScene(t, "takeover")
	const volume = "pvc-4fbb2d7e-58c6-4d4c-a7a3-8d5d3f6f2e11"
	s.server("mkdir " + volume + " && echo old >" + volume + "/file")
	s.example("takeover.yaml", "nfs.example.com", s.c.Server().IPv4(),
		"export/kubernetes", strings.TrimPrefix(s.dir, "/"), "namespace: default", "namespace: "+s.name)
	t.Cleanup(func() { s.kubectl("delete", "pv", "taken-over", "--ignore-not-found") })
	node := s.c.Nodes()[0].Name()
	s.pod("app", node, "data")
	s.sh("app", "echo new >>/data/file")
	if got := s.mountOptions(node, volume); !strings.Contains(got, "vers=4.1") {
		t.Errorf("mounted with %s, want version 4.1", got)
	}
	expect(t, "the file", s.server("cat "+volume+"/file"), "old\nnew")

	// An administrator's mistake: the driver refuses, and says what to do.
	s.kubectl("delete", "pod", "app", "--wait")
	s.kubectl("patch", "pv", "taken-over", "-p", `{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`)
	s.kubectl("delete", "pvc", "data", "--wait")
	s.wait("the event of the volume that is not deleted", func(ctx context.Context) error {
		out, err := s.c.Kubectl(ctx, "get", "events", "-n", "default", "--field-selector", "reason=VolumeFailedDelete,involvedObject.name=taken-over",
			"-o", "jsonpath={.items[*].message}")
		if err == nil && !strings.Contains(out, "remove it by hand") {
			err = fmt.Errorf("it is %q", out)
		}
		return err
	})
	expect(t, "the file", s.server("cat "+volume+"/file && rm -r "+volume), "old\nnew")
	// Removed by hand, as it says, there is nothing left to refuse.
	s.gone("taken-over")
}
