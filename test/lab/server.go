package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/nfs-csi/nfs-csi-driver/test/lab/internal/wire"
)

// ExportSpec is one exported file system, on a disk of its own unless it is a tmpfs.
type ExportSpec struct {
	Path    string // absolute, in the server's guest
	FS      FS     // default Tmpfs
	SizeMB  int    // default 1024
	Options string // exports(5); default rw,sync,no_subtree_check,no_root_squash
	Clients string // exports(5); default *
}

// ServerSpec describes an NFS server: versions 3, 4.0, 4.1 and 4.2 over TCP, IPv4 and IPv6.
type ServerSpec struct {
	Name     string // default "server"
	MemoryMB int    // tmpfs exports are in it
	Exports  []ExportSpec
	Threads  int // default 8
	// GraceSeconds is the grace period and the lease time; default 10, the kernel's least. The
	// grace period is for a server that starts again: clients then reclaim their state, and it
	// ends early when all have. A first start has none.
	GraceSeconds int
	HostMounts   []HostMount
}

// Server is a guest that serves NFS.
type Server struct {
	*Guest
	config wire.ServerConfig
}

// stateMount is where a server's guest keeps what must survive its end: which clients it knows.
const stateMount = "/var/lib/lab-state"

// StartServer starts a guest and in it an NFS server, and returns when it serves. The name of a
// server that does not run any more starts that one again, with the data of its disks.
func (l *Lab) StartServer(ctx context.Context, spec ServerSpec) (*Server, error) {
	if spec.Name == "" {
		spec.Name = "server"
	}
	config := wire.ServerConfig{Threads: spec.Threads, GraceSeconds: spec.GraceSeconds, StateDir: stateMount}
	if config.Threads == 0 {
		config.Threads = 8
	}
	if config.GraceSeconds == 0 {
		config.GraceSeconds = 10
	}
	guest := GuestSpec{Name: spec.Name, MemoryMB: spec.MemoryMB, HostMounts: spec.HostMounts, serves: true}
	for _, e := range spec.Exports {
		if !filepath.IsAbs(e.Path) {
			return nil, fmt.Errorf("server %s: export path %q is not absolute", spec.Name, e.Path)
		}
		x := wire.Export{Path: e.Path, FS: string(e.FS), SizeMB: e.SizeMB, Clients: e.Clients, Options: e.Options}
		if x.FS == "" {
			x.FS = string(Tmpfs)
		}
		if x.SizeMB == 0 {
			x.SizeMB = 1024
		}
		if x.Clients == "" {
			x.Clients = "*"
		}
		if x.Options == "" {
			x.Options = "rw,sync,no_subtree_check,no_root_squash"
		}
		if x.FS != string(Tmpfs) {
			x.Device = diskDevice(len(guest.Disks))
			guest.Disks = append(guest.Disks, DiskSpec{FS: e.FS, SizeMB: x.SizeMB})
		}
		config.Exports = append(config.Exports, x)
	}
	// The directory is part of the configuration of the guest's kernel from its start.
	state := filepath.Join(l.dir, spec.Name+".state")
	if err := mkdir(state); err != nil {
		return nil, err
	}
	guest.HostMounts = append(guest.HostMounts, HostMount{Host: state, Guest: stateMount, Writable: true})
	g, err := l.StartGuest(ctx, guest)
	if err != nil {
		return nil, err
	}
	s := &Server{Guest: g, config: config}
	if err := s.serve(ctx); err != nil {
		return nil, errors.Join(err, g.Kill())
	}
	return s, nil
}

// Restart kills the server's guest if it runs, and starts it and the NFS server again. What is on
// disks is there again, what is on tmpfs is not.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Guest.Restart(ctx); err != nil {
		return err
	}
	return s.serve(ctx)
}

func (s *Server) serve(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	config, err := json.Marshal(s.config)
	if err != nil {
		return fmt.Errorf("server %s: %w", s.name, err)
	}
	var steps bytes.Buffer
	if err := s.builtin(ctx, wire.BuiltinServe, bytes.NewReader(config), &steps); err != nil {
		return fmt.Errorf("server %s: %w\nthe end of %s:\n%s", s.name, err, s.logPath(), s.logTail(20))
	}
	s.lab.log.printf("guest %s: serves NFS (%s)", s.name, bytes.ReplaceAll(bytes.TrimSpace(steps.Bytes()), []byte("\n"), []byte(", ")))
	return nil
}

// StopNFS stops the NFS server and leaves its guest up: it answers pings and refuses NFS.
func (s *Server) StopNFS(ctx context.Context) error {
	return s.builtin(ctx, wire.BuiltinNFSStop, nil, nil)
}

// StartNFS starts the NFS server again after StopNFS.
func (s *Server) StartNFS(ctx context.Context) error {
	return s.builtin(ctx, wire.BuiltinNFSStart, nil, nil)
}
