package e2e

import "testing"

// TestPluginRestart: a pod goes on writing while the node plugin is replaced, and a new pod mounts
// when it is back.
func TestPluginRestart(t *testing.T) {
	s := newScene(t, "plugin-restart")
	node := s.c.Nodes()[0].Name()
	s.claim("data")
	s.pod("writer", node, "data")
	_, err := s.c.Kubectl(s.ctx, "-n", release, "delete", "pod", "-l", "app.kubernetes.io/component=node", "--field-selector", "spec.nodeName="+node, "--wait")
	s.must(err)
	s.sh("writer", "echo still here >/data/file && sync /data/file")
	s.comesAndGoes("after", node, "data", "file")
}
