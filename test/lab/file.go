package lab

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/nfs-csi/nfs-csi-driver/test/lab/internal/wire"
)

// PutFile copies a file of the host into the guest, with its permissions. A file that is replaced
// is replaced as a whole, so a program may be running.
func (g *Guest) PutFile(ctx context.Context, hostPath, guestPath string) error {
	info, err := os.Stat(hostPath)
	if err != nil {
		return fmt.Errorf("guest %s: put file: %w", g.name, err)
	}
	// By the shared directory, which is fast, and by a new name, of which the guest can have
	// nothing old in its cache.
	src, err := os.Open(hostPath)
	if err != nil {
		return fmt.Errorf("guest %s: put file: %w", g.name, err)
	}
	defer src.Close()
	tmp, err := os.CreateTemp(g.lab.OutDir(), ".put-*")
	if err != nil {
		return fmt.Errorf("guest %s: put file: %w", g.name, err)
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	if _, err := io.Copy(tmp, src); err != nil {
		return fmt.Errorf("guest %s: put file: %w", g.name, err)
	}
	if err := tmp.Close(); err != nil {
		return fmt.Errorf("guest %s: put file: %w", g.name, err)
	}
	return g.builtin(ctx, wire.BuiltinCopyFile, nil, nil,
		filepath.Join("/out", filepath.Base(tmp.Name())), guestPath, fmt.Sprintf("%04o", info.Mode().Perm()))
}

// WriteFile writes a small file in the guest.
func (g *Guest) WriteFile(ctx context.Context, guestPath string, contents io.Reader, mode os.FileMode) error {
	return g.builtin(ctx, wire.BuiltinWriteFile, contents, nil, guestPath, fmt.Sprintf("%04o", mode.Perm()))
}

func mkdir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return nil
}
