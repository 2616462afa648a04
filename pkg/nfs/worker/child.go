package worker

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/admin"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/admin/adminpb"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/worker/workerpb"
)

// SocketFD is the descriptor on which a worker finds its socket.
const SocketFD = 3

// Main is the whole of a worker process: it serves on the socket fd until the
// other end is closed, then returns. The caller must end the process at once
// when it does: operations that wait for a server may still be running, and
// only the end of the process ends those.
func Main(ctx context.Context, fd int, b Backends) error {
	file := os.NewFile(uintptr(fd), "worker")
	if file == nil {
		return fmt.Errorf("descriptor %d is not open: the driver itself starts its workers", fd)
	}
	conn, err := net.FileConn(file)
	_ = file.Close() // FileConn works on a duplicate.
	if err != nil {
		return fmt.Errorf("descriptor %d is no socket: the driver itself starts its workers: %w", fd, err)
	}
	if b.Prepare != nil {
		if err := b.Prepare(); err != nil {
			return fmt.Errorf("worker: %w", err)
		}
	}
	listener := newListener(conn)
	server := grpc.NewServer(
		grpc.UnaryInterceptor(encodeErrors),
		// The parent has one connection with little on it; large buffers would
		// only make each worker larger.
		grpc.InitialWindowSize(window),
		grpc.InitialConnWindowSize(window),
		grpc.ReadBufferSize(8<<10),
		grpc.WriteBufferSize(8<<10),
		// Goroutines that stay spare a call the making of one, and of its stack.
		grpc.NumStreamWorkers(streamWorkers),
	)
	stores := &storeServer{openStore: b.OpenStore}
	workerpb.RegisterStoreServer(server, stores)
	adminpb.RegisterAdminServer(server, &admin.Server{Open: stores.admin})
	workerpb.RegisterMounterServer(server, &mountServer{mounter: b.Mounter})

	go func() {
		// Serve ends only with the listener, and then there is nothing to say.
		_ = server.Serve(listener)
	}()
	select {
	case <-listener.closed:
		klog.FromContext(ctx).V(4).Info("The driver closed the connection, the worker ends")
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// streamWorkers is how many calls the goroutines that stay serve at once; more
// calls get goroutines of their own.
const streamWorkers = 4

// listener gives out one connection and then waits for that to be closed.
type listener struct {
	conn   net.Conn
	first  sync.Once
	close  sync.Once
	closed chan struct{}
}

func newListener(conn net.Conn) *listener {
	return &listener{conn: conn, closed: make(chan struct{})}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	var c net.Conn
	l.first.Do(func() { c = &watchedConn{Conn: l.conn, closed: func() { _ = l.Close() }} })
	if c != nil {
		return c, nil
	}
	<-l.closed
	return nil, io.EOF
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.close.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return l.conn.LocalAddr() }

// watchedConn tells when it is closed, which gRPC does when the peer has gone.
type watchedConn struct {
	net.Conn
	closed func()
}

// Close implements net.Conn.
func (c *watchedConn) Close() error {
	c.closed()
	return c.Conn.Close()
}
