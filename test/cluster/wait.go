package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

const pollInterval = 250 * time.Millisecond

// stopPolling wraps an error that no waiting cures.
type stopPolling struct{ error }

func (s stopPolling) Unwrap() error { return s.error }

// Hopeless marks an error of a condition as one that no waiting cures.
func Hopeless(err error) error { return stopPolling{err} }

// poll calls a condition until it returns nil; its last error says what was missing when ctx ends.
func poll(ctx context.Context, condition func(context.Context) error) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var last error
	for {
		err := condition(ctx)
		if err == nil {
			return nil
		}
		if errors.As(err, new(stopPolling)) {
			return err
		}
		// A condition that ctx cut off tells less than the one before.
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; last seen: %w", ctx.Err(), last)
		case <-tick.C:
		}
	}
}

// WaitFor calls a condition until it returns nil. Its errors say what is missing yet, and the last
// of them is in the error when ctx ends, which should have a deadline, or when the error is marked
// Hopeless. Then the error also shows pods and events, and names the directory that has them whole.
func (c *Cluster) WaitFor(ctx context.Context, what string, condition func(context.Context) error) error {
	err := poll(ctx, func(ctx context.Context) error {
		if err := c.control.ended(); err != nil {
			return stopPolling{err}
		}
		return condition(ctx)
	})
	if err == nil {
		return nil
	}
	err = fmt.Errorf("wait for %s: %w", what, err)
	if errors.Is(ctx.Err(), context.Canceled) {
		return err // somebody wants to stop, and not to know more
	}
	// Not the caller's context, which may be what ended.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return fmt.Errorf("%w\n%s", err, c.Diagnose(ctx, what))
}

// WaitPod waits until a pod is ready, or has succeeded.
func (c *Cluster) WaitPod(ctx context.Context, namespace, name string) error {
	return c.WaitFor(ctx, "pod "+namespace+"/"+name, func(ctx context.Context) error {
		var pod struct {
			Status struct {
				Phase, Message, Reason string
				Conditions             []Condition
			}
		}
		if err := c.Get(ctx, &pod, "pod", "-n", namespace, name); err != nil {
			return err
		}
		switch s := pod.Status; s.Phase {
		case "Succeeded":
			return nil
		case "Failed":
			return Hopeless(fmt.Errorf("it has failed: %s %s", s.Reason, s.Message))
		default:
			return requireTrue(s.Conditions, "Ready")
		}
	})
}

// WaitNode waits until a node is ready, or is not.
func (c *Cluster) WaitNode(ctx context.Context, name string, ready bool) error {
	return c.WaitFor(ctx, fmt.Sprintf("node %s (ready: %t)", name, ready), func(ctx context.Context) error {
		var node struct {
			Status struct{ Conditions []Condition }
		}
		if err := c.Get(ctx, &node, "node", name); err != nil {
			return err
		}
		err := requireTrue(node.Status.Conditions, "Ready")
		if ready {
			return err
		}
		if err == nil {
			return errors.New("it is ready")
		}
		return nil
	})
}

// Condition is one of a Kubernetes object's status.
type Condition struct{ Type, Status, Reason, Message string }

func requireTrue(conditions []Condition, name string) error {
	for _, c := range conditions {
		if c.Type == name {
			if c.Status == "True" {
				return nil
			}
			return fmt.Errorf("%s is %s: %s %s", name, c.Status, c.Reason, c.Message)
		}
	}
	return fmt.Errorf("it has no condition %s yet", name)
}

// waitNodes waits until pods can run: every node is ready and namespaces get what pods need.
func (c *Cluster) waitNodes(ctx context.Context) error {
	for _, n := range c.nodes {
		if err := c.WaitNode(ctx, n.Name(), true); err != nil {
			return err
		}
	}
	return c.WaitFor(ctx, "the default service account", func(ctx context.Context) error {
		_, err := c.Kubectl(ctx, "get", "-n", "default", "serviceaccount/default", "configmap/kube-root-ca.crt")
		return err
	})
}

var notInNames = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

// Diagnose writes what one wants to know after a failure to a new directory in LogDir, and returns
// a summary that names it.
func (c *Cluster) Diagnose(ctx context.Context, what string) string {
	name := "diagnostics-" + time.Now().Format("150405.000") + "-" + notInNames.ReplaceAllString(what, "-")
	dir := filepath.Join(c.LogDir(), name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Sprintf("no diagnostics: %v", err)
	}
	save := func(name, text string, err error) {
		if err != nil {
			text += fmt.Sprintf("\n(%v)\n", err)
		}
		_ = os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)
	}
	var summary strings.Builder
	for _, q := range []struct {
		file string
		args []string
		show int // lines of its end in the summary
	}{
		{"pods.txt", []string{"get", "pods", "-A", "-o", "wide"}, 20},
		{"events.txt", []string{"get", "events", "-A", "--sort-by=.lastTimestamp"}, 20},
		{"describe.txt", []string{"describe", "nodes,pods,persistentvolumes,persistentvolumeclaims", "-A"}, 0},
		{"objects.yaml", []string{"get", "-A", "-o", "yaml", "all,nodes,pv,pvc,storageclasses,csidrivers,csinodes,volumeattachments,leases"}, 0},
	} {
		out, err := c.Kubectl(ctx, q.args...)
		save(q.file, out, err)
		if q.show > 0 {
			fmt.Fprintf(&summary, "--- kubectl %s\n%s\n", strings.Join(q.args, " "), tailOf(filepath.Join(dir, q.file), q.show))
		}
	}
	c.saveLogs(ctx, save)
	for _, n := range c.nodes {
		if n.Guest == nil || !n.Running() {
			continue
		}
		for file, args := range map[string][]string{
			"mountinfo": {"cat", "/proc/self/mountinfo"},
			"dmesg":     {"dmesg"},
			"processes": {"ps", "axwwo", "pid,ppid,stat,wchan:20,etime,args"},
		} {
			// A node may be frozen.
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			out, err := n.Output(ctx, args...)
			cancel()
			save(n.Name()+"-"+file+".txt", out, err)
		}
	}
	fmt.Fprintf(&summary, "more in %s; logs of the cluster in %s", dir, c.LogDir())
	return summary.String()
}

// saveLogs saves the logs of all containers, and of those that ran before them.
func (c *Cluster) saveLogs(ctx context.Context, save func(name, text string, err error)) {
	var pods struct {
		Items []struct {
			Metadata struct{ Namespace, Name string }
			Status   struct {
				ContainerStatuses, InitContainerStatuses []struct {
					Name         string
					RestartCount int
				}
			}
		}
	}
	if err := c.Get(ctx, &pods, "pods", "-A"); err != nil {
		save("logs.txt", "", err)
		return
	}
	for _, p := range pods.Items {
		for _, s := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			base := fmt.Sprintf("log-%s-%s-%s", p.Metadata.Namespace, p.Metadata.Name, s.Name)
			args := []string{"logs", "-n", p.Metadata.Namespace, p.Metadata.Name, "-c", s.Name}
			out, err := c.Kubectl(ctx, args...)
			save(base+".txt", out, err)
			if s.RestartCount > 0 {
				out, err := c.Kubectl(ctx, append(args, "--previous")...)
				save(base+"-previous.txt", out, err)
			}
		}
	}
}
