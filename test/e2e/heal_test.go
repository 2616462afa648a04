package e2e

import "testing"

// TestWrongServer: the claim's event says what to look at, and the claim is bound when the class
// is right.
func TestWrongServer(t *testing.T) {
	t.Parallel()
	s := newScene(t, "wrong-server")
	// There is a machine, but no NFS.
	wrong := s.c.Nodes()[0].IPv4()
	s.wrongClass("server: "+wrong, "share: "+s.dir)
	s.claim("data", s.name+"-mistaken")
	s.event("data", "ProvisioningFailed", "Unavailable", wrong+":"+s.dir, "cannot be reached", "check that the server runs")
	s.heals("data")
}

// TestWrongShare: likewise, for a share that the server does not export.
func TestWrongShare(t *testing.T) {
	t.Parallel()
	s := newScene(t, "wrong-share")
	server := s.c.Server().IPv4()
	s.wrongClass("server: "+server, "share: "+s.dir+"-typo")
	s.claim("data", s.name+"-mistaken")
	s.event("data", "ProvisioningFailed", "FailedPrecondition", server+":"+s.dir+"-typo", "no such directory", "spelled as in /etc/exports")
	s.heals("data")
}

func (s *scene) wrongClass(server, share string) {
	s.t.Helper()
	s.apply(`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %[1]s-mistaken, labels: {scene: %[1]s}}
provisioner: %[2]s
parameters: {%[3]s, %[4]s}
`, s.name, s.driver, server, share)
}

// heals corrects the class. Its parameters cannot change, so it is made anew.
func (s *scene) heals(claim string) {
	s.t.Helper()
	s.kubectl("delete", "storageclass", s.name+"-mistaken")
	s.class(s.name + "-mistaken")
	s.volume(claim)
}
