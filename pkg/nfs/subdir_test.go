package nfs_test

import (
	"strings"
	"testing"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func TestExpandSubDir(t *testing.T) {
	values := nfs.SubDirValues{PVCName: "data", PVCNamespace: "team-a", PVName: "pvc-1"}
	for _, tc := range []struct {
		template string
		values   nfs.SubDirValues
		want     string
		err      string
	}{
		{template: "", values: values, want: "pvc-1"},
		{template: "${pvc.metadata.namespace}/${pvc.metadata.name}", values: values, want: "team-a/data"},
		{template: "k8s-${pv.metadata.name}-x", values: values, want: "k8s-pvc-1-x"},
		{template: "fixed/ü #%", values: values, want: "fixed/ü #%"},
		{template: strings.Repeat("x", 255), want: strings.Repeat("x", 255)},
		{template: strings.Repeat("x", 256), err: "longer than 255 bytes"},
		{template: "/", err: "element is empty"},
		{template: ".", err: "not a directory name"},
		{template: "a/../b", err: "not a directory name"},
		{template: "/a", err: "element is empty"},
		{template: "a/", err: "element is empty"},
		{template: "a//b", err: "element is empty"},
		{template: "a\x00", err: "control character"},
		{template: "a\xff", err: "not valid UTF-8"},
		{template: ".nfs-csi/volumes", err: "reserved"},
		{template: "a/.NFS-CSI", err: "reserved"},
		{template: "archived-a", err: "reserved"},
		{template: "${pv.metadata.nam}", values: values, err: "unknown variable ${pv.metadata.nam}"},
		{template: "${pv.metadata.name", values: values, err: "never closed"},
		{template: "a-${pvc.metadata.name}", err: "--extra-create-metadata"},
		{template: "${pvc.metadata.name}", values: nfs.SubDirValues{PVCName: ".."}, err: "not a directory name"},
		{template: "x/${pvc.metadata.name}", values: nfs.SubDirValues{PVCName: "../../etc"}, err: "holds a slash"},
		{template: "${pvc.metadata.name}", values: nfs.SubDirValues{PVCName: ".nfs-csi"}, err: "reserved"},
		// A value is never expanded again.
		{template: "${pvc.metadata.name}", values: nfs.SubDirValues{PVCName: "${pv.metadata.name}"}, want: "${pv.metadata.name}"},
	} {
		t.Run(tc.template, func(t *testing.T) {
			got, err := nfs.ExpandSubDir(tc.template, tc.values)
			checkInvalid(t, err, tc.err)
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// FuzzExpandSubDir: whatever the template and the names, an accepted directory
// lies below the share and belongs to nobody else.
func FuzzExpandSubDir(f *testing.F) {
	f.Add("${pvc.metadata.namespace}/${pvc.metadata.name}", "a", "b", "c")
	f.Add("${pv.metadata.name}", "..", ".", "/")
	f.Add("x/${", "", "", "")
	f.Fuzz(func(t *testing.T, template, name, namespace, pv string) {
		dir, err := nfs.ExpandSubDir(template, nfs.SubDirValues{PVCName: name, PVCNamespace: namespace, PVName: pv})
		if err != nil {
			return
		}
		for element := range strings.SplitSeq(dir, "/") {
			if element == "" || element == "." || element == ".." || strings.HasPrefix(element, ".nfs") || strings.ContainsRune(element, 0) || len(element) > 255 {
				t.Fatalf("template %q gave %q", template, dir)
			}
		}
	})
}
