package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// snapshotController matches the image in the manifests of external-snapshotter.
var snapshotController = regexp.MustCompile(`registry\.k8s\.io/sig-storage/snapshot-controller:\S+`)

// InstallSnapshots installs what every cluster with VolumeSnapshots has, whatever its drivers:
// their CRDs and the snapshot-controller, from the manifests of external-snapshotter.
func (c *Cluster) InstallSnapshots(ctx context.Context) error {
	const module = "github.com/kubernetes-csi/external-snapshotter"
	source, err := buildDir()
	if err != nil {
		return err
	}
	dirs, err := moduleDirs(ctx, source, module+"/client/v8", module+"/v8")
	if err != nil {
		return fmt.Errorf("install snapshots: %w", err)
	}
	// With those of groups: the snapshot-controller looks for them for 30 seconds before it begins.
	crds, err := filepath.Glob(filepath.Join(dirs[0], "config/crd/*snapshot.storage.k8s.io_*.yaml"))
	if err != nil || len(crds) == 0 {
		return fmt.Errorf("install snapshots: no CRDs in %s: %w", dirs[0], err)
	}
	controller := filepath.Join(dirs[1], "deploy/kubernetes/snapshot-controller")
	var manifests []string
	for _, name := range append(crds, filepath.Join(controller, "rbac-snapshot-controller.yaml"), filepath.Join(controller, "setup-snapshot-controller.yaml")) {
		data, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("install snapshots: %w", err)
		}
		manifests = append(manifests, string(data))
	}
	if err := c.LoadSidecars(ctx, "snapshot-controller"); err != nil {
		return err
	}
	image := c.SidecarImage("snapshot-controller")
	if err := c.Apply(ctx, snapshotController.ReplaceAllString(strings.Join(manifests, "\n---\n"), image)); err != nil {
		return fmt.Errorf("install snapshots: %w", err)
	}
	return nil
}

// moduleDirs returns where the sources of modules that dir's module requires are.
func moduleDirs(ctx context.Context, dir string, modules ...string) ([]string, error) {
	var dirs []string
	for _, args := range [][]string{{"mod", "download"}, {"list", "-m", "-f", "{{.Dir}}"}} {
		cmd := exec.CommandContext(ctx, "go", append(args, modules...)...)
		cmd.Dir = dir
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
		}
		dirs = strings.Fields(string(out))
	}
	if len(dirs) != len(modules) {
		return nil, fmt.Errorf("go list says that %q are in %q", modules, dirs)
	}
	return dirs, nil
}
