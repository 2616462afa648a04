package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

// Node is a guest with containerd and a kubelet. Faults that are the machine's are the guest's:
// Kill, Freeze, Thaw, CutNetwork, RestoreNetwork.
type Node struct {
	*lab.Guest
	dir      string // on the host: configuration
	logDir   string // on the host: logs of containerd and the kubelet
	programs programs
	path     string // PATH in the guest
	gateway  string // the host's address in the lab

	mu         sync.Mutex
	containerd *lab.Process
	kubelet    *lab.Process
}

// nodeDir is what a node keeps on its disk, over a restart of the guest too.
const nodeDir = "/var/lib/node"

// prepareNode is what a distribution does before the kubelet starts.
//   - The kubelet refuses the cpuinfo of User Mode Linux, which has no clock rate.
//   - The disk is mounted without barriers: only the host could lose what is on it.
const prepareNode = `set -eu
gateway=$1 dir=$2
ip route replace default via "$gateway"
modprobe -a bridge veth overlay
mkdir -p "$dir"
mount -t ext4 -o noatime,nobarrier /dev/ubda "$dir"
for d in containerd kubelet; do
	mkdir -p "$dir/$d" "/var/lib/$d"
	mount --bind "$dir/$d" "/var/lib/$d"
done
mount --make-rshared /
echo 1 >/proc/sys/net/ipv4/ip_forward
sed 's/^processor.*/&\ncpu MHz\t\t: 2000.000/' /proc/cpuinfo >/run/cpuinfo
mount --bind /run/cpuinfo /proc/cpuinfo
`

// newNode writes a node's configuration. Its guest must not run yet.
func newNode(name, podSubnet string, cp *controlPlane, dir, logDir string, p programs) (*Node, error) {
	n := &Node{dir: dir, logDir: logDir, programs: p, gateway: cp.address}
	dirs := []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		dirs = append(dirs, filepath.Dir(p[name].path))
	}
	n.path = strings.Join(dirs, ":")
	if err := os.MkdirAll(filepath.Join(dir, "cni"), 0o700); err != nil {
		return nil, fmt.Errorf("node %s: %w", name, err)
	}
	if err := cp.authority.kubeconfig(name, cp.url(), "system:node:"+name, "system:nodes"); err != nil {
		return nil, err
	}
	files := map[string]any{
		"containerd.toml": containerdConfig(filepath.Join(dir, "cni")),
		// JSON is YAML, too.
		"kubelet.yaml":           kubeletConfig(cp.authority.file, name),
		"cni/10-bridge.conflist": cniConfig(podSubnet),
	}
	for file, content := range files {
		data, ok := content.(string)
		if !ok {
			text, err := json.MarshalIndent(content, "", "  ")
			if err != nil {
				return nil, fmt.Errorf("node %s: %s: %w", name, file, err)
			}
			data = string(text)
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(data), 0o600); err != nil {
			return nil, fmt.Errorf("node %s: %w", name, err)
		}
	}
	return n, nil
}

func containerdConfig(cniDir string) string {
	return fmt.Sprintf(`version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.tracing.processor.v1.otlp"]
[plugins.'io.containerd.cri.v1.images']
  snapshotter = %q
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = %q
[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = "runc"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = [%q]
  conf_dir = %q
`, snapshotter, PauseImage, cniPlugins, cniDir)
}

const (
	snapshotter      = "overlayfs"
	containerdSocket = "/run/containerd/containerd.sock"
	cniPlugins       = "/usr/lib/cni" // of Debian's containernetworking-plugins
)

type object = map[string]any

func kubeletConfig(file func(string) string, name string) object {
	return object{
		"apiVersion":     "kubelet.config.k8s.io/v1beta1",
		"kind":           "KubeletConfiguration",
		"authentication": object{"anonymous": object{"enabled": false}, "x509": object{"clientCAFile": file("ca.crt")}},
		"authorization":  object{"mode": "Webhook"},
		"tlsCertFile":    file(name + "-server.crt"), "tlsPrivateKeyFile": file(name + "-server.key"),
		"containerRuntimeEndpoint": "unix://" + containerdSocket,
		"cgroupDriver":             "cgroupfs",
		"failSwapOn":               false,
		// Renewed after a quarter of it.
		"nodeLeaseDurationSeconds": 20,
		"makeIPTablesUtilChains":   false,
		// No resolv.conf of the host's: its name servers are out of reach.
		"resolvConf": "",
		// Images cannot be pulled again.
		"imageGCHighThresholdPercent": 100,
		"imageGCLowThresholdPercent":  99,
		"evictionHard": object{
			"memory.available": "32Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%",
			"imagefs.available": "1%", "imagefs.inodesFree": "1%",
		},
	}
}

