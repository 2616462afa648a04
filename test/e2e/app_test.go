package e2e

import (
	"context"
	"fmt"
	"os"
	"path"
	"strings"
	"testing"
)

const examples = "../../deploy/kubernetes/examples"

// example applies an example of deploy/kubernetes, with texts replaced by others: the name of the
// server, at most, is what a reader has to fill in.
func (s *scene) example(name string, replace ...string) {
	s.t.Helper()
	text, err := os.ReadFile(path.Join(examples, name))
	s.must(err)
	s.apply("%s", strings.NewReplacer(replace...).Replace(string(text)))
}

// text waits until the script prints something in the pod that passes.
func (s *scene) text(what, pod, script string, passes func(string) bool) {
	s.t.Helper()
	s.wait(what, func(ctx context.Context) error {
		got, err := s.c.Exec(ctx, s.name, pod, "sh", "-c", script)
		if got = strings.TrimSpace(got); err == nil && !passes(got) {
			err = fmt.Errorf("it is %q", got)
		}
		return err
	})
}

func some(text string) bool { return text != "" }

// TestExampleClass: the example of a StorageClass, with all its parameters.
func TestExampleClass(t *testing.T) {
	t.Parallel()
	s := newScene(t, "example-class")
	s.kubectl("delete", "storageclass", s.name)
	s.example("storageclass.yaml", "nfs.example.com", s.c.Server().IPv4(), "/export/kubernetes", s.dir, "name: nfs\n", "name: "+s.name+"\n")
	s.kubectl("label", "storageclass", s.name, "scene="+s.name)
	s.claim("data")
	dir := s.name + "/data-" + s.volume("data")
	expect(t, "the directory", s.server("stat -c '%a %u:%g' "+dir), "2770 0:1000")
	s.as(user{"app", 1000, 1000, ""})
	s.sh("app", "echo hello >/data/file")
	expect(t, "the file", s.server("cat "+dir+"/file; stat -c %g "+dir+"/file"), "hello\n1000")
}

// TestExamples: the claim with its pod and its Deployment, as they are, on the class that the chart
// made.
func TestExamples(t *testing.T) {
	t.Parallel()
	s := newScene(t, "examples")
	s.example("pvc.yaml")
	s.example("pod.yaml")
	s.example("deployment.yaml")
	s.podReady("writer")
	s.kubectl("rollout", "status", "deployment/shared", "--timeout=90s")
	s.text("the writer's lines", "writer", "cat /data/times", some)
	nodes := s.kubectl("get", "pods", "-l", "app=shared", "-o", "jsonpath={.items[*].spec.nodeName}")
	if f := strings.Fields(nodes); len(f) != 2 || f[0] == f[1] {
		t.Errorf("the Deployment's pods are on %q, want both nodes", nodes)
	}
	s.text("lines of both pods", "writer", "sort -u /data/hosts", func(text string) bool {
		return len(strings.Fields(text)) == 2
	})
}

// TestStatefulSet: each pod of the example has a volume of its own, which keeps what is in it while
// the set is scaled down and up.
func TestStatefulSet(t *testing.T) {
	t.Parallel()
	s := newScene(t, "stateful-set")
	s.example("statefulset.yaml")
	s.kubectl("rollout", "status", "statefulset/counters", "--timeout=90s")
	volumes := s.bound(2)
	for _, pod := range []string{"counters-0", "counters-1"} {
		s.sh(pod, "hostname >/data/mine")
	}
	s.kubectl("scale", "statefulset/counters", "--replicas=0")
	for _, pod := range []string{"counters-1", "counters-0"} {
		s.kubectl("wait", "--for=delete", "pod/"+pod, "--timeout=60s")
	}
	s.kubectl("scale", "statefulset/counters", "--replicas=2")
	s.kubectl("rollout", "status", "statefulset/counters", "--timeout=90s")
	for _, pod := range []string{"counters-0", "counters-1"} {
		expect(t, "what "+pod+" wrote before", s.sh(pod, "cat /data/mine"), pod)
	}
	if again := s.bound(2); again[0] != volumes[0] || again[1] != volumes[1] {
		t.Errorf("the volumes were %q and are %q", volumes, again)
	}
}

// TestEphemeralVolume: the example's volume is made for its pod and goes with it.
func TestEphemeralVolume(t *testing.T) {
	t.Parallel()
	s := newScene(t, "ephemeral")
	s.example("ephemeral.yaml")
	s.podReady("scratch")
	volume := s.volume("scratch-scratch")
	s.text("16 MiB in the volume", "scratch", "stat -c %s /scratch/file", func(text string) bool {
		return text == fmt.Sprint(16<<20)
	})
	s.kubectl("delete", "pod", "scratch", "--wait")
	s.gone(volume)
	expect(t, "left of it on the server", onServer(s.ctx, t, s.c, "ls -d "+share+"/"+volume+" 2>/dev/null || true"), "")
}
