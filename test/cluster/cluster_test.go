package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// needCluster skips tests that start guests.
func needCluster(t *testing.T) {
	t.Helper()
	if os.Getenv("CLUSTER") == "" {
		t.Skip("set CLUSTER=1 to run a Kubernetes cluster; the first run builds it")
	}
}

func startCluster(t *testing.T) *Cluster {
	t.Helper()
	c, err := Start(t.Context(), Options{Log: t.Output(), LogDir: os.Getenv("CLUSTER_LOGS")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close the cluster: %v", err)
		}
	})
	return c
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// toolsImage has what busybox has, and kubectl.
const toolsImage = "docker.io/library/tools:lab"

func loadTools(t *testing.T, c *Cluster) {
	t.Helper()
	tools, err := busyboxImage()
	if err != nil {
		t.Fatal(err)
	}
	tools.name = toolsImage
	tools.files["bin/kubectl"] = file{mode: 0o755, host: c.Tool("kubectl")}
	tar, err := tools.save(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.LoadImage(within(t, time.Minute), tar); err != nil {
		t.Fatal(err)
	}
}

// toolsPod is a pod that does nothing on a node.
func toolsPod(name, node, more string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: %s
    imagePullPolicy: IfNotPresent
    command: [sleep, "3600"]
%s`, name, node, toolsImage, more)
}

// TestCluster boots a cluster and looks at everything that a CSI driver and its tests rely on.
func TestCluster(t *testing.T) {
	needCluster(t)
	c := startCluster(t)
	loadTools(t, c)
	var manifests []string
	for _, n := range c.Nodes() {
		manifests = append(manifests, toolsPod(n.Name()+"-pod", n.Name(), ""))
	}
	manifests = append(manifests, toolsPod("host-pod", "node2", "  hostNetwork: true\n"))
	if err := c.Apply(within(t, time.Minute), strings.Join(manifests, "---")); err != nil {
		t.Fatal(err)
	}
	pods := []string{"node1-pod", "node2-pod", "host-pod"}
	for _, pod := range pods {
		if err := c.WaitPod(within(t, 2*time.Minute), "default", pod); err != nil {
			t.Fatal(err)
		}
	}
	addresses := make(map[string]string)
	for _, pod := range pods {
		var p struct{ Status struct{ PodIP string } }
		if err := c.Get(t.Context(), &p, "pod", pod); err != nil {
			t.Fatal(err)
		}
		addresses[pod] = p.Status.PodIP
	}
	for _, pod := range pods {
		t.Run(pod, func(t *testing.T) {
			testPod(t, c, pod, addresses)
		})
	}
	t.Run("sidecars", func(t *testing.T) { testSidecars(t, c) })
	t.Run("helm", func(t *testing.T) { testHelm(t, c) })
	t.Run("propagation", func(t *testing.T) { testPropagation(t, c) })
	t.Run("diagnostics", func(t *testing.T) { testDiagnostics(t, c) })
	t.Run("kubelet restart", func(t *testing.T) { testKubeletRestart(t, c) })
	t.Run("node killed", func(t *testing.T) { testNodeKilled(t, c) })
}

func testPod(t *testing.T, c *Cluster, pod string, addresses map[string]string) {
	ctx := within(t, time.Minute)
	// At the service's address, whose certificate kubectl checks, with the pod's token.
	who, err := c.Exec(ctx, "default", pod, "kubectl", "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}")
	if want := "system:serviceaccount:default:default"; err != nil || who != want {
		t.Errorf("for the API server pod %s is %q, want %s (%v)", pod, who, want, err)
	}
	if env, err := c.Exec(ctx, "default", pod, "sh", "-c", "echo $KUBERNETES_SERVICE_HOST"); err != nil || strings.TrimSpace(env) != serviceAddress {
		t.Errorf("pod %s finds the API server at %q, want %s (%v)", pod, env, serviceAddress, err)
	}
	server := c.Server().IPv4()
	if _, err := c.Exec(ctx, "default", pod, "nc", "-w", "5", server, "2049", "-e", "true"); err != nil {
		t.Errorf("pod %s does not reach the NFS server: %v", pod, err)
	}
	if _, err := c.Exec(ctx, "default", pod, "nc", "-w", "5", server, "2050", "-e", "true"); err == nil {
		t.Error("a port that nobody serves can be reached: this test proves nothing")
	}
	for other, address := range addresses {
		if _, err := c.Exec(ctx, "default", pod, "ping", "-c", "1", "-W", "5", address); err != nil {
			t.Errorf("pod %s does not reach pod %s: %v", pod, other, err)
		}
	}
}

func testSidecars(t *testing.T, c *Cluster) {
	ctx := within(t, 3*time.Minute)
	began := time.Now()
	if err := c.LoadSidecars(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("loaded the sidecars' images in %v", time.Since(began).Round(100*time.Millisecond))
	for _, name := range sidecars() {
		pod := "version-" + name
		if _, err := c.Kubectl(ctx, "run", pod, "--image="+c.SidecarImage(name), "--image-pull-policy=Never",
			"--restart=Never", "--", "--version"); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range sidecars() {
		pod := "version-" + name
		if err := c.WaitPod(ctx, "default", pod); err != nil {
			t.Fatal(err)
		}
		// What a container says last can be in its log after its end is known.
		err := c.WaitFor(within(t, 30*time.Second), "the version of "+name, func(ctx context.Context) error {
			out, err := c.Kubectl(ctx, "logs", pod)
			if want := "/" + name + " " + c.programs[name].version; err == nil && strings.TrimSpace(out) != want {
				err = fmt.Errorf("its log is %q, want %q", out, want)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func testHelm(t *testing.T, c *Cluster) {
	ctx := within(t, time.Minute)
	chart := t.TempDir()
	write(t, filepath.Join(chart, "Chart.yaml"), "apiVersion: v2\nname: probe\nversion: 0.1.0\n")
	write(t, filepath.Join(chart, "templates/map.yaml"),
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}}\ndata: {said: {{ .Values.say }}}\n")
	if _, err := c.Helm(ctx, "install", "probe", chart, "--set", "say=hello", "-n", "charts", "--create-namespace"); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Kubectl(ctx, "get", "configmap", "probe", "-n", "charts", "-o", "jsonpath={.data.said}"); err != nil || got != "hello" {
		t.Errorf("the chart's object says %q, want hello (%v)", got, err)
	}
	if _, err := c.Helm(ctx, "uninstall", "probe", "-n", "charts"); err != nil {
		t.Error(err)
	}
}

// testPropagation shows that what a pod mounts below the kubelet's directory is there on the node,
// as a CSI driver needs it, under the security settings of a careful chart.
func testPropagation(t *testing.T, c *Cluster) {
	ctx := within(t, 2*time.Minute)
	err := c.Apply(ctx, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: mounter}
spec:
  nodeName: node1
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  securityContext: {seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: main
    image: %s
    imagePullPolicy: IfNotPresent
    command: [sleep, "3600"]
    securityContext: {privileged: true, readOnlyRootFilesystem: true}
    volumeMounts:
    - {name: plugins, mountPath: /var/lib/kubelet/plugins, mountPropagation: Bidirectional}
  volumes:
  - name: plugins
    hostPath: {path: /var/lib/kubelet/plugins, type: DirectoryOrCreate}
`, BusyboxImage))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitPod(ctx, "default", "mounter"); err != nil {
		t.Fatal(err)
	}
	const script = `mkdir -p /var/lib/kubelet/plugins/probe &&
		mount -t nfs4 -o vers=4.2,addr=$0,clientaddr=$1 $0:/export /var/lib/kubelet/plugins/probe &&
		echo hello >/var/lib/kubelet/plugins/probe/file`
	node := c.Node("node1")
	if _, err := c.Exec(ctx, "default", "mounter", "sh", "-c", script, c.Server().IPv4(), node.IPv4()); err != nil {
		t.Fatal(err)
	}
	out, err := node.Output(ctx, "cat", "/var/lib/kubelet/plugins/probe/file")
	if err != nil || out != "hello\n" {
		t.Errorf("the node reads %q in what the pod mounted, want hello (%v)", out, err)
	}
	if out, err = c.Server().Output(ctx, "cat", "/export/file"); err != nil || out != "hello\n" {
		t.Errorf("the NFS server has %q, want hello (%v)", out, err)
	}
	if _, err := c.Exec(ctx, "default", "mounter", "umount", "/var/lib/kubelet/plugins/probe"); err != nil {
		t.Error(err)
	}
}

