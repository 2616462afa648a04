package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

// status waits until what a jsonpath says of an object is that.
func (s *scene) status(object, jsonpath, want string) {
	s.t.Helper()
	s.wait(fmt.Sprintf("%s of %s to be %q", jsonpath, object, want), func(ctx context.Context) error {
		got, err := s.c.Kubectl(ctx, "get", object, "-n", s.name, "-o", "jsonpath={"+jsonpath+"}")
		if err == nil && got != want {
			err = fmt.Errorf("it is %q", got)
		}
		return err
	})
}

// patch changes the spec of the claim "data".
func (s *scene) patch(spec string) {
	s.t.Helper()
	s.kubectl("patch", "pvc", "data", "--type", "merge", "--patch", `{"spec":`+spec+`}`)
}

// TestExpand: a volume grows twice while a pod writes into it, and never shrinks.
func TestExpand(t *testing.T) {
	t.Parallel()
	s := newScene(t, "expand")
	s.class("expand-growing", "allowVolumeExpansion: true")
	s.claim("data", "expand-growing")
	volume := s.volume("data")
	s.pod("app", s.c.Nodes()[0].Name(), "data")
	s.sh("app", "exec 3>/data/file; echo one >&3")
	for _, size := range []string{"5Gi", "7Gi"} {
		s.patch(`{"resources":{"requests":{"storage":"` + size + `"}}}`)
		s.status("pvc/data", ".status.capacity.storage", size)
		s.status("pv/"+volume, ".spec.capacity.storage", size)
		// Nothing is left for the node to do.
		s.status("pvc/data", `.status.conditions[?(@.type!="Unused")].type`, "")
	}
	expect(t, "the changes on the export", s.server("cd .nfs-csi/changes/"+volume+"-*; grep -c 'capacityBytes\": 7516192768,' *"), "1.json:0\n2.json:1")
	request := fmt.Sprintf(`{"volumeId": %q}`, s.kubectl("get", "pv", volume, "-o", "jsonpath={.spec.csi.volumeHandle}"))
	if got, err := s.csi(s.leader(), "Controller/ControllerGetVolume", request); err != nil || !strings.Contains(got, `"7516192768"`) {
		t.Errorf("ControllerGetVolume: %v\n%s", err, got)
	}
	_, err := s.c.Kubectl(s.ctx, "patch", "pvc", "data", "-n", s.name, "--type", "merge", "--patch", `{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}`)
	if err == nil || !strings.Contains(err.Error(), "can not be less than status.capacity") {
		t.Errorf("asked for less: %v", err)
	}
	expect(t, "the file", s.sh("app", "echo two >>/data/file; cat /data/file"), "one\ntwo")

	s.kubectl("delete", "pod", "app", "--wait")
	s.kubectl("delete", "pvc", "data")
	s.gone(volume)
	s.wait("the changes to go", func(context.Context) error {
		if left := s.server("ls .nfs-csi/changes"); left != "" {
			return fmt.Errorf("there are %s", left)
		}
		return nil
	})
}

// attributes makes a VolumeAttributesClass with those parameters.
func (s *scene) attributes(name, parameters string) {
	s.t.Helper()
	s.apply("{apiVersion: storage.k8s.io/v1, kind: VolumeAttributesClass, metadata: {name: %s}, driverName: %s, parameters: {%s}}", name, s.driver, parameters)
	s.t.Cleanup(func() {
		if _, err := s.c.Kubectl(s.ctx, "delete", "volumeattributesclass", name, "--wait=false"); err != nil {
			s.t.Error(err)
		}
	})
}

// TestVolumeAttributesClass: a volume that a pod uses gets another group, mode and onDelete; what
// cannot change is refused with the reason, and the way back is open.
func TestVolumeAttributesClass(t *testing.T) {
	t.Parallel()
	s := newScene(t, "attributes")
	s.attributes("attributes-keep", `onDelete: retain, mountPermissions: "2770", gid: "1000"`)
	s.attributes("attributes-wrong", `subDir: elsewhere`)
	s.claim("data")
	volume := s.volume("data")
	s.as(user{"app", 1000, 1000, ""})
	s.mayNot("app", "touch /data/file")

	s.patch(`{"volumeAttributesClassName":"attributes-keep"}`)
	s.status("pvc/data", ".status.currentVolumeAttributesClassName", "attributes-keep")
	s.status("pv/"+volume, ".spec.volumeAttributesClassName", "attributes-keep")
	expect(t, "the directory", s.server("stat -c '%a %u:%g' "+volume), "2770 0:1000")
	s.text("the pod to be let in", "app", "echo hello >/data/file && stat -c %g /data/file", func(got string) bool { return got == "1000" })

	s.patch(`{"volumeAttributesClassName":"attributes-wrong"}`)
	s.event("data", "InvalidArgument", `"subdir" cannot change`)
	s.status("pvc/data", ".status.modifyVolumeStatus.status", "Infeasible")
	s.patch(`{"volumeAttributesClassName":"attributes-keep"}`)
	s.status("pvc/data", ".status.modifyVolumeStatus", "")
	expect(t, "the directory", s.server("stat -c '%a %u:%g' "+volume), "2770 0:1000")

	s.kubectl("delete", "pod", "app", "--wait")
	s.kubectl("delete", "pvc", "data")
	s.gone(volume)
	expect(t, "what was retained", s.server("cat "+volume+"/file"), "hello")
	s.server("rm -r " + volume)
}

// TestCreateWithAttributesClass: a claim's VolumeAttributesClass comes before its StorageClass.
func TestCreateWithAttributesClass(t *testing.T) {
	t.Parallel()
	s := newScene(t, "create-attributes")
	s.class("create-attributes-named", "  onDelete: delete", `  uid: "7"`, `  mountPermissions: "0711"`)
	s.attributes("create-attributes", `onDelete: archive, archiveRetention: 30d, mountPermissions: "0750"`)
	s.apply(strings.Replace(sceneClaim, "spec: {", "spec: {volumeAttributesClassName: create-attributes, ", 1), "data", "create-attributes-named")
	volume := s.volume("data")
	expect(t, "the directory", s.server("stat -c '%a %u' "+volume), "750 7")
	if got := s.record(volume); got.OnDelete != "archive" || got.ArchiveRetention != "720h0m0s" || got.Mode != "0750" {
		t.Errorf("the record is %+v", got)
	}
	s.kubectl("delete", "pvc", "data")
	s.gone(volume)
	s.server("rm -r archived-* .nfs-csi/archive/*")
}
