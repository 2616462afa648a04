//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/test/lab/internal/wire"
)

// exportRoot is what NFS clients see as /. The guest's own root cannot be it: NFSv4 shows the
// directories above an export too, and an overlay on hostfs has no file handles.
const exportRoot = "/srv/nfs"

// nfsServer is the kernel's NFS server in this guest and what it needs around it.
type nfsServer struct {
	mu     sync.Mutex
	config *wire.ServerConfig // nil until it serves
}

// serve mounts the file systems, exports them and starts the daemons.
func (n *nfsServer) serve(config wire.ServerConfig, log io.Writer) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.config != nil {
		return errors.New("the NFS server runs already")
	}
	steps := []struct {
		what string
		do   func() error
	}{
		{"modules", func() error { return command("modprobe", "-a", "nfsd") }},
		{"state", func() error { return makeNFSState(config) }},
		{"exports", func() error { return makeExports(config.Exports) }},
		{"rpcbind", startRPCBind},
		// The tracking daemon remembers clients over restarts: with it the kernel knows that
		// nobody has anything to reclaim, and a first start needs no grace period.
		{"nfsdcld", func() error { return command("nfsdcld") }},
		{"exportfs", func() error { return command("exportfs", "-ra") }},
		{"nfsd", func() error { return setThreads(config.Threads) }},
		{"mountd", func() error { return command("rpc.mountd") }},
		{"mountd", func() error { return waitTCP("20048") }},
	}
	for _, s := range steps {
		began := time.Now()
		if err := s.do(); err != nil {
			return fmt.Errorf("NFS server: %s: %w", s.what, err)
		}
		fmt.Fprintf(log, "%s: %v\n", s.what, time.Since(began).Round(time.Millisecond))
	}
	n.config = &config
	return nil
}

func (n *nfsServer) start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.config == nil {
		return errors.New("this guest is no NFS server")
	}
	return setThreads(n.config.Threads)
}

func (n *nfsServer) stop() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.config == nil {
		return errors.New("this guest is no NFS server")
	}
	return setThreads(0)
}

// close stops serving and unmounts the exports.
func (n *nfsServer) close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.config == nil {
		return nil
	}
	err := setThreads(0)
	err = errors.Join(err, command("exportfs", "-au"), command("exportfs", "-f"))
	for _, e := range n.config.Exports {
		for _, dir := range []string{exportRoot + e.Path, e.Path} {
			if uerr := unix.Unmount(dir, 0); uerr != nil {
				err = errors.Join(err, fmt.Errorf("unmount %s: %w", dir, uerr))
			}
		}
	}
	n.config = nil
	return err
}

func setThreads(n int) error { return command("rpc.nfsd", strconv.Itoa(n)) }

// makeNFSState makes the files and pseudo file systems that the daemons expect.
func makeNFSState(config wire.ServerConfig) error {
	const state = "/var/lib/nfs"
	if err := os.MkdirAll(state, 0o755); err != nil {
		return err
	}
	if err := mount("tmpfs", state, "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	for _, d := range []string{"sm", "sm.bak", "v4recovery", "nfsdcld"} {
		if err := os.Mkdir(filepath.Join(state, d), 0o755); err != nil {
			return err
		}
	}
	for _, f := range []string{"etab", "rmtab"} {
		if err := os.WriteFile(filepath.Join(state, f), nil, 0o644); err != nil {
			return err
		}
	}
	cld := filepath.Join(config.StateDir, "nfsdcld")
	if err := os.MkdirAll(cld, 0o755); err != nil {
		return err
	}
	if err := mount(cld, state+"/nfsdcld", "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := os.MkdirAll("/run/rpc_pipefs", 0o755); err != nil {
		return err
	}
	if err := mount("sunrpc", "/run/rpc_pipefs", "rpc_pipefs", 0, ""); err != nil {
		return err
	}
	if err := mount("nfsd", "/proc/fs/nfsd", "nfsd", 0, ""); err != nil {
		return err
	}
	// manage-gids, Debian's default, would replace the groups that a client sends by those of
	// the server's /etc/group, which knows none of the tests' users.
	conf := fmt.Sprintf(`[general]
pipefs-directory=/run/rpc_pipefs
[exports]
rootdir=%[2]s
[exportd]
manage-gids=n
[mountd]
manage-gids=n
port=20048
[nfsd]
grace-time=%[1]d
lease-time=%[1]d
vers3=y
vers4=y
vers4.0=y
vers4.1=y
vers4.2=y
tcp=y
udp=n
`, config.GraceSeconds, exportRoot)
	return os.WriteFile("/etc/nfs.conf", []byte(conf), 0o644)
}

// makeExports mounts the file systems to be exported and writes /etc/exports.
func makeExports(exports []wire.Export) error {
	if err := os.MkdirAll(exportRoot, 0o755); err != nil {
		return err
	}
	if err := mount("tmpfs", exportRoot, "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	var table strings.Builder
	for i, e := range exports {
		if err := os.MkdirAll(e.Path, 0o755); err != nil {
			return err
		}
		options := e.Options
		switch e.FS {
		case "tmpfs":
			// By default half of the memory's pages is a limit of the files as well.
			if err := mount("tmpfs", e.Path, "tmpfs", 0, fmt.Sprintf("mode=0755,nr_inodes=1m,size=%dm", e.SizeMB)); err != nil {
				return err
			}
			// A file system without an UUID needs a number to be known by.
			if !strings.Contains(options, "fsid=") {
				options += fmt.Sprintf(",fsid=%d", i+1)
			}
		default:
			if err := mount(e.Device, e.Path, e.FS, 0, ""); err != nil {
				return fmt.Errorf("%s: %w", e.Device, err)
			}
		}
		shown := exportRoot + e.Path
		if err := os.MkdirAll(shown, 0o755); err != nil {
			return err
		}
		if err := mount(e.Path, shown, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		fmt.Fprintf(&table, "%s %s(%s)\n", exportsPath(e.Path), e.Clients, options)
	}
	return os.WriteFile("/etc/exports", []byte(table.String()), 0o644)
}

func startRPCBind() error {
	if err := os.MkdirAll("/run/rpcbind", 0o755); err != nil {
		return err
	}
	if err := command("rpcbind"); err != nil {
		return err
	}
	return waitTCP("111")
}

// waitTCP waits until something listens on a port of this guest.
func waitTCP(port string) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		conn, err := net.DialTimeout("tcp", "127.0.0.1:"+port, time.Second)
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("nothing listens on port %s: %w", port, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// exportsPath writes a path as exports(5) wants it: what would end or hide it in octal.
func exportsPath(p string) string {
	var b strings.Builder
	for _, c := range []byte(p) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`#"\`, c) >= 0 {
			fmt.Fprintf(&b, "\\%03o", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
