package e2e

import (
	"path/filepath"
	"strings"
	"testing"
)

// podMonitors stands for the Prometheus operator's CRD, which only a cluster with that has.
const podMonitors = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: podmonitors.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  names: {kind: PodMonitor, listKind: PodMonitorList, plural: podmonitors, singular: podmonitor}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

// TestManifests: the API server accepts every rendering of the chart that is under version control,
// and the plain manifests and their examples.
func TestManifests(t *testing.T) {
	t.Parallel()
	ctx, c := onCluster(t)
	const root = "../.."
	if err := c.Apply(ctx, podMonitors); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := c.Kubectl(ctx, "delete", "crd", "podmonitors.monitoring.coreos.com"); err != nil {
			t.Error(err)
		}
	})
	if _, err := c.Kubectl(ctx, "wait", "--for=condition=Established", "crd/podmonitors.monitoring.coreos.com", "--timeout=30s"); err != nil {
		t.Fatal(err)
	}
	var sets [][]string
	for _, pattern := range []string{"test/chart/testdata/snapshots/*.yaml", "deploy/kubernetes/examples/*.yaml"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(files) < 5 {
			t.Fatalf("%s has only %v (%v)", pattern, files, err)
		}
		for _, f := range files {
			sets = append(sets, []string{"-f", f})
		}
	}
	sets = append(sets, []string{"-k", filepath.Join(root, "deploy/kubernetes")})
	for _, set := range sets {
		t.Run(filepath.Base(set[1]), func(t *testing.T) {
			// With create, since the release has some of the names: the server checks an object wholly
			// before it looks whether there is one of that name.
			_, err := c.Kubectl(ctx, append([]string{"create", "--dry-run=server", "--validate=strict", "--warnings-as-errors"}, set...)...)
			if err == nil {
				return
			}
			for line := range strings.Lines(err.Error()) {
				if !strings.Contains(line, "(AlreadyExists)") {
					t.Error(strings.TrimSpace(line))
				}
			}
		})
	}
}
