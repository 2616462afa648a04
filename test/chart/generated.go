package chart

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// MatrixDir holds a file of values for each snapshot, as seen from the root of
// the repository; SnapshotDir what the chart makes of them.
const (
	MatrixDir   = "test/chart/testdata/matrix"
	SnapshotDir = "test/chart/testdata/snapshots"
	deployDir   = "deploy/kubernetes"
	readmePath  = Dir + "/README.md"
)

// Generated returns every file that is made from the chart, by its path as seen
// from the root of the repository.
func Generated(root string) (map[string][]byte, error) {
	files := map[string][]byte{}
	readme, err := generateReadme(root)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", readmePath, err)
	}
	files[readmePath] = readme
	for _, generate := range []func(string) (map[string][]byte, error){generateSnapshots, generateManifests} {
		more, err := generate(root)
		if err != nil {
			return nil, err
		}
		maps.Copy(files, more)
	}
	return files, nil
}

// Stale returns the files that a former Generated made and this one does not.
func Stale(root string, generated map[string][]byte) ([]string, error) {
	var stale []string
	for _, pattern := range []string{SnapshotDir + "/*.yaml", deployDir + "/*.yaml"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			rel, err := filepath.Rel(root, f)
			if err != nil {
				return nil, err
			}
			if _, ok := generated[filepath.ToSlash(rel)]; !ok {
				stale = append(stale, filepath.ToSlash(rel))
			}
		}
	}
	return stale, nil
}

// generateSnapshots renders the chart once with each file of values.
func generateSnapshots(root string) (map[string][]byte, error) {
	c, err := Load(root)
	if err != nil {
		return nil, err
	}
	inputs, err := filepath.Glob(filepath.Join(root, MatrixDir, "*.yaml"))
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, input := range inputs {
		data, err := os.ReadFile(input)
		if err != nil {
			return nil, err
		}
		var values map[string]any
		if err := yaml.Unmarshal(data, &values); err != nil {
			return nil, fmt.Errorf("%s: %w", input, err)
		}
		rendered, err := Render(c, values)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", input, err)
		}
		name := path.Join(SnapshotDir, filepath.Base(input))
		files[name] = []byte(Manifests(rendered))
	}
	return files, nil
}

const generatedHeader = "# Made from " + Dir + " by `go run -C test/chart ./generate`; do not edit.\n"

// helmLabels say that Helm manages an object, which is wrong for manifests that
// kubectl applies.
var helmLabels = regexp.MustCompile(`(?m)^ +(helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n`)

// generateManifests renders the chart with its defaults into plain manifests and
// a kustomization that also makes the namespace.
func generateManifests(root string) (map[string][]byte, error) {
	c, err := Load(root)
	if err != nil {
		return nil, err
	}
	rendered, err := Render(c, nil)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{
		path.Join(deployDir, "namespace.yaml"): []byte(generatedHeader + `apiVersion: v1
kind: Namespace
metadata:
  name: ` + Namespace + `
  labels:
    # The node plugin is privileged: mounts have to reach the node.
    pod-security.kubernetes.io/enforce: privileged
`),
	}
	resources := []string{"namespace.yaml"}
	for _, name := range slices.Sorted(maps.Keys(rendered)) {
		if path.Ext(name) != ".yaml" {
			continue
		}
		text := helmLabels.ReplaceAllString(strings.TrimSpace(rendered[name])+"\n", "")
		files[path.Join(deployDir, name)] = []byte(generatedHeader + text)
		resources = append(resources, name)
	}
	var b bytes.Buffer
	b.WriteString(generatedHeader + "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n")
	for _, r := range resources {
		fmt.Fprintf(&b, "  - %s\n", r)
	}
	files[path.Join(deployDir, "kustomization.yaml")] = b.Bytes()
	return files, nil
}
