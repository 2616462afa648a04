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
	return s.ctlIn(s.ctx, "deploy/"+release+"-controller", args...)
}

// ctlIn is ctl in a certain pod.
func (s *scene) ctlIn(ctx context.Context, pod string, args ...string) (string, error) {
	command := []string{"exec", "-n", namespace, pod, "-c", "driver", "--", "/nfs-csi-driver", "ctl"}
	return s.c.Kubectl(ctx, append(append(command, args...), "--export", s.c.Server().IPv4()+":"+s.dir)...)
}

// TestCtl: an operator sees a volume and a stray directory by kubectl exec, adopts the directory, and
// its PersistentVolume gives a pod the data and is deleted like any other.
func TestCtl(t *testing.T) {
	t.Parallel()
	s := newScene(t, "ctl")
	s.claim("data")
	volume := s.volume("data")
	s.server("mkdir -p stray && echo precious > stray/file")

	if found := s.ctlList("volumes", 1)[0]; found.Name != volume || found.Claim.Namespace != s.name || found.Claim.Name != "data" {
		t.Errorf("the volume is %+v", found)
	}
	if found := s.ctlList("orphans", 1)[0]; found.Kind != "directory" || found.Path != "stray" {
		t.Errorf("the orphan is %+v", found)
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

// ctlRow is what these tests read in ctl's JSON.
type ctlRow struct {
	Kind, Path, Name, Source, OnDelete string
	SizeBytes                          int64
	Claim                              struct{ Namespace, Name string }
}

// ctlList waits until ctl lists that many things of the scene's share. Each controller learns of the
// export by watching.
func (s *scene) ctlList(what string, count int) (rows []ctlRow) {
	s.t.Helper()
	s.wait(fmt.Sprintf("ctl %s to list %d", what, count), func(context.Context) error {
		out, err := s.ctl(what, "-o", "json")
		rows = nil
		if err == nil {
			err = json.Unmarshal([]byte(out), &rows)
		}
		if err == nil && len(rows) != count {
			err = fmt.Errorf("it lists %+v", rows)
		}
		return err
	})
	return rows
}

// TestRestoreByHand: a claim was deleted by mistake, and an operator takes its data back into service
// under the claim's name, by the steps of docs/guides/recovery.md.
func TestRestoreByHand(t *testing.T) {
	t.Parallel()
	s := newScene(t, "restore")
	volume := s.deleted("restore-archived", "  onDelete: archive\n  archiveRetention: 30d")
	s.gone(volume)

	if found := s.ctlList("archive", 1)[0]; found.Name != volume || found.Claim.Namespace != s.name || found.Claim.Name != "data" {
		t.Errorf("the archive is %+v", found)
	}
	s.ctlList("trash", 0)
	const again = "restored-data"
	command := []string{"restore", volume, "--name=" + again, "--claim=" + s.name + "/data"}
	archives := "ls -d archived-*"
	before := s.server(archives)
	_, err := s.ctl(command...)
	s.must(err)
	expect(t, "the archive, when it was only asked whether it can be restored", s.server(archives), before)
	manifest, err := s.ctl(append(command, "--yes")...)
	s.must(err)
	s.must(s.c.Apply(s.ctx, manifest))
	s.apply(sceneClaim, "data", `""`)
	if got := s.volume("data"); got != again {
		t.Fatalf("the claim is bound to %s", got)
	}
	s.ctlList("archive", 0)
	if found := s.ctlList("volumes", 1)[0]; found.Name != again || found.OnDelete != "archive" {
		t.Errorf("the volume is %+v", found)
	}
	s.pod("reader", s.c.Nodes()[0].Name(), "data")
	expect(t, "what the pod reads and writes", s.sh("reader", "cat /data/file; echo more >/data/new; cat /data/new"), "precious\nmore")
	expect(t, "the reclaim policy", s.kubectl("get", "pv", again, "-o", "jsonpath={.spec.persistentVolumeReclaimPolicy}"), "Retain")

	s.kubectl("delete", "pod", "reader", "--wait")
	s.kubectl("patch", "pv", again, "-p", `{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`)
	s.kubectl("delete", "pvc", "data")
	s.gone(again)
	expect(t, "the file in the archive that it is once more", s.server("cat archived-*/file && rm -r archived-* .nfs-csi/archive/*"), "precious")
}
