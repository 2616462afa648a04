package chart_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	loader3 "helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	engine3 "helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	chart "github.com/nfs-csi/nfs-csi-driver/test/chart"
)

// What is made from the chart is what is under version control.
func TestGeneratedFilesAreCurrent(t *testing.T) {
	files, err := chart.Generated(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		have, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Errorf("%v: run `go run -C test/chart ./generate`", err)
			continue
		}
		if diff := cmp.Diff(string(have), string(files[name])); diff != "" {
			t.Errorf("%s is out of date: run `go run -C test/chart ./generate` and look at the change (-have +want):\n%s", name, diff)
		}
	}
	stale, err := chart.Stale(root, files)
	if err != nil {
		t.Fatal(err)
	}
	if len(stale) > 0 {
		t.Errorf("nothing makes %v any longer: run `go run -C test/chart ./generate`", stale)
	}
}

// Every object of every snapshot has only fields that Kubernetes knows, and no
// two have the same name.
func TestObjectsAreValid(t *testing.T) {
	for name, values := range matrix(t) {
		t.Run(name, func(t *testing.T) {
			seen := map[string]bool{}
			for _, o := range render(t, values) {
				if seen[key(o)] {
					t.Errorf("%s is there twice", key(o))
				}
				seen[key(o)] = true
			}
			if len(seen) == 0 {
				t.Error("no objects at all")
			}
		})
	}
}

func TestLint(t *testing.T) {
	for name, values := range matrix(t) {
		t.Run(name, func(t *testing.T) {
			result := lint.RunAll(filepath.Join(root, chart.Dir), parseValues(t, values), chart.Namespace)
			for _, m := range result.Messages {
				// helm lint would like every chart to have an icon.
				if m.Severity > support.InfoSev {
					t.Errorf("helm lint: %v", m)
				}
			}
			if result.HighestSeverity == support.UnknownSev {
				t.Error("helm lint looked at nothing")
			}
		})
	}
}

// Helm 3.18 renders what Helm 4 does.
func TestHelm3(t *testing.T) {
	c, err := loader3.Load(filepath.Join(root, chart.Dir))
	if err != nil {
		t.Fatal(err)
	}
	release := chartutil.ReleaseOptions{Name: chart.ReleaseName, Namespace: chart.Namespace, Revision: 1, IsInstall: true}
	for name, values := range matrix(t) {
		t.Run(name, func(t *testing.T) {
			all, err := chartutil.ToRenderValues(c, parseValues(t, values), release, nil)
			if err != nil {
				t.Fatal(err)
			}
			rendered, err := engine3.Render(c, all)
			if err != nil {
				t.Fatal(err)
			}
			three := map[string]string{}
			for path, text := range rendered {
				if !strings.HasPrefix(filepath.Base(path), "_") && strings.TrimSpace(text) != "" {
					three[filepath.Base(path)] = text
				}
			}
			four, err := tryRender(t, values)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(four, three); diff != "" {
				t.Errorf("Helm 3 renders otherwise (-4 +3):\n%s", diff)
			}
		})
	}
}

// `kubectl apply -k deploy/kubernetes` applies the objects that Helm installs,
// and the namespace.
func TestKustomization(t *testing.T) {
	result, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).
		Run(filesys.MakeFsOnDisk(), filepath.Join(root, "deploy/kubernetes"))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := result.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]object{}
	for _, o := range decode(t, string(stream)) {
		for label := range o.GetLabels() {
			if label == "helm.sh/chart" || label == "app.kubernetes.io/managed-by" {
				t.Errorf("%s has the label %s, though Helm does not manage it", key(o), label)
			}
		}
		got[key(o)] = o
	}
	want := map[string]object{}
	for _, o := range render(t, "") {
		labels := o.GetLabels()
		delete(labels, "helm.sh/chart")
		delete(labels, "app.kubernetes.io/managed-by")
		want[key(o)] = o
	}
	namespace, ok := got["Namespace /"+chart.Namespace]
	if !ok {
		t.Fatal("no namespace")
	}
	if level := namespace.GetLabels()["pod-security.kubernetes.io/enforce"]; level != "privileged" {
		t.Errorf("pod security level is %q: the node plugin would be refused", level)
	}
	delete(got, key(namespace))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-helm +kustomize:\n%s", diff)
	}
}
