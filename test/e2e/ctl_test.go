package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// ctl runs "nfs-csi-driver ctl" for the scene's share in a controller's container, which holds
// nothing but the binary.
func (s *scene) ctl(args ...string) (string, error) {
	command := []string{"exec", "-n", namespace, "deploy/" + release + "-controller", "-c", "driver", "--", "/nfs-csi-driver", "ctl"}
	return s.c.Kubectl(s.ctx, append(append(command, args...), "--export", s.c.Server().IPv4()+":"+s.dir)...)
}

// TestCtl: an operator sees a volume and a stray directory by kubectl exec, adopts the directory, and
// its PersistentVolume gives a pod the data and is deleted like any other.
func TestCtl(t *testing.T) {
	t.Parallel()
	s := newScene(t, "ctl")
	s.claim("data")
	volume := s.volume("data")
	s.server("mkdir -p stray && echo precious > stray/file")

	var rows []struct {
		Kind, Path, Name string
		Claim            struct{ Namespace, Name string }
	}
	list := func(what string) error {
		out, err := s.ctl(what, "-o", "json")
		if err == nil {
			err = json.Unmarshal([]byte(out), &rows)
		}
		return err
	}
	// Each controller learns of the export by watching.
	s.wait("ctl to list the volume", func(context.Context) error {
		if err := list("volumes"); err != nil {
			return err
		}
		if len(rows) != 1 || rows[0].Name != volume || rows[0].Claim.Namespace != s.name || rows[0].Claim.Name != "data" {
			return fmt.Errorf("it lists %+v", rows)
		}
		return nil
	})
	s.must(list("orphans"))
	if len(rows) != 1 || rows[0].Kind != "directory" || rows[0].Path != "stray" {
		t.Errorf("orphans: %+v", rows)
	}
	manifest, err := s.ctl("adopt", "stray", "--name=ctl-stray", "--on-delete=delete", "--claim="+s.name+"/stray", "--yes")
	s.must(err)
	s.must(s.c.Apply(s.ctx, manifest))
	s.apply(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: stray}
spec: {accessModes: [ReadWriteMany], storageClassName: "", resources: {requests: {storage: 1Gi}}}
`)
	if got := s.volume("stray"); got != "ctl-stray" {
		t.Fatalf("the claim is bound to %s", got)
	}
	s.pod("reader", s.c.Nodes()[0].Name(), "stray")
	if got := s.sh("reader", "cat /data/file"); got != "precious" {
		t.Errorf("the pod reads %q", got)
	}
	s.kubectl("delete", "pod", "reader")
	s.kubectl("patch", "pv", "ctl-stray", "-p", `{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`)
	s.kubectl("delete", "pvc", "stray")
	s.gone("ctl-stray")
	out, err := s.ctl("purge")
	s.must(err)
	if !strings.Contains(out, "WAITING") || strings.Contains(s.server("ls"), "stray") {
		t.Errorf("after the purge: %s; on the share: %s", out, s.server("ls"))
	}
}
