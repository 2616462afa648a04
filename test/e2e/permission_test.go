package e2e

import (
	"strings"
	"testing"

	"github.com/nfs-csi/nfs-csi-driver/test/cluster"
)

// userPod runs as a user: uid and primary group, and what else its security context has.
const userPod = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 2
  securityContext: {runAsNonRoot: true, runAsUser: %d, runAsGroup: %d, %s}
  containers:
  - name: main
    image: ` + cluster.BusyboxImage + `
    command: [sh, -c, %q]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
`

// as starts pods as users, all at once, and returns when all are ready.
func (s *scene) as(pods ...user) {
	s.t.Helper()
	for _, p := range pods {
		s.apply(userPod, p.pod, p.uid, p.gid, p.more, waits)
	}
	for _, p := range pods {
		s.podReady(p.pod)
	}
}

type user struct {
	pod      string
	uid, gid int
	more     string // of the security context
}

// writes has the pod write a file, and returns mode, owner and group of it as the server sees them.
func (s *scene) writes(pod string) string {
	s.t.Helper()
	s.sh(pod, "umask 022; echo hello >/data/"+pod)
	return s.server("stat -c '%a %u:%g' " + s.volume("data") + "/" + pod)
}

// mayNot shows that the pod is refused what it tries.
func (s *scene) mayNot(pod, script string) {
	s.t.Helper()
	got := s.sh(pod, "if "+script+"; then echo done; fi 2>&1")
	if !strings.Contains(got, "Permission denied") {
		s.t.Errorf("pod %s: %s: %q, want Permission denied", pod, script, got)
	}
}

func (s *scene) volumeMode() string {
	s.t.Helper()
	return s.server("stat -c '%a %u:%g' " + s.volume("data"))
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// TestFSGroup: a pod that is not root writes, by the group that the kubelet gives the volume to.
func TestFSGroup(t *testing.T) {
	t.Parallel()
	s := newScene(t, "fs-group")
	s.claim("data")
	s.volume("data")
	s.as(user{"app", 1000, 1000, "fsGroup: 2000"})
	expect(t, "the file", s.writes("app"), "644 1000:2000")
	expect(t, "the volume", s.volumeMode(), "2775 0:2000")
}

// TestDefaultMode: without parameters only root writes into a volume, and everybody reads.
func TestDefaultMode(t *testing.T) {
	t.Parallel()
	s := newScene(t, "default-mode")
	s.claim("data")
	s.pod("root", s.c.Nodes()[0].Name(), "data")
	s.as(user{"app", 1000, 1000, ""})
	expect(t, "root's file", s.writes("root"), "644 0:0")
	expect(t, "what the user reads", s.sh("app", "cat /data/root"), "hello")
	s.mayNot("app", "touch /data/app")
	expect(t, "the volume", s.volumeMode(), "755 0:0")
}

// TestRunAsUser: the volume of a user is the user's alone.
func TestRunAsUser(t *testing.T) {
	t.Parallel()
	s := newScene(t, "run-as-user")
	s.class("owned", `  uid: "1000"`, `  gid: "1000"`, `  mountPermissions: "0700"`)
	s.claim("data", "owned")
	s.as(user{"owner", 1000, 1000, ""}, user{"other", 1001, 1000, ""})
	expect(t, "the owner's file", s.writes("owner"), "644 1000:1000")
	s.mayNot("other", "cat /data/owner")
	expect(t, "the volume", s.volumeMode(), "700 1000:1000")
}

// TestSupplementalGroups: who is in the volume's group writes, and files stay the group's.
func TestSupplementalGroups(t *testing.T) {
	t.Parallel()
	s := newScene(t, "supplemental-groups")
	s.class("team", `  gid: "3000"`, `  mountPermissions: "2775"`)
	s.claim("data", "team")
	s.as(user{"member", 1000, 1000, "supplementalGroups: [3000]"}, user{"other", 1000, 1000, ""})
	expect(t, "the member's file", s.writes("member"), "644 1000:3000")
	s.mayNot("other", "touch /data/other")
	expect(t, "the volume", s.volumeMode(), "2775 0:3000")
}
