package chart_test

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// The driver takes the arguments that the chart gives it: with --help it reads
// them all, refuses what it does not know, and exits.
func TestDriverTakesItsArguments(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	binary := filepath.Join(t.TempDir(), "nfs-csi-driver")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/nfs-csi-driver")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the driver: %v\n%s", err, out)
	}
	for name, values := range matrix(t) {
		list := render(t, values)
		for component, pod := range map[string]corev1.PodSpec{"controller": controllerPod(t, list), "node": nodePod(t, list)} {
			t.Run(name+" "+component, func(t *testing.T) {
				args := container(t, pod, "driver").Args
				if args[0] != component {
					t.Fatalf("the command is %q", args[0])
				}
				out, err := exec.CommandContext(ctx, binary, append(args, "--help")...).CombinedOutput()
				if err != nil || !strings.Contains(string(out), "Usage:") {
					t.Errorf("%q: %v\n%s", args, err, out)
				}
			})
		}
	}
	if out, err := exec.CommandContext(ctx, binary, "node", "--no-such-flag", "--help").CombinedOutput(); err == nil {
		t.Errorf("an unknown flag passes, so this test shows nothing:\n%s", out)
	}
}
