// Package chart renders the Helm chart in charts/nfs-csi-driver, and makes from it
// what is under version control beside it: the tables of its README, the plain
// manifests in deploy/kubernetes and the snapshots in testdata/matrix.
//
// It is a module of its own: Helm's library is none of the driver's business. From
// the root of the repository, `go test -C test/chart ./...` tests the chart, and
// `go run -C test/chart ./generate` makes those files again after a change to it.
package chart

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	helmchart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
)

// Dir is the chart's directory as seen from the root of the repository.
const Dir = "charts/nfs-csi-driver"

// ReleaseName and Namespace are those that the installation guide uses.
const (
	ReleaseName = "nfs-csi-driver"
	Namespace   = "nfs-csi"
)

// Load reads the chart.
func Load(root string) (*helmchart.Chart, error) {
	c, err := loader.Load(path.Join(root, Dir))
	if err != nil {
		return nil, fmt.Errorf("load the chart: %w", err)
	}
	return c, nil
}

// Render renders the chart as `helm template` of Helm 4 does, values checked
// against the schema first. The result has the rendered text by the name of the
// template, such as "node.yaml" or "NOTES.txt", without those that gave nothing.
func Render(c *helmchart.Chart, values map[string]any) (map[string]string, error) {
	release := common.ReleaseOptions{Name: ReleaseName, Namespace: Namespace, Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(c, values, release, nil)
	if err != nil {
		return nil, err
	}
	rendered, err := engine.Render(c, all)
	if err != nil {
		return nil, err
	}
	return templates(rendered), nil
}

// templates drops the path of the chart from the names of rendered templates,
// and those that gave nothing.
func templates(rendered map[string]string) map[string]string {
	out := map[string]string{}
	for name, text := range rendered {
		base := path.Base(name)
		if strings.HasPrefix(base, "_") || strings.TrimSpace(text) == "" {
			continue
		}
		out[base] = text
	}
	return out
}

// Manifests joins the rendered templates, but not the notes, in the order of
// their names.
func Manifests(rendered map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(rendered)) {
		if path.Ext(name) != ".yaml" {
			continue
		}
		fmt.Fprintf(&b, "---\n# %s\n%s\n", name, strings.TrimSpace(rendered[name]))
	}
	return b.String()
}
