package ctl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/admin"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/store"
)

// Options say where the exports are.
type Options struct {
	// Socket is the path of the controller's admin socket.
	Socket string
	// Path is the root of a mounted export; with it no controller is asked.
	Path string
	// Export names one export of the controller, or the one that is mounted at Path:
	// "server:/share [option,option]".
	Export string
	// Store are the options of the store at Path.
	Store store.Options
}

// target is one export to work on.
type target struct {
	admin.Backend
	// name is what messages and tables call it.
	name string
	// export is the zero value at a Path whose export was not named.
	export nfs.Export
	driver string // CSI name
}

// errOf names the export in an error. What gRPC adds to a message is left out.
func (t target) errOf(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", t.name, plain(err))
}

// connect returns the exports to work on, and how to let go of them.
func connect(ctx context.Context, o Options) ([]target, func() error, error) {
	if o.Path != "" {
		t, end, err := openPath(ctx, o)
		return []target{t}, end, err
	}
	if _, err := os.Stat(o.Socket); err != nil {
		return nil, nil, fmt.Errorf("no controller answers: %w; run this in a controller's container, or on a mounted export with --path", err)
	}
	conn, err := grpc.NewClient("unix://"+o.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	targets, err := controllerTargets(ctx, conn, o)
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return targets, conn.Close, nil
}

func controllerTargets(ctx context.Context, conn *grpc.ClientConn, o Options) ([]target, error) {
	exports, driverName, err := admin.ListExports(ctx, conn)
	if err != nil {
		if status.Code(err) == codes.Unavailable {
			return nil, fmt.Errorf("no controller answers on %s: %s", o.Socket, status.Convert(err).Message())
		}
		return nil, fmt.Errorf("ask the controller on %s: %w", o.Socket, err)
	}
	var targets []target
	for _, e := range exports {
		name := e.String()
		if slices.ContainsFunc(exports, func(other nfs.Export) bool { return other.String() == name && !other.Equal(e) }) {
			name = e.Key()
		}
		targets = append(targets, target{Backend: admin.NewClient(conn, e), name: name, export: e, driver: driverName})
	}
	if o.Export == "" {
		return targets, nil
	}
	return choose(targets, o.Export)
}

// choose returns the targets of the export, with any mount options if it has none.
func choose(targets []target, text string) ([]target, error) {
	export, err := nfs.ParseExport(text)
	if err != nil {
		return nil, usageError{fmt.Errorf("--export: %w", err)}
	}
	var chosen []target
	var known []string
	for _, t := range targets {
		known = append(known, t.name)
		if t.export.String() == export.String() && (len(export.Options) == 0 || t.export.Equal(export)) {
			chosen = append(chosen, t)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("this controller does not know the export %q; it knows: %s. Name it in the chart's exports, or make a StorageClass of it", text, orNone(strings.Join(known, ", ")))
	}
	return chosen, nil
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// openPath opens the store on a mounted export.
func openPath(ctx context.Context, o Options) (t target, end func() error, err error) {
	t = target{name: o.Path, driver: o.Store.DriverName}
	if o.Export != "" {
		if t.export, err = nfs.ParseExport(o.Export); err != nil {
			return t, nil, usageError{fmt.Errorf("--export: %w", err)}
		}
		t.name = t.export.String()
	}
	root, err := os.OpenRoot(o.Path)
	if err != nil {
		return t, nil, fmt.Errorf("--path: %w", err)
	}
	s, err := store.Open(ctx, root, o.Store)
	if err != nil {
		return t, nil, errors.Join(fmt.Errorf("--path %s: %w", o.Path, err), root.Close())
	}
	t.Backend = s
	return t, func() error { return errors.Join(s.Close(), root.Close()) }, nil
}

// checkRoot refuses a path that is no root of an export, or on which nothing was
// ever made: both look as if there were no volumes.
func checkRoot(o Options) error {
	if o.Path == "" {
		return nil
	}
	if _, err := os.Stat(o.Path); err != nil {
		return fmt.Errorf("--path: %w", err)
	}
	if _, err := os.Lstat(filepath.Join(o.Path, ".nfs-csi")); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("--path %s: there is no directory .nfs-csi in it: it is not the root of the share, or no volume was ever made there", o.Path)
	}
	return nil
}

// usageError is a mistake in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// IsUsage reports whether the error is a mistake in the command line.
func IsUsage(err error) bool { return errors.As(err, &usageError{}) }
