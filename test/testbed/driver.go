package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

// Driver is one process of the driver in a guest.
type Driver struct {
	// Endpoint is its CSI socket, in the guest.
	Endpoint string
	// LogFile is its log, on this host.
	LogFile string
	guest   *lab.Guest
	process *lab.Process
	log     *os.File
	call    string
}

// StartDriver starts "nfs-csi-driver role args..." in the guest, role being
// controller or node, and returns when it answers Probe.
func (b *Bed) StartDriver(ctx context.Context, guest *lab.Guest, role string, args ...string) (*Driver, error) {
	name := role + "-" + guest.Name()
	log, err := os.Create(filepath.Join(b.LogDir(), name+".log"))
	if err != nil {
		return nil, err
	}
	d := &Driver{
		Endpoint: "unix:///run/nfs-csi/" + role + ".sock",
		LogFile:  log.Name(),
		guest:    guest,
		log:      log,
		call:     b.Path(filepath.Base(callPackage)),
	}
	if _, err := guest.Output(ctx, "mkdir", "-p", "/run/nfs-csi"); err != nil {
		return nil, err
	}
	command := []string{b.Path(filepath.Base(driverPackage)), role, "--endpoint=" + d.Endpoint}
	if role == "node" {
		command = append(command, "--node-id="+guest.Name())
	}
	d.process, err = guest.Start(ctx, lab.Cmd{Args: append(command, args...), Stdout: log, Stderr: log})
	if err != nil {
		return nil, err
	}
	if err := d.Call(ctx, "Identity/Probe", &csi.ProbeRequest{}, &csi.ProbeResponse{}); err != nil {
		return nil, fmt.Errorf("the %s on %s does not answer (its log is %s): %w", role, guest.Name(), log.Name(), err)
	}
	return d, nil
}

// Call makes a CSI call, method being "Service/Method". What the driver refuses
// is a gRPC status error.
func (d *Driver) Call(ctx context.Context, method string, request, response proto.Message) error {
	in, err := protojson.Marshal(request)
	if err != nil {
		return err
	}
	var stdout, stderr strings.Builder
	err = d.guest.Run(ctx, lab.Cmd{
		Args:   []string{d.call, d.Endpoint, method, string(in)},
		Stdout: &stdout,
		Stderr: &stderr,
	})
	var exit *lab.ExitError
	if errors.As(err, &exit) && exit.Code > 100 && exit.Signal == 0 {
		return status.Error(codes.Code(exit.Code-100), strings.TrimSpace(stderr.String()))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	return protojson.Unmarshal([]byte(stdout.String()), response)
}

// Kill ends the process with SIGKILL.
func (d *Driver) Kill(ctx context.Context) error {
	defer d.log.Close()
	if err := d.process.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	var exit *lab.ExitError
	if err := d.process.Wait(ctx); !errors.As(err, &exit) || exit.Signal != syscall.SIGKILL {
		return fmt.Errorf("killed, the driver ended otherwise: %w", err)
	}
	return nil
}

// Stop ends the process as its manager would, and fails unless it ends well.
func (d *Driver) Stop(ctx context.Context) error {
	defer d.log.Close()
	if err := d.process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := d.process.Wait(ctx); err != nil {
		return fmt.Errorf("the driver did not end well (its log is %s): %w", d.LogFile, err)
	}
	return nil
}
