//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/test/lab/internal/wire"
)

// builtin runs one of the agent's own functions.
func (a *agent) builtin(c *wire.Command, stdin io.Reader, stdout io.Writer) error {
	switch c.Builtin {
	case wire.BuiltinWriteFile:
		if len(c.Args) != 2 {
			return fmt.Errorf("%s: want path and mode", c.Builtin)
		}
		return writeFile(stdin, c.Args[0], c.Args[1])
	case wire.BuiltinCopyFile:
		if len(c.Args) != 3 {
			return fmt.Errorf("%s: want source, destination and mode", c.Builtin)
		}
		f, err := os.Open(c.Args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		return writeFile(f, c.Args[1], c.Args[2])
	case wire.BuiltinServe:
		var config wire.ServerConfig
		if err := json.NewDecoder(stdin).Decode(&config); err != nil {
			return fmt.Errorf("server configuration: %w", err)
		}
		return a.nfs.serve(config, stdout)
	case wire.BuiltinNFSStart:
		return a.nfs.start()
	case wire.BuiltinNFSStop:
		return a.nfs.stop()
	case wire.BuiltinPowerOff:
		return a.powerOff(stdout)
	}
	return fmt.Errorf("the agent knows no %q", c.Builtin)
}

func writeFile(r io.Reader, path, mode string) error {
	bits, err := strconv.ParseUint(mode, 8, 32)
	if err != nil {
		return fmt.Errorf("file mode %q: %w", mode, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// A new file renamed into place, so that a running program can be replaced.
	f, err := os.CreateTemp(filepath.Dir(path), ".lab-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := io.Copy(f, r); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := f.Chmod(os.FileMode(bits).Perm()); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}

// powerOff ends the guest in order: the NFS server first, so that the disks can be unmounted.
func (a *agent) powerOff(log io.Writer) error {
	if err := a.nfs.close(); err != nil {
		fmt.Fprintf(log, "stop the NFS server: %v\n", err)
	}
	// Not sync(2): it would wait for dead NFS servers.
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		return fmt.Errorf("power off: %w", err)
	}
	return nil
}