// testDiagnostics shows that a failed wait explains itself.
func testDiagnostics(t *testing.T, c *Cluster) {
	ctx := within(t, time.Minute)
	if _, err := c.Kubectl(ctx, "run", "imageless", "--image=nowhere.invalid/nothing:1", "--image-pull-policy=Never"); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := c.WaitPod(short, "default", "imageless")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("wait for a pod without an image: %v", err)
	}
	for _, want := range []string{"pod default/imageless", "ErrImageNeverPull", "diagnostics-"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not mention %q:\n%v", want, err)
		}
	}
	found, err := filepath.Glob(filepath.Join(c.LogDir(), "diagnostics-*imageless", "*"))
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, f := range found {
		if info, err := os.Stat(f); err == nil && info.Size() > 0 {
			names[filepath.Base(f)] = true
		}
	}
	for _, want := range []string{"pods.txt", "events.txt", "describe.txt", "objects.yaml", "node1-mountinfo.txt", "node2-dmesg.txt", "log-default-version-csi-provisioner-version-csi-provisioner.txt"} {
		if !names[want] {
			t.Errorf("the diagnostics lack %s; they have %v", want, sortedKeys(names))
		}
	}
}

// testKubeletRestart shows that the kubelet comes back and that pods run on meanwhile.
func testKubeletRestart(t *testing.T, c *Cluster) {
	ctx := within(t, 3*time.Minute)
	node := c.Node("node1")
	if err := node.StopKubelet(ctx); err != nil {
		t.Fatal(err)
	}
	tasks, err := node.ctr(ctx, "tasks", "list")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(tasks, "RUNNING") {
		t.Errorf("no container runs without the kubelet:\n%s", tasks)
	}
	if err := node.StartKubelet(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitPod(ctx, "default", "node1-pod"); err != nil {
		t.Fatal(err)
	}
	// Exec goes through the new kubelet to the old container.
	if err := c.WaitFor(ctx, "exec in a pod", func(ctx context.Context) error {
		_, err := c.Exec(ctx, "default", "node1-pod", "true")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var pod struct {
		Status struct{ ContainerStatuses []struct{ RestartCount int } }
	}
	if err := c.Get(ctx, &pod, "pod", "node1-pod"); err != nil {
		t.Fatal(err)
	}
	if n := pod.Status.ContainerStatuses; len(n) != 1 || n[0].RestartCount != 0 {
		t.Errorf("the pod's containers were restarted with the kubelet: %+v", n)
	}
}

// testNodeKilled shows that a node comes back after a power failure with its images.
func testNodeKilled(t *testing.T, c *Cluster) {
	ctx := within(t, 5*time.Minute)
	node := c.Node("node2")
	boot := func() (id string) {
		id, err := c.Kubectl(ctx, "get", "node", "node2", "-o", "jsonpath={.status.nodeInfo.bootID}")
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	before := boot()
	if err := node.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := node.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitFor(ctx, "node2 to report its new boot", func(context.Context) error {
		if boot() == before {
			return errors.New("it has not")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitNode(ctx, "node2", true); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitFor(ctx, "the pod to run again", func(ctx context.Context) error {
		_, err := c.Exec(ctx, "default", "node2-pod", "true")
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// TestClose shows that nothing is left of a cluster whose start was cut off.
func TestClose(t *testing.T) {
	needCluster(t)
	var log strings.Builder
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// Once the control plane is up, the nodes are still starting.
	o := Options{Name: "cut", Log: cancelOn{&log, "control plane: up", cancel}, Exports: []lab.ExportSpec{{Path: "/export"}}}
	c, err := Start(ctx, o)
	if !errors.Is(err, context.Canceled) {
		if c != nil {
			c.Close()
		}
		t.Fatalf("start of a cluster that was cut off: %v", err)
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		if text, err := os.ReadFile(p); err == nil && strings.Contains(string(text), fmt.Sprintf("/cut-%d-", os.Getpid())) {
			t.Errorf("a process is left: %s: %q", p, text)
		}
	}
	for _, dir := range []string{"/run/netns", "/var/tmp/nfs-csi-lab"} {
		if left, _ := filepath.Glob(fmt.Sprintf("%s/cut-%d-*", dir, os.Getpid())); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

// cancelOn cancels when a line is written.
type cancelOn struct {
	log    *strings.Builder
	line   string
	cancel func()
}

func (c cancelOn) Write(p []byte) (int, error) {
	if strings.Contains(string(p), c.line) {
		c.cancel()
	}
	return c.log.Write(p)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