func cniConfig(subnet string) object {
	return object{
		"cniVersion": "1.0.0",
		"name":       "pods",
		"plugins": []object{{
			// No masquerading: everyone's default route leads to the host, which knows every node's
			// pod subnet. So an NFS server sees the pods' own addresses and ports.
			"type": "bridge", "bridge": "cni0", "isGateway": true,
			"ipam": object{
				"type": "host-local", "ranges": [][]object{{{"subnet": subnet}}},
				"routes": []object{{"dst": "0.0.0.0/0"}},
				// Gone with the guest, as its pods' interfaces are.
				"dataDir": "/run/cni",
			},
		}},
	}
}

// boot prepares the guest that has just started and starts containerd.
func (n *Node) boot(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.containerd, n.kubelet = nil, nil // of an earlier run
	if err := n.Run(ctx, lab.Cmd{Args: []string{"sh", "-c", prepareNode, "prepare", n.gateway, nodeDir}}); err != nil {
		return fmt.Errorf("prepare node: %w", err)
	}
	var err error
	n.containerd, err = n.startLogged(ctx, "containerd",
		n.programs["containerd"].path, "--config", filepath.Join(n.dir, "containerd.toml"), "--address", containerdSocket)
	if err != nil {
		return err
	}
	err = poll(ctx, func(ctx context.Context) error {
		if err := ended(n.containerd); err != nil {
			return stopPolling{err}
		}
		_, err := n.ctr(ctx, "version")
		return err
	})
	if err != nil {
		return fmt.Errorf("node %s: containerd does not answer (log in %s): %w", n.Name(), n.logDir, err)
	}
	return nil
}

// startLogged starts a program whose output goes to a log in the host's directory of logs.
func (n *Node) startLogged(ctx context.Context, name string, args ...string) (*lab.Process, error) {
	log := filepath.Join("/out", "log", n.Name()+"-"+name+".log")
	p, err := n.Start(ctx, lab.Cmd{
		Args: append([]string{"sh", "-c", `log=$1; shift; exec "$@" >>"$log" 2>&1`, name, log}, args...),
		Env:  []string{"PATH=" + n.path},
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// ctr runs containerd's client in the kubelet's namespace of images and containers.
func (n *Node) ctr(ctx context.Context, args ...string) (string, error) {
	args = append([]string{n.programs["ctr"].path, "--address", containerdSocket, "-n", "k8s.io"}, args...)
	return n.Output(ctx, args...)
}

// StartKubelet starts the kubelet.
func (n *Node) StartKubelet(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.kubelet != nil && ended(n.kubelet) == nil {
		return fmt.Errorf("node %s: the kubelet runs already", n.Name())
	}
	var err error
	n.kubelet, err = n.startLogged(ctx, "kubelet", n.programs["kubelet"].path,
		"--config="+filepath.Join(n.dir, "kubelet.yaml"),
		"--kubeconfig="+filepath.Join(filepath.Dir(n.dir), n.Name()+".kubeconfig"),
		"--hostname-override="+n.Name(), "--node-ip="+n.IPv4(), "--v=2")
	return err
}

// StopKubelet stops the kubelet; pods run on.
func (n *Node) StopKubelet(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.kubelet == nil || ended(n.kubelet) != nil {
		return nil
	}
	if err := n.kubelet.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := n.kubelet.Wait(wait)
	var exit *lab.ExitError
	if err == nil || errors.As(err, &exit) {
		return nil
	}
	if err := n.kubelet.Kill(); err != nil {
		return err
	}
	if err := n.kubelet.Wait(ctx); err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("stop kubelet: %w", err)
	}
	return nil
}

// RestartKubelet stops the kubelet and starts it again; pods run on.
func (n *Node) RestartKubelet(ctx context.Context) error {
	if err := n.StopKubelet(ctx); err != nil {
		return err
	}
	return n.StartKubelet(ctx)
}

// Restart kills the guest if it runs, and starts it, containerd and the kubelet again. Images and
// the kubelet's state are on the node's disk and there again; what ran does not.
func (n *Node) Restart(ctx context.Context) error {
	if err := n.Guest.Restart(ctx); err != nil {
		return err
	}
	if err := n.boot(ctx); err != nil {
		return err
	}
	return n.StartKubelet(ctx)
}

// ended returns how a process in a guest ended, or nil while it runs.
func ended(p *lab.Process) error {
	select {
	case <-p.Done():
		if err := p.Wait(context.Background()); err != nil {
			return err
		}
		return errors.New("it ended with exit code 0")
	default:
		return nil
	}
}
