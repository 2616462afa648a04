package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nfs-csi/nfs-csi-driver/test/cluster"
	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

const (
	controllers = "app.kubernetes.io/component=controller,app.kubernetes.io/instance=" + release
	plugins     = "app.kubernetes.io/component=node,app.kubernetes.io/instance=" + release
)

// part is a pod of the driver.
type part struct {
	Metadata struct {
		Name, UID         string
		DeletionTimestamp *string
	}
	Spec   struct{ NodeName string }
	Status struct {
		Conditions        []cluster.Condition
		ContainerStatuses []struct{ Name, ContainerID string }
	}
}

func (p part) containers() (ids []string) {
	for _, s := range p.Status.ContainerStatuses {
		ids = append(ids, s.ContainerID)
	}
	return ids
}

func (p part) ready() bool {
	return p.Metadata.DeletionTimestamp == nil && slices.ContainsFunc(p.Status.Conditions, func(c cluster.Condition) bool {
		return c.Type == "Ready" && c.Status == "True"
	})
}

// parts returns the release's pods that the labels select.
func (s *scene) parts(ctx context.Context, labels string) ([]part, error) {
	var list struct{ Items []part }
	err := s.c.Get(ctx, &list, "pods", "-n", namespace, "-l", labels)
	return list.Items, err
}

// partsReady waits until so many of the release's pods are ready and there are no others, and
// none of their containers is one of the former pods'.
func (s *scene) partsReady(labels string, count int, former ...part) []part {
	s.t.Helper()
	var old []string
	for _, p := range former {
		old = append(old, p.containers()...)
	}
	var parts []part
	s.wait(fmt.Sprintf("%d new ready pods with %s", count, labels), func(ctx context.Context) (err error) {
		if parts, err = s.parts(ctx, labels); err != nil {
			return err
		}
		for _, p := range parts {
			if !p.ready() {
				return fmt.Errorf("%s is not ready", p.Metadata.Name)
			}
			if slices.ContainsFunc(p.containers(), func(id string) bool { return slices.Contains(old, id) }) {
				return fmt.Errorf("%s is as it was", p.Metadata.Name)
			}
		}
		if len(parts) != count {
			return fmt.Errorf("there are %d", len(parts))
		}
		return nil
	})
	return parts
}

// plugin returns the node's plugin.
func (s *scene) plugin(node string) part {
	s.t.Helper()
	parts, err := s.parts(s.ctx, plugins)
	s.must(err)
	i := slices.IndexFunc(parts, func(p part) bool { return p.Spec.NodeName == node && p.Metadata.DeletionTimestamp == nil })
	if i < 0 {
		s.t.Fatalf("there is no plugin on %s", node)
	}
	return parts[i]
}

// pluginReady waits until the node has a plugin that is not the former one.
func (s *scene) pluginReady(node string, former part) {
	s.t.Helper()
	s.wait("a new plugin on "+node, func(ctx context.Context) error {
		parts, err := s.parts(ctx, plugins)
		if err != nil {
			return err
		}
		for _, p := range parts {
			if p.Spec.NodeName == node && p.ready() && !slices.Equal(p.containers(), former.containers()) {
				return nil
			}
		}
		return errors.New("there is none that is ready")
	})
}

// forceDelete deletes a pod of the driver without waiting for its end.
func (s *scene) forceDelete(p part) {
	s.t.Helper()
	_, err := s.c.Kubectl(s.ctx, "delete", "pod", "-n", namespace, p.Metadata.Name, "--force", "--grace-period=0")
	s.must(err)
}

// kill ends all processes in the pod's containers with SIGKILL.
func (s *scene) kill(p part) {
	s.t.Helper()
	killed, err := s.c.Node(p.Spec.NodeName).Output(s.ctx, "sh", "-c", `
		for f in $(grep -l "pod$0" /proc/[0-9]*/cgroup); do
			pid=${f#/proc/} pid=${pid%/cgroup}
			# A sidecar ends by itself when it has lost its driver.
			name=$(cat /proc/$pid/comm 2>/dev/null) || name=ended
			[ "$name" = pause ] && continue
			kill -9 $pid 2>/dev/null
			echo $name
		done`, p.Metadata.UID)
	s.must(err)
	if names := strings.Fields(killed); len(names) < len(p.Status.ContainerStatuses) {
		s.t.Fatalf("killed only %v of pod %s", names, p.Metadata.Name)
	}
}

// leader returns the controller that provisions.
func (s *scene) leader() part {
	s.t.Helper()
	var leader part
	s.wait("a leader among the controllers", func(ctx context.Context) error {
		name, err := s.c.Kubectl(ctx, "get", "lease", "-n", namespace, "csi-nfs-csi-io", "-o", "jsonpath={.spec.holderIdentity}")
		if err != nil {
			return err
		}
		parts, err := s.parts(ctx, controllers)
		if err != nil {
			return err
		}
		for _, p := range parts {
			if leader = p; p.Metadata.Name == name && p.ready() {
				return nil
			}
		}
		return fmt.Errorf("the lease's holder %q is none of them", name)
	})
	return leader
}

// mounts returns the node's mounts of the volume: the kubelet's directories where it is mounted.
func (s *scene) mounts(node *cluster.Node, volume string) []string {
	s.t.Helper()
	out, err := node.Output(s.ctx, "awk", "-v", "volume="+volume, `index($0, "/" volume " ") && $5 ~ "^/var/lib/kubelet/" {print $5}`, "/proc/self/mountinfo")
	s.must(err)
	return strings.Fields(out)
}

// clean waits until nothing of the scene's volumes is left on the node: no mounts, and no
// directories where the kubelet keeps them.
func (s *scene) clean(node *cluster.Node, volumes ...string) {
	s.t.Helper()
	s.within(patience, "nothing of the volumes to be left on "+node.Name(), func(context.Context) error {
		for _, v := range volumes {
			left := s.mounts(node, v)
			found, err := node.Output(s.ctx, "sh", "-c", `
				cd /var/lib/kubelet
				grep -l "$0" plugins/kubernetes.io/csi/*/*/vol_data.json pods/*/volumes/kubernetes.io~csi/*/vol_data.json 2>/dev/null
				ls -d pods/*/volumes/kubernetes.io~csi/"$0" 2>/dev/null; true`, v)
			if err != nil {
				return err
			}
			if left = append(left, strings.Fields(found)...); len(left) > 0 {
				return fmt.Errorf("of volume %s there are %q", v, left)
			}
		}
		return nil
	})
}

// csi makes a CSI call to the controller, through its socket.
func (s *scene) csi(controller part, method, request string) (string, error) {
	s.t.Helper()
	tool := s.c.Lab().OutDir() + "/csicall"
	s.must(lab.GoBuild(s.ctx, tool, "github.com/nfs-csi/nfs-csi-driver/test/csicall"))
	socket := "/var/lib/kubelet/pods/" + controller.Metadata.UID + "/volumes/kubernetes.io~empty-dir/socket/csi.sock"
	return s.c.Node(controller.Spec.NodeName).Output(s.ctx, "/out/csicall", "unix://"+socket, method, request)
}
