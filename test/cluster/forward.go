package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

// dialNetns connects from inside a network namespace.
func dialNetns(ctx context.Context, netns, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	dialed := make(chan result, 1)
	lab.OnThread(func() {
		if err := enterNetns(netns); err != nil {
			dialed <- result{err: err}
			return
		}
		// One literal address: the dialer makes the socket on this thread.
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		dialed <- result{conn, err}
	})
	r := <-dialed
	return r.conn, r.err
}

// forwarder makes an address of the lab's network reachable on the host's loopback, where a
// person's kubectl is.
type forwarder struct {
	listener net.Listener
	netns    string
	target   string
	cancel   context.CancelFunc
	wg       sync.WaitGroup
}

func newForwarder(netns, target string) (*forwarder, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("forward to %s: %w", target, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &forwarder{listener: listener, netns: netns, target: target, cancel: cancel}
	f.wg.Go(func() { f.accept(ctx) })
	return f, nil
}

func (f *forwarder) address() string { return f.listener.Addr().String() }

func (f *forwarder) accept(ctx context.Context) {
	for {
		conn, err := f.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the peer has gone already
		}
		f.wg.Go(func() { f.forward(ctx, conn) })
	}
}

// forward copies both ways until both are done or the forwarder closes.
func (f *forwarder) forward(ctx context.Context, client net.Conn) {
	defer client.Close()
	server, err := dialNetns(ctx, f.netns, f.target)
	if err != nil {
		return // the client sees its connection closed, as when nothing listens
	}
	defer server.Close()
	stop := context.AfterFunc(ctx, func() {
		client.Close()
		server.Close()
	})
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { copyHalf(server, client) })
	wg.Go(func() { copyHalf(client, server) })
	wg.Wait()
}

// copyHalf copies one way and hands on the end.
func copyHalf(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if err != nil {
		to.Close()
		from.Close()
		return
	}
	if c, ok := to.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
	}
}

func (f *forwarder) close() {
	f.cancel()
	f.listener.Close()
	f.wg.Wait()
}
