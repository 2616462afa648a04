// Package testbed runs the built driver in a lab: an NFS server, client guests
// and the driver's processes on them.
package testbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
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
}

const (
	binDir        = "bin"
	driverPackage = "github.com/nfs-csi/nfs-csi-driver/cmd/nfs-csi-driver"
	callPackage   = "github.com/nfs-csi/nfs-csi-driver/test/csicall"
)

// Start builds the programs and boots the guests.
func Start(ctx context.Context, o Options) (_ *Bed, err error) {
	if o.Log == nil {
		o.Log = io.Discard
	}
	l, err := lab.Start(ctx, lab.Options{Name: o.Name, Log: o.Log})
	if err != nil {
		return nil, err
	}
	b := &Bed{Lab: l, Clients: make([]*lab.Guest, o.Clients)}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	if err := os.Mkdir(b.bin(), 0o755); err != nil {
		return nil, err
	}
	boot, bootCtx := errgroup.WithContext(ctx)
	boot.Go(func() error {
		for _, p := range append([]string{driverPackage, callPackage}, o.Programs...) {
			fmt.Fprintf(o.Log, "building %s\n", p)
			if err := lab.GoBuild(bootCtx, filepath.Join(b.bin(), filepath.Base(p)), p); err != nil {
				return fmt.Errorf("build %s: %w", p, err)
			}
		}
		return nil
	})
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
func (b *Bed) Path(program string) string { return path.Join("/out", binDir, program) }

// Close ends the lab and removes the programs; logs stay.
func (b *Bed) Close() error {
	return errors.Join(b.Lab.Close(), os.RemoveAll(b.bin()))
}

// bin is where the programs are on this host: in the directory that guests see as /out.
func (b *Bed) bin() string { return filepath.Join(b.OutDir(), binDir) }
