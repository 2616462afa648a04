package mount

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func TestNFSDeadServer(t *testing.T) {
	server := labEnv(t, "LAB_SERVER")
	v3 := "vers=3,nolock,mountaddr=" + server
	for _, tt := range []struct {
		name, options string
		leave         func(*testing.T, string) (write func())
	}{
		{"4.2, nothing in use", "vers=4.2", leaveNothing},
		{"4.2, open file", "vers=4.2", leaveOpenFile},
		{"4.0, nothing in use", "vers=4.0", leaveNothing},
		{"4.0, open file", "vers=4.0", leaveOpenFile},
		{"3, nothing in use", v3, leaveNothing},
		{"3, open file", v3, leaveOpenFile},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := startProxy(t, net.JoinHostPort(server, "2049"))
			testDeadServer(t, p, labExport(t, "127.0.0.1", tt.options, fmt.Sprintf("port=%d", p.port)), tt.leave)
		})
	}
}

func testDeadServer(t *testing.T, p *proxy, export nfs.Export, leave func(*testing.T, string) func()) {
	t.Helper()
	m := New(Options{UnmountTimeout: 500 * time.Millisecond})
	dir := needNamespace(t)
	staging, published := mkdirs(t, dir, "staging"), mkdirs(t, dir, "published")
	if err := m.Mount(t.Context(), export, "", staging, false); err != nil {
		t.Fatal(err)
	}
	if err := m.Bind(t.Context(), staging, published, false); err != nil {
		t.Fatal(err)
	}
	write := leave(t, filepath.Join(published, "file"))
	p.freeze()
	write()
	start := time.Now()
	for _, target := range []string{published, staging} {
		if err := m.Unmount(t.Context(), target); err != nil {
			t.Error(err)
		}
		notMounted(t, m, target)
	}
	took := time.Since(start)
	if took > 10*time.Second {
		t.Errorf("the unmounts took %s", took)
	}
	m.mu.Lock()
	t.Logf("%s, %d umount2 calls hang", took.Round(time.Millisecond), len(m.unmounts))
	m.mu.Unlock()
	p.thaw()
	eventually(t, "no umount2 call is left when the server is back", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.unmounts) == 0
	})
	root, err := m.Detached(t.Context(), export, "", false)
	if err != nil {
		t.Fatal(err)
	}
	if err := root.Close(); err != nil {
		t.Error(err)
	}
}

func leaveNothing(*testing.T, string) func() { return func() {} }

// leaveOpenFile keeps a file open and writes to it, as a process that is stuck.
func leaveOpenFile(t *testing.T, name string) func() {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if _, err := f.Write(make([]byte, 1<<20)); err != nil {
			t.Error(err)
		}
		// The last reference: closing waits for the server, so not before it is back.
		t.Cleanup(func() { _ = f.Close() })
	}
}

// proxy is a TCP proxy that can stop to move data, as a server that hangs.
type proxy struct {
	port   int
	mu     sync.Mutex
	moving chan struct{} // closed while data moves
}

func startProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{port: l.Addr().(*net.TCPAddr).Port, moving: make(chan struct{})}
	close(p.moving)
	var wg sync.WaitGroup
	var conns []net.Conn
	wg.Go(func() {
		// Servers take no requests from ports that any user may use, and the
		// kernel's own client uses those from 665 on.
		from := 520
		for {
			down, err := l.Accept()
			if err != nil {
				return
			}
			var up net.Conn
			for ; ; from++ {
				dialer := net.Dialer{LocalAddr: &net.TCPAddr{Port: from}}
				// A port of a connection that ended is not free at once.
				if up, err = dialer.DialContext(t.Context(), "tcp", to); !errors.Is(err, unix.EADDRINUSE) {
					break
				}
			}
			if err != nil {
				t.Logf("proxy: %v", err)
				_ = down.Close()
				continue
			}
			p.mu.Lock()
			conns = append(conns, up, down)
			p.mu.Unlock()
			wg.Go(func() { p.pump(up, down) })
			wg.Go(func() { p.pump(down, up) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.thaw()
		p.mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		wg.Wait()
	})
	return p
}

func (p *proxy) pump(to, from net.Conn) {
	defer func() { _ = errors.Join(to.Close(), from.Close()) }()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		moving := p.moving
		p.mu.Unlock()
		<-moving
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (p *proxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moving = make(chan struct{})
}

func (p *proxy) thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.moving:
	default:
		close(p.moving)
	}
}
