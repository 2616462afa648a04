package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// RegistrationOptions say how the kubelet finds the driver.
type RegistrationOptions struct {
	// Dir is the directory that the kubelet watches, as this process sees it;
	// /var/lib/kubelet/plugins_registry on the node.
	Dir        string
	DriverName string
	// Endpoint is the path of the CSI socket as the kubelet sees it.
	Endpoint string
	// CheckInterval is how often the socket is looked for; 0 means five seconds.
	CheckInterval time.Duration
	Logger        klog.Logger
}

// Registration offers the driver to the kubelet, as node-driver-registrar does
// for others: on a socket in the kubelet's directory it says where the CSI
// socket is, and hears whether the kubelet took it.
type Registration struct {
	registerapi.UnimplementedRegistrationServer
	options RegistrationOptions
	socket  string
	gauge   prometheus.Gauge
	done    chan struct{}

	mu sync.Mutex
	// status is nil when the kubelet has registered the driver.
	status error
}

// NewRegistration returns a registration that Serve begins.
func NewRegistration(o RegistrationOptions) *Registration {
	if o.CheckInterval == 0 {
		o.CheckInterval = 5 * time.Second
	}
	return &Registration{
		options: o,
		socket:  filepath.Join(o.Dir, o.DriverName+"-reg.sock"),
		gauge: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "nfs_csi_kubelet_registered",
			Help: "1 when the kubelet has registered the driver, else 0.",
		}),
		done:   make(chan struct{}, 1),
		status: errors.New("the kubelet has not asked yet"),
	}
}

// Registered has an element whenever the kubelet has registered the driver since
// the last one was taken. Before it says so, the kubelet has put the driver into
// the node's CSINode (RegisterPlugin in pkg/volume/csi/csi_plugin.go of Kubernetes).
func (r *Registration) Registered() <-chan struct{} { return r.done }

// Collector returns the metric nfs_csi_kubelet_registered.
func (r *Registration) Collector() prometheus.Collector { return r.gauge }

// Check is ready once the kubelet has registered the driver.
func (r *Registration) Check() Check {
	return Check{Name: "kubelet-registration", Check: func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.status
	}}
}

// GetInfo implements the kubelet's Registration service.
func (r *Registration) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{
		Type:     registerapi.CSIPlugin,
		Name:     r.options.DriverName,
		Endpoint: r.options.Endpoint,
		// The version of the CSI interface, of which all 1.x are one.
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus implements the kubelet's Registration service.
func (r *Registration) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	if s.GetPluginRegistered() {
		r.setStatus(nil)
		select {
		case r.done <- struct{}{}:
		default:
		}
		r.options.Logger.Info("The kubelet registered the driver", "driver", r.options.DriverName)
	} else {
		err := fmt.Errorf("the kubelet refused the driver: %s", s.GetError())
		r.setStatus(err)
		r.options.Logger.Error(err, "Registration failed; the kubelet will try again", "driver", r.options.DriverName, "endpoint", r.options.Endpoint)
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}

func (r *Registration) setStatus(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status = err
	r.gauge.Set(0)
	if err == nil {
		r.gauge.Set(1)
	}
}

// Serve offers the driver until ctx ends. When somebody removes the socket, as
// a wiped kubelet directory does, it makes a new one, which is what has the
// kubelet ask again.
func (r *Registration) Serve(ctx context.Context) error {
	for {
		listener, err := listenUnix(ctx, r.socket)
		if err != nil {
			return fmt.Errorf("kubelet registration: %w", err)
		}
		r.options.Logger.Info("Waiting for the kubelet", "socket", r.socket)
		if err := r.serveOnce(ctx, listener); err != nil {
			return fmt.Errorf("kubelet registration: %w", err)
		}
		if ctx.Err() != nil {
			return nil
		}
		r.setStatus(errors.New("the registration socket was removed; the kubelet has not asked since"))
		r.options.Logger.Info("The registration socket was removed: making it again", "socket", r.socket)
	}
}

// serveOnce serves until ctx ends or the listener's socket file is gone.
func (r *Registration) serveOnce(ctx context.Context, listener net.Listener) error {
	// What another process puts in place of the socket is not ours to unlink.
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	made, err := os.Lstat(r.socket)
	if err != nil {
		_ = listener.Close()
		return err
	}
	gone, cancel := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		defer cancel()
		ticker := time.NewTicker(r.options.CheckInterval)
		defer ticker.Stop()
		for {
			select {
			case <-gone.Done():
				return
			case <-ticker.C:
				if now, err := os.Lstat(r.socket); err != nil || !os.SameFile(made, now) {
					return
				}
			}
		}
	}()
	server := grpc.NewServer()
	registerapi.RegisterRegistrationServer(server, r)
	err = serveUntil(gone, server, listener, time.Second, func() {})
	cancel()
	<-watched
	if now, statErr := os.Lstat(r.socket); statErr == nil && os.SameFile(made, now) {
		_ = os.Remove(r.socket)
	}
	return err
}
