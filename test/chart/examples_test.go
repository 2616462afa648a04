package chart_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

const driverName = "csi.nfs-csi.io"

// examples returns the objects of every example by its file's name.
func examples(t *testing.T) map[string]objects {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "deploy/kubernetes/examples/*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples (%v)", err)
	}
	found := map[string]objects{}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		found[filepath.Base(f)] = decode(t, string(data))
	}
	return found
}

// Every object of the examples is one that Kubernetes knows, and what one names
// is in another.
func TestExamples(t *testing.T) {
	found := examples(t)
	var list objects
	for _, objects := range found {
		list = append(list, objects...)
	}
	classes, claims := map[string]bool{"": true}, map[string]bool{}
	for _, c := range all[*storagev1.StorageClass](list) {
		if c.Provisioner != driverName {
			t.Errorf("StorageClass %s is of %s", c.Name, c.Provisioner)
		}
		classes[c.Name] = true
	}
	for _, c := range all[*corev1.PersistentVolumeClaim](list) {
		claims[c.Name] = true
		checkClass(t, c.Name, c.Spec, classes)
	}
	var pods []corev1.PodSpec
	for _, p := range all[*corev1.Pod](list) {
		pods = append(pods, p.Spec)
	}
	for _, d := range all[*appsv1.Deployment](list) {
		pods = append(pods, d.Spec.Template.Spec)
	}
	for _, s := range all[*appsv1.StatefulSet](list) {
		for _, c := range s.Spec.VolumeClaimTemplates {
			checkClass(t, s.Name, c.Spec, classes)
		}
		pods = append(pods, s.Spec.Template.Spec)
	}
	if len(pods) < 4 {
		t.Errorf("%d pods and templates of pods: some example is gone", len(pods))
	}
	for _, pod := range pods {
		for _, v := range pod.Volumes {
			if v.PersistentVolumeClaim != nil && !claims[v.PersistentVolumeClaim.ClaimName] {
				t.Errorf("no claim %s", v.PersistentVolumeClaim.ClaimName)
			}
			if v.Ephemeral != nil {
				checkClass(t, v.Name, v.Ephemeral.VolumeClaimTemplate.Spec, classes)
			}
		}
	}
}

func checkClass(t *testing.T, name string, spec corev1.PersistentVolumeClaimSpec, classes map[string]bool) {
	t.Helper()
	if spec.StorageClassName == nil {
		t.Errorf("%s names no class: it would get the cluster's default one", name)
	} else if !classes[*spec.StorageClassName] {
		t.Errorf("%s names the class %q, which is not there", name, *spec.StorageClassName)
	}
}

// A volume and its claim name each other, and deleting the claim deletes no data
// that the driver did not make.
func TestExamplesOfStaticVolumes(t *testing.T) {
	for name, list := range examples(t) {
		for _, v := range all[*corev1.PersistentVolume](list) {
			t.Run(name, func(t *testing.T) {
				claim := one[*corev1.PersistentVolumeClaim](t, list)
				if claim.Spec.VolumeName != v.Name {
					t.Errorf("the claim is for %q, the volume is %q", claim.Spec.VolumeName, v.Name)
				}
				if ref := v.Spec.ClaimRef; ref != nil && (ref.Name != claim.Name || ref.Namespace != claim.Namespace) {
					t.Errorf("the volume is for %s/%s, the claim is %s/%s", ref.Namespace, ref.Name, claim.Namespace, claim.Name)
				}
				if diff := cmp.Diff(v.Spec.AccessModes, claim.Spec.AccessModes); diff != "" {
					t.Errorf("access modes (-volume +claim):\n%s", diff)
				}
				if claim.Spec.Resources.Requests.Storage().Cmp(*v.Spec.Capacity.Storage()) > 0 {
					t.Error("the claim asks for more than the volume has")
				}
				if v.Spec.CSI.Driver != driverName || v.Spec.CSI.VolumeAttributes["server"] == "" || v.Spec.CSI.VolumeAttributes["share"] == "" {
					t.Errorf("the driver cannot find the volume: %+v", v.Spec.CSI)
				}
				if v.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain {
					t.Errorf("reclaim policy %s", v.Spec.PersistentVolumeReclaimPolicy)
				}
			})
		}
	}
}

// The handle of csi-driver-nfs in the example says what its attributes say.
func TestExampleOfTakeover(t *testing.T) {
	csi := one[*corev1.PersistentVolume](t, examples(t)["takeover.yaml"]).Spec.CSI
	parts := strings.Split(csi.VolumeHandle, "#")
	if len(parts) != 5 {
		t.Fatalf("the handle %q is not server#share#subDir#uuid#onDelete", csi.VolumeHandle)
	}
	want := map[string]string{"server": parts[0], "share": "/" + parts[1], "subdir": parts[2]}
	if diff := cmp.Diff(want, csi.VolumeAttributes); diff != "" {
		t.Errorf("attributes (-handle +attributes):\n%s", diff)
	}
}

// The StorageClass of the examples has parameters that the chart's schema
// allows, and shows all of those.
func TestExampleOfStorageClass(t *testing.T) {
	class := one[*storagev1.StorageClass](t, examples(t)["storageclass.yaml"])
	want := []string{"gid", "mountPermissions", "onDelete", "server", "share", "subDir", "uid"}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(class.Parameters))); diff != "" {
		t.Errorf("parameters (-want +got):\n%s", diff)
	}
}

// The README of the manifests tells of each example.
func TestExamplesAreListed(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join(root, "deploy/kubernetes/README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for name := range examples(t) {
		if !strings.Contains(string(readme), "(examples/"+name+")") {
			t.Errorf("README.md does not tell of %s", name)
		}
	}
}
