package e2e

import (
	"context"
	"fmt"
	"testing"
)

// TestSharedDirectory: two claims have one directory; what the pod of one writes the pod of the other
// reads. The directory stays when the first of them goes, and goes with the last.
func TestSharedDirectory(t *testing.T) {
	t.Parallel()
	s := newScene(t, "shared")
	s.class("shared-team", "  subDir: team", `  shared: "true"`)
	for i, claim := range []string{"one", "two"} {
		s.claim(claim, "shared-team")
		s.volume(claim)
		s.apply(podManifest, claim, s.c.Nodes()[i].Name(), waits, claim)
	}
	one, two := s.volume("one"), s.volume("two")
	if got := s.stored(); len(got.directories) != 1 || got.directories[0] != "team" || len(got.records) != 2 {
		t.Errorf("on the export there are %+v, want one directory and two records", got)
	}
	s.podReady("one")
	s.podReady("two")
	s.sh("one", "echo first >/data/file")
	s.sh("two", "cat /data/file >/dev/null; echo second >>/data/file")
	expect(t, "what the first pod reads", s.sh("one", "cat /data/file"), "first\nsecond")

	s.kubectl("delete", "pod", "one", "--wait")
	s.kubectl("delete", "pvc", "one")
	s.gone(one)
	expect(t, "what the second pod reads, when the first claim is gone", s.sh("two", "echo third >>/data/file; cat /data/file"), "first\nsecond\nthird")
	expect(t, "the file on the server", s.server("cat team/file"), "first\nsecond\nthird")

	s.kubectl("delete", "pod", "two", "--wait")
	s.kubectl("delete", "pvc", "two")
	s.gone(two)
	s.wait("the directory to be unlinked", func(context.Context) error {
		if left := s.server("ls; ls .nfs-csi/shared; " + listTrash); left != "" {
			return fmt.Errorf("there is %s", left)
		}
		return nil
	})
	s.left()
}
