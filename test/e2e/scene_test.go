package e2e

import (
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/test/cluster"
)

// patience is how long what should take seconds may take on a busy machine.
const patience = 90 * time.Second

// scene is where a disruption happens: a namespace, a StorageClass of the same name and a
// share that no other case uses. So what is left on the share in the end was left by this case.
type scene struct {
	t    *testing.T
	ctx  context.Context
	c    *cluster.Cluster
	name string // of the namespace and the StorageClass
	dir  string // the share, on the server
	// driver is the provisioner of the classes that are made from here on.
	driver string
}

// newScene makes a scene. Its end fails the test if pods, volumes, directories, records or mounts
// of it do not go.
func newScene(t *testing.T, name string) *scene {
	t.Helper()
	return newSceneOn(t, name, share)
}

// newSceneOn makes a scene on one of the server's exports.
func newSceneOn(t *testing.T, name, export string) *scene {
	t.Helper()
	ctx, c := onCluster(t)
	s := &scene{t: t, ctx: ctx, c: c, name: name, dir: path.Join(export, name), driver: driverName}
	onServer(ctx, t, c, "mkdir -p "+s.dir)
	s.must(c.Apply(ctx, fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s}}", name)))
	t.Cleanup(s.close)
	s.wait("the namespace's service account, without which no pod is accepted", func(ctx context.Context) error {
		_, err := c.Kubectl(ctx, "get", "serviceaccount", "default", "-n", name)
		return err
	})
	s.class(name)
	return s
}

func (s *scene) close() {
	ctx := s.ctx
	if shared.ctx.Err() != nil {
		return // the cluster goes as it is
	}
	volumes := s.volumes()
	for _, args := range [][]string{
		{"delete", "deployment,statefulset,pod,pvc", "--all", "-n", s.name, "--wait", "--timeout=" + patience.String()},
		{"delete", "namespace", s.name, "--ignore-not-found", "--wait=false"},
	} {
		if _, err := s.c.Kubectl(ctx, args...); err != nil {
			s.t.Errorf("clean up: %v\n%s", err, s.c.Diagnose(ctx, "clean up "+s.name))
		}
	}
	s.wait("the volumes of the case to go, and all that was on the server", func(context.Context) error {
		if left := s.volumes(); len(left) > 0 {
			return fmt.Errorf("there are %v", left)
		}
		if got := s.stored(); len(got.directories)+len(got.records)+len(got.claims) > 0 {
			return fmt.Errorf("on %s there are %+v", s.dir, got)
		}
		return nil
	})
	for _, n := range s.c.Nodes() {
		s.clean(n, volumes...)
	}
	if _, err := s.c.Kubectl(ctx, "delete", "storageclass", "-l", "scene="+s.name); err != nil {
		s.t.Error(err)
	}
}

// must ends the test for an error.
func (s *scene) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// wait waits until the condition returns nil.
func (s *scene) wait(what string, condition func(context.Context) error) {
	s.t.Helper()
	s.within(patience, what, condition)
}

// within is wait with another deadline.
func (s *scene) within(d time.Duration, what string, condition func(context.Context) error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, d)
	defer cancel()
	if err := s.c.WaitFor(ctx, what, condition); err != nil {
		s.t.Fatal(err)
	}
}

// sh runs a script in a pod and returns what it prints.
func (s *scene) sh(pod, script string) string {
	s.t.Helper()
	out, err := s.c.Exec(s.ctx, s.name, pod, "sh", "-c", script)
	if err != nil {
		s.t.Fatalf("in pod %s: %v", pod, err)
	}
	return strings.TrimSpace(out)
}

// server runs a script on the NFS server, in the scene's share, and returns what it prints.
func (s *scene) server(script string) string {
	s.t.Helper()
	return onServer(s.ctx, s.t, s.c, "cd "+s.dir+"; "+script)
}

// kubectl runs kubectl in the scene's namespace.
func (s *scene) kubectl(args ...string) string {
	s.t.Helper()
	out, err := s.c.Kubectl(s.ctx, append([]string{"-n", s.name}, args...)...)
	s.must(err)
	return strings.TrimSpace(out)
}

func (s *scene) apply(manifest string, args ...any) {
	s.t.Helper()
	file := path.Join(s.t.TempDir(), "manifest.yaml")
	s.must(os.WriteFile(file, []byte(fmt.Sprintf(manifest, args...)), 0o600))
	s.kubectl("apply", "-f", file)
}

// class makes a StorageClass on the scene's share, with more lines of its manifest. A line that
// begins with two spaces is a parameter and comes before the others.
func (s *scene) class(name string, more ...string) {
	s.t.Helper()
	s.apply(`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %s, labels: {scene: %s}}
provisioner: %s
parameters:
  server: %q
  share: %s
%s`, name, s.name, s.driver, s.c.Server().IPv4(), s.dir, strings.Join(more, "\n"))
}

// claim makes a claim of the scene's class, or of another.
func (s *scene) claim(name string, class ...string) {
	s.t.Helper()
	s.apply(sceneClaim, name, append(class, s.name)[0])
}

