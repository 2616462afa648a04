// Package testbed runs the built driver in a lab: an NFS server, client guests
// and the driver's processes on them.
package testbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

// Options of a bed.
type Options struct {
	// Name names the lab.
	Name string
	// Clients is the number of client guests: client1, client2, ...
	Clients int
	Exports []lab.ExportSpec
	// Log gets what the lab does; nil drops it.
	Log io.Writer
	// Programs are packages of this module to build besides the driver and
	// csicall; each is found by Path under the last element of its path.
	Programs []string
}

// Bed is a lab with one NFS server and some clients, and programs built for them.
type Bed struct {
	*lab.Lab
	Server  *lab.Server
	Clients []*lab.Guest
	bin     string
}

const (
	driverPackage = "./cmd/nfs-csi-driver"
	callPackage   = "./test/csicall"
)

// Start builds the programs and boots the guests.
func Start(ctx context.Context, o Options) (_ *Bed, err error) {
	if o.Log == nil {
		o.Log = io.Discard
	}
	bin, err := filepath.Abs("bin/lab")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return nil, err
	}
	for _, p := range append([]string{driverPackage, callPackage}, o.Programs...) {
		fmt.Fprintf(o.Log, "building %s\n", p)
		if err := lab.GoBuild(ctx, filepath.Join(bin, filepath.Base(p)), p); err != nil {
			return nil, fmt.Errorf("build %s: %w", p, err)
		}
	}
	l, err := lab.Start(ctx, lab.Options{Name: o.Name, Log: o.Log})
	if err != nil {
		return nil, err
	}
	b := &Bed{Lab: l, bin: bin, Clients: make([]*lab.Guest, o.Clients)}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	boot, bootCtx := errgroup.WithContext(ctx)
	boot.Go(func() (err error) {
		b.Server, err = l.StartServer(bootCtx, lab.ServerSpec{Exports: o.Exports, MemoryMB: 2048})
		return err
	})
	for i := range b.Clients {
		boot.Go(func() (err error) {
			b.Clients[i], err = l.StartGuest(bootCtx, lab.GuestSpec{Name: fmt.Sprintf("client%d", i+1), MemoryMB: 2048})
			return err
		})
	}
	if err := boot.Wait(); err != nil {
		return nil, fmt.Errorf("boot the lab: %w", err)
	}
	return b, nil
}

// Path returns where guests find a program of Options.Programs, by the last
// element of its package's path.
func (b *Bed) Path(program string) string {
	return lab.GuestPath(filepath.Join(b.bin, program))
}
