package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Kubeconfig is the path of the administrator's, for use on the host; it is gone after Close.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.dir, "admin.kubeconfig") }

// Kubectl runs kubectl as the administrator and returns its standard output. What it printed to
// standard error is in the error.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.tool(ctx, "kubectl", "", args...)
}

// Helm runs helm as the administrator and returns its standard output.
func (c *Cluster) Helm(ctx context.Context, args ...string) (string, error) {
	return c.tool(ctx, "helm", "", args...)
}

// Apply applies manifests, in YAML or JSON.
func (c *Cluster) Apply(ctx context.Context, manifests string) error {
	_, err := c.tool(ctx, "kubectl", manifests, "apply", "-f", "-")
	return err
}

// Get reads an object, or a list of them, into v, from kubectl's JSON.
func (c *Cluster) Get(ctx context.Context, v any, args ...string) error {
	out, err := c.Kubectl(ctx, append([]string{"get", "-o", "json"}, args...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		return fmt.Errorf("kubectl get %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// Exec runs a command in a pod and returns its standard output.
func (c *Cluster) Exec(ctx context.Context, namespace, pod string, command ...string) (string, error) {
	return c.Kubectl(ctx, append([]string{"exec", "-n", namespace, pod, "--"}, command...)...)
}

// Tool is the path of one of the cluster's programs that a person may want: kubectl or helm.
func (c *Cluster) Tool(name string) string { return c.programs[name].path }

func (c *Cluster) tool(ctx context.Context, name, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.programs[name].path, args...)
	home := filepath.Join(c.dir, "home")
	cmd.Env = append(os.Environ(),
		"KUBECONFIG="+c.Kubeconfig(),
		// Nobody's own settings and caches.
		"HOME="+home, "KUBECACHEDIR="+filepath.Join(home, "kube"), "KUBERC=off",
		"HELM_CACHE_HOME="+filepath.Join(home, "helm/cache"),
		"HELM_CONFIG_HOME="+filepath.Join(home, "helm/config"),
		"HELM_DATA_HOME="+filepath.Join(home, "helm/data"),
		"HELM_NAMESPACE=", "HELM_KUBECONTEXT=",
	)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "),
			errors.Join(err, ctx.Err()), bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}