// deleted makes a class, and a claim "data" of it with a file in its volume that holds "precious";
// and deletes the claim.
func (s *scene) deleted(class string, more ...string) (volume string) {
	s.t.Helper()
	s.class(class, more...)
	s.claim("data", class)
	volume = s.volume("data")
	s.server("echo precious >" + volume + "/file")
	s.kubectl("delete", "pvc", "data")
	return volume
}

// listTrash lists what waits to be unlinked; what goes while it looks is no error.
const listTrash = "cd .nfs-csi/trash && { find . -mindepth 2 2>/dev/null; true; }"

// trashEmptied waits until all that was deleted is unlinked.
func (s *scene) trashEmptied() {
	s.t.Helper()
	s.wait("the trash to be empty", func(context.Context) error {
		if left := s.server(listTrash); left != "" {
			return fmt.Errorf("there is %s", left)
		}
		return nil
	})
}

const sceneClaim = `---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec: {accessModes: [ReadWriteMany], storageClassName: %s, resources: {requests: {storage: 1Gi}}}
`

// volumes returns the names of the volumes of the scene's claims, also of those that are gone.
func (s *scene) volumes() (names []string) {
	s.t.Helper()
	text := s.kubectl("get", "pv", "-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.claimRef.namespace}{"\n"}{end}`)
	for line := range strings.Lines(text) {
		if volume, namespace, _ := strings.Cut(strings.TrimSpace(line), " "); namespace == s.name {
			names = append(names, volume)
		}
	}
	return names
}

// bound waits until that many claims are there and all are bound, and returns their volumes' names.
func (s *scene) bound(count int) []string {
	s.t.Helper()
	var volumes []string
	s.wait(fmt.Sprintf("%d bound claims", count), func(ctx context.Context) error {
		out, err := s.c.Kubectl(ctx, "get", "pvc", "-n", s.name, "-o", `jsonpath={range .items[?(@.status.phase=="Bound")]}{.spec.volumeName} {end}`)
		if err != nil {
			return err
		}
		if volumes = strings.Fields(out); len(volumes) != count {
			return fmt.Errorf("%d are bound", len(volumes))
		}
		return nil
	})
	slices.Sort(volumes)
	return volumes
}

// volume waits until the claim is bound and returns its volume's name.
func (s *scene) volume(claim string) (name string) {
	s.t.Helper()
	s.wait("claim "+claim+" to be bound", func(ctx context.Context) (err error) {
		name, err = s.c.Kubectl(ctx, "get", "pvc", "-n", s.name, claim, "-o", "jsonpath={.spec.volumeName}")
		if err == nil && name == "" {
			err = fmt.Errorf("it is not")
		}
		return err
	})
	return name
}

// stored is what the driver has on the scene's share: names of directories, ids of records, and how
// many directories are claimed.
type stored struct{ directories, records, claims []string }

func (s *scene) stored() stored {
	s.t.Helper()
	list := func(dir string) []string {
		return strings.Fields(onServer(s.ctx, s.t, s.c, "ls "+path.Join(s.dir, dir)+" 2>/dev/null || true"))
	}
	return stored{directories: list("."), records: list(".nfs-csi/volumes"), claims: list(".nfs-csi/dirs")}
}

// event waits for a warning about an object that holds all the words.
func (s *scene) event(object string, words ...string) {
	s.t.Helper()
	s.wait(fmt.Sprintf("a warning about %s with %q", object, words), func(ctx context.Context) error {
		out, err := s.c.Kubectl(ctx, "get", "events", "-n", s.name, "--field-selector", "type=Warning,involvedObject.name="+object,
			"-o", `jsonpath={range .items[*]}{.reason}: {.message}{"\n"}{end}`)
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				s.t.Logf("%s: %s", object, strings.TrimSpace(line))
				return nil
			}
		}
		return fmt.Errorf("the warnings are:\n%s", out)
	})
}

// podManifest is a pod that does as its script says. It obeys SIGTERM, so its grace is not used up.
const podManifest = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    image: ` + cluster.BusyboxImage + `
    command: [sh, -c, %q]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: %s}}]
`

// waits is the script of a container that only waits, and ends at once when it is told to.
const waits = "trap exit TERM; sleep 3600 & wait"

// pod starts a pod that only waits, and returns when it is ready. The claim must be bound first: of
// a pod that comes past the scheduler, the kubelet tries again 10 seconds after the first attempt.
func (s *scene) pod(name, node, claim string) {
	s.t.Helper()
	s.volume(claim)
	s.apply(podManifest, name, node, waits, claim)
	s.podReady(name)
}

func (s *scene) podReady(name string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	s.must(s.c.WaitPod(ctx, s.name, name))
}

// reader starts a pod that runs once it has found something in the volume's file, and waits for that.
func (s *scene) reader(name, node, claim, file string) {
	s.t.Helper()
	s.volume(claim)
	s.apply(podManifest, name, node, "test -s /data/"+file+" || exit 1; "+waits, claim)
	s.podReady(name)
}
