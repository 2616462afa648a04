package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"
)

// DefaultDrainTimeout is how long calls that run may go on after the server was
// told to stop.
const DefaultDrainTimeout = 20 * time.Second

// Config is what a Server serves.
type Config struct {
	// Name is the CSI driver name, Version that of the binary.
	Name, Version string
	// Stores is behind the Controller service; without it there is none.
	Stores Stores
	// Mounter, Match and NodeID are behind the Node service; without Mounter
	// there is none. NodeID is what the CO calls this node.
	Mounter Mounter
	Match   MatchFunc
	NodeID  string
	// DrainTimeout bounds the wait for running calls; 0 means DefaultDrainTimeout.
	DrainTimeout time.Duration
	Logger       klog.Logger
}

// Server serves the CSI services.
type Server struct {
	grpc    *grpc.Server
	metrics *grpcprom.ServerMetrics
	drain   time.Duration
	logger  klog.Logger
	serving atomic.Bool
}

// NewServer returns a server of the services that the configuration has the
// means for.
func NewServer(c Config) *Server {
	if c.DrainTimeout == 0 {
		c.DrainTimeout = DefaultDrainTimeout
	}
	s := &Server{
		drain:  c.DrainTimeout,
		logger: c.Logger,
		metrics: grpcprom.NewServerMetrics(grpcprom.WithServerHandlingTimeHistogram(
			grpcprom.WithHistogramBuckets([]float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120}),
		)),
	}
	// Fixed windows: to size them, gRPC would send pings along with every call.
	const window = 1 << 20
	// Goroutines that stay spare a call the making of one, and of its stack.
	const streamWorkers = 4
	s.grpc = grpc.NewServer(grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(window), grpc.NumStreamWorkers(streamWorkers), grpc.ChainUnaryInterceptor(
		s.metrics.UnaryServerInterceptor(),
		logCalls(c.Logger),
		mapErrors,
		recoverPanics,
		newInFlight().intercept,
	))
	csi.RegisterIdentityServer(s.grpc, &identity{name: c.Name, version: c.Version, ready: s.Serving})
	if c.Stores != nil {
		csi.RegisterControllerServer(s.grpc, &controller{stores: c.Stores})
	}
	if c.Mounter != nil {
		csi.RegisterNodeServer(s.grpc, &node{id: c.NodeID, mounts: c.Mounter, match: c.Match})
	}
	s.metrics.InitializeMetrics(s.grpc)
	return s
}

// Serving reports whether the server takes calls: it does from Serve until it
// is told to stop.
func (s *Server) Serving() bool { return s.serving.Load() }

// Serve serves on the listener until ctx ends. Then it takes no more calls and
// waits, for the drain timeout at most, for those that run. It closes the
// listener, and returns nil unless it had to stop for another reason than ctx.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	s.logger.Info("Serving CSI", "address", listener.Addr().String())
	s.serving.Store(true)
	defer s.serving.Store(false)
	return serveUntil(ctx, s.grpc, listener, s.drain, func() {
		s.serving.Store(false)
		s.logger.Info("Told to stop: waiting for running calls", "limit", s.drain.String())
	})
}

// serveUntil runs the gRPC server until ctx ends, calls stopping, and then lets
// running calls end within the drain time.
func serveUntil(ctx context.Context, server *grpc.Server, listener net.Listener, drain time.Duration, stopping func()) error {
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve on %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	stopping()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		server.GracefulStop()
	}()
	timer := time.NewTimer(drain)
	defer timer.Stop()
	select {
	case <-drained:
	case <-timer.C:
		server.Stop()
		<-drained
	}
	// Serve returns ErrServerStopped only when it was stopped before it began.
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve on %s: %w", listener.Addr(), err)
	}
	return nil
}

// Listen listens on the socket of a "unix:///path" endpoint. A socket file that
// a process left when it was killed is replaced; one that a process listens on
// is not.
func Listen(ctx context.Context, endpoint string) (net.Listener, error) {
	path, err := SocketPath(endpoint)
	if err != nil {
		return nil, err
	}
	return listenUnix(ctx, path)
}

func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("listen: %w", err)
	case info.Mode().Type() != os.ModeSocket:
		return nil, fmt.Errorf("listen: %s exists and is no socket; remove it or choose another path", path)
	default:
		var d net.Dialer
		if conn, err := d.DialContext(ctx, "unix", path); err == nil {
			_ = conn.Close()
			return nil, fmt.Errorf("listen: another process listens on %s; end it first", path)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("listen: remove the stale socket: %w", err)
		}
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	// Whoever may connect can delete volumes. The group is for sidecars that run
	// as another user with the pod's fsGroup.
	if err := os.Chmod(path, 0o660); err != nil { //nolint:gosec // see above
		_ = listener.Close()
		return nil, fmt.Errorf("listen: %w", err)
	}
	return listener, nil
}
