package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
)

// TestUpgrade: pods write on while an upgrade replaces every pod of the driver, and while a
// rollback does; then claims and pods work as before.
func TestUpgrade(t *testing.T) {
	s := newScene(t, "upgrade")
	s.claim("data")
	var writers []*writer
	for _, n := range s.c.Nodes() {
		writers = append(writers, s.writer("writer-"+n.Name(), n.Name(), "data"))
	}
	revision, err := s.c.Helm(s.ctx, "list", "-n", namespace, "--filter", "^"+release+"$", "-o", "json")
	s.must(err)
	var list []struct{ Revision string }
	s.must(json.Unmarshal([]byte(revision), &list))
	for i, args := range [][]string{
		{"upgrade", release, chart, "--reuse-values", "--set", "log.level=3", "--set", "log.format=json"},
		{"rollback", release, list[0].Revision},
	} {
		controller, node := s.partsReady(controllers, 2), s.partsReady(plugins, len(s.c.Nodes()))
		_, err := s.c.Helm(s.ctx, append(args, "-n", namespace, "--wait", "--timeout=2m")...)
		s.must(err)
		s.partsReady(controllers, len(controller), controller...)
		s.partsReady(plugins, len(node), node...)
		for _, w := range writers {
			w.check(hiccup)
		}
		s.claim(fmt.Sprintf("after-%d", i))
		s.reader(fmt.Sprintf("after-%d", i), s.c.Nodes()[i].Name(), "data", writers[0].pod)
	}
	s.bound(3)
}

// values returns the values of the shared release, to install it or another one with.
func (s *scene) values(change func(map[string]any)) string {
	s.t.Helper()
	out, err := s.c.Helm(s.ctx, "get", "values", release, "-n", namespace, "-o", "json")
	s.must(err)
	values := map[string]any{}
	s.must(json.Unmarshal([]byte(out), &values))
	if change != nil {
		change(values)
	}
	data, err := json.Marshal(values)
	s.must(err)
	file := path.Join(s.t.TempDir(), "values.json")
	s.must(os.WriteFile(file, data, 0o600))
	return file
}

// TestUninstall: without the driver, pods write on and volumes stay. Installed again, it takes up
// what was left undone.
func TestUninstall(t *testing.T) {
	s := newScene(t, "uninstall")
	node := s.c.Nodes()[0]
	s.claim("data")
	s.claim("deleted")
	w := s.writer("writer", node.Name(), "data")
	s.reader("stopped", node.Name(), "data", w.pod)
	volumes := s.bound(2)
	values := s.values(nil)
	installed := true
	install := func() {
		_, err := s.c.Helm(s.ctx, "install", release, chart, "-n", namespace, "-f", values, "--wait", "--timeout=2m")
		s.must(err)
		installed = true
	}
	// Before the scene's own end, which needs the driver.
	t.Cleanup(func() {
		if !installed {
			install()
		}
	})
	_, err := s.c.Helm(s.ctx, "uninstall", release, "-n", namespace, "--wait", "--timeout=2m")
	s.must(err)
	installed = false
	s.wait("the driver's pods to go", func(ctx context.Context) error {
		if left, err := s.parts(ctx, "app.kubernetes.io/instance="+release); err != nil || len(left) > 0 {
			return errors.Join(err, fmt.Errorf("there are %d", len(left)))
		}
		return nil
	})
	w.check(hiccup)
	s.kubectl("delete", "pod", "stopped", "--wait=false")
	s.kubectl("delete", "pvc", "deleted", "--wait", "--timeout=60s")
	if got := strings.Fields(s.kubectl("get", "pv", "-o", "name")); !slices.Contains(got, "persistentvolume/"+volumes[0]) || !slices.Contains(got, "persistentvolume/"+volumes[1]) {
		t.Errorf("of the volumes %v there are %v", volumes, got)
	}
	w.check(hiccup)

	install()
	s.kubectl("wait", "--for=delete", "pod/stopped", "--timeout=60s")
	s.wait("the claim's volume to go", func(context.Context) error {
		if got := s.stored(); len(got.directories) != 1 || len(got.records) != 1 {
			return fmt.Errorf("there are %+v", got)
		}
		return nil
	})
	w.check(hiccup)
	s.reader("after", node.Name(), "data", w.pod)
	s.claim("new")
	s.volume("new")
	// Without a CSIDriver object Kubernetes thinks that volumes must be attached, and asks in vain.
	s.kubectl("delete", "volumeattachments", "--all")
}

// TestTwoReleases: two drivers of different names live in one cluster and on one share. Neither
// lists, deletes or disturbs what is the other's, and one stays whole when the other goes.
func TestTwoReleases(t *testing.T) {
	t.Parallel()
	s := newScene(t, "two-releases")
	const other, otherDriver = "other", "other.nfs-csi.io"
	node := s.c.Nodes()[1].Name()
	values := s.values(func(v map[string]any) {
		v["driverName"] = otherDriver
		v["node"] = map[string]any{"httpPort": 29812}
		v["controller"] = map[string]any{"replicas": 1}
		delete(v, "storageClasses")
	})
	installed := true
	uninstall := func() {
		installed = false
		_, err := s.c.Helm(s.ctx, "uninstall", other, "-n", other, "--wait", "--timeout=2m")
		s.must(err)
		s.kubectl("delete", "namespace", other, "--wait=false")
	}
	t.Cleanup(func() {
		if installed {
			uninstall()
		}
	})
	_, err := s.c.Helm(s.ctx, "install", other, chart, "-n", other, "--create-namespace", "-f", values, "--wait", "--timeout=2m")
	s.must(err)
	s.driver = otherDriver
	s.class(other)
	s.claim("mine")
	s.claim("theirs", other)
	mine, theirs := s.volume("mine"), s.volume("theirs")
	w := s.writer("mine", node, "mine")
	s.writer("theirs", node, "theirs").check(hiccup)

	handle := func(volume string) string {
		return s.kubectl("get", "pv", volume, "-o", "jsonpath={.spec.csi.volumeHandle}")
	}
	leader := s.leader()
	listed, err := s.csi(leader, "Controller/ListVolumes", "{}")
	s.must(err)
	if !strings.Contains(listed, handle(mine)) || strings.Contains(listed, handle(theirs)) {
		t.Errorf("the list should have %s and not %s:\n%s", handle(mine), handle(theirs), listed)
	}
	if out, err := s.csi(leader, "Controller/DeleteVolume", fmt.Sprintf(`{"volume_id": %q}`, handle(theirs))); err == nil {
		t.Errorf("one driver deletes the volume of the other: %s", out)
	} else if !strings.Contains(err.Error(), otherDriver) {
		t.Errorf("the refusal does not say whose the volume is: %v", err)
	}
	if got := s.stored(); !slices.Contains(got.directories, theirs) || len(got.records) != 2 {
		t.Errorf("on the server there are %+v", got)
	}

	s.kubectl("delete", "pod/theirs", "pvc/theirs", "--wait", "--timeout=60s")
	// Before its PersistentVolume is gone the other driver is not done with it.
	s.gone(theirs)
	if got := s.stored(); len(got.directories) != 1 || len(got.records) != 1 {
		t.Errorf("the other driver has deleted its volume, and on the server there are %+v", got)
	}
	uninstall()
	w.check(hiccup)
	s.reader("after", node, "mine", w.pod)
	s.claim("new")
	s.volume("new")
}
