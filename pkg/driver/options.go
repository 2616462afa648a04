package driver

import (
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// DefaultName is the CSI driver name unless another is chosen.
const DefaultName = "csi.nfs-csi.io"

// Options are the settings of a controller or node process. The zero value is
// not valid; Validate says why.
type Options struct {
	// Endpoint is where the CSI services are served: unix:///path.
	Endpoint string
	// DriverName is the CSI name of the driver.
	DriverName string
	// HTTPEndpoint is the host:port of health checks and metrics; empty for none.
	HTTPEndpoint string
	// OperationTimeout bounds each operation on an export, after which the
	// caller gets an error and the worker is ended.
	OperationTimeout time.Duration
	// WorkerIdleTimeout is how long a worker without work keeps its mount.
	WorkerIdleTimeout time.Duration
	// Kubeconfig is a file that names the cluster; empty for the cluster that
	// the process is a pod of, if it is.
	Kubeconfig string

	Controller ControllerOptions
	Node       NodeOptions
}

// ControllerOptions are the settings of the controller only.
type ControllerOptions struct {
	// InstanceID says whose records are ours when clusters share an export.
	InstanceID string
	// Exports are known from the start: "server:/share [option,option]".
	Exports []string
	// PurgeRate is how many files per second are unlinked on one export at
	// most; 0 means no limit.
	PurgeRate int
	// PurgeConcurrency is how many files of one export are unlinked at once.
	PurgeConcurrency int
	// AdminEndpoint is where ctl is served: unix:///path; empty for none.
	AdminEndpoint string
}

// NodeOptions are the settings of the node plugin only.
type NodeOptions struct {
	// NodeID is what the CO calls this node.
	NodeID string
	// KubeletRegistrationDir is the directory in which the kubelet looks for
	// plugins, as this process sees it; empty for no registration.
	KubeletRegistrationDir string
	// KubeletCSISocket is the path of the CSI socket as the kubelet sees it.
	KubeletCSISocket string
	// StartupTaint is the key of the taint to take off the node once the kubelet
	// has registered the driver; empty for none.
	StartupTaint string
}

// Validate returns what is wrong with the settings that both processes have.
func (o Options) Validate() error {
	if _, err := SocketPath(o.Endpoint); err != nil {
		return err
	}
	// CSI specification, GetPluginInfoResponse: at most 63 bytes, beginning and
	// ending with an alphanumeric, with dashes, dots and alphanumerics between.
	if !regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?$`).MatchString(o.DriverName) {
		return fmt.Errorf("--driver-name %q is not a domain name of at most 63 characters, such as %s", o.DriverName, DefaultName)
	}
	if o.HTTPEndpoint != "" {
		if _, _, err := net.SplitHostPort(o.HTTPEndpoint); err != nil {
			return fmt.Errorf("--http-endpoint %q is not host:port, such as :8080", o.HTTPEndpoint)
		}
	}
	if o.OperationTimeout <= 0 {
		return fmt.Errorf("--operation-timeout must be more than 0, such as 30s")
	}
	if o.WorkerIdleTimeout <= 0 {
		return fmt.Errorf("--worker-idle-timeout must be more than 0, such as 10m")
	}
	return nil
}

// ValidateController is Validate with the settings of the controller.
func (o Options) ValidateController() error {
	if err := o.Validate(); err != nil {
		return err
	}
	if _, err := o.Controller.ParseExports(); err != nil {
		return err
	}
	if o.Controller.InstanceID == "" {
		return fmt.Errorf("--instance-id must not be empty; leave it out for the driver's name")
	}
	if o.Controller.PurgeRate < 0 {
		return fmt.Errorf("--purge-rate must not be negative; 0 means no limit")
	}
	if o.Controller.PurgeConcurrency < 1 {
		return fmt.Errorf("--purge-concurrency must be at least 1")
	}
	if o.Controller.AdminEndpoint != "" {
		if _, err := socketPath("--admin-endpoint", o.Controller.AdminEndpoint); err != nil {
			return err
		}
		if o.Controller.AdminEndpoint == o.Endpoint {
			return fmt.Errorf("--admin-endpoint is the same as --endpoint: ctl needs a socket of its own")
		}
	}
	return nil
}

// ParseExports reads the exports that the controller knows from the start.
func (o ControllerOptions) ParseExports() ([]nfs.Export, error) {
	var exports []nfs.Export
	for _, s := range o.Exports {
		e, err := nfs.ParseExport(s)
		if err != nil {
			return nil, fmt.Errorf("--export: %w", err)
		}
		exports = append(exports, e)
	}
	return exports, nil
}

// ValidateNode is Validate with the settings of the node plugin.
func (o Options) ValidateNode() error {
	if err := o.Validate(); err != nil {
		return err
	}
	if o.Node.NodeID == "" {
		return fmt.Errorf("--node-id is missing: it is the name of the Kubernetes node, in a pod spec.nodeName")
	}
	// CSI specification, NodeGetInfoResponse.
	if len(o.Node.NodeID) > 256 {
		return fmt.Errorf("--node-id is %d bytes long; the limit is 256", len(o.Node.NodeID))
	}
	if o.Node.KubeletCSISocket != "" && !filepath.IsAbs(o.Node.KubeletCSISocket) {
		return fmt.Errorf("--kubelet-csi-socket %q is not an absolute path", o.Node.KubeletCSISocket)
	}
	if o.Node.StartupTaint != "" && o.Node.KubeletRegistrationDir == "" {
		return fmt.Errorf("--startup-taint needs --kubelet-registration-dir: the taint goes when the kubelet has registered the driver")
	}
	return nil
}

// SocketPath returns the path of a "unix:///path" endpoint, or what is wrong
// with it. A socket address holds 107 bytes (unix(7)).
func SocketPath(endpoint string) (string, error) { return socketPath("--endpoint", endpoint) }

func socketPath(flag, endpoint string) (string, error) {
	path, ok := strings.CutPrefix(endpoint, "unix://")
	if !ok || !filepath.IsAbs(path) || strings.HasSuffix(path, "/") {
		return "", fmt.Errorf("%s %q is not of the form unix:///path/to/csi.sock", flag, endpoint)
	}
	if len(path) > 107 {
		return "", fmt.Errorf("%s %q is longer than the 107 bytes that a socket address holds", flag, endpoint)
	}
	return path, nil
}
