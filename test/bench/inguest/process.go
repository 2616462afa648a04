package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// process is a running controller or node of the driver.
type process struct {
	role, server, share string
	command             *exec.Cmd
	conn                *grpc.ClientConn
	mu                  sync.Mutex // guards volumes while creates run side by side
	// volumes are those that this controller made, by name.
	volumes map[string]*csi.Volume
}

const (
	mountsDir = "/var/lib/bench"
	logDir    = "/run/bench"

	adminSocket = "/run/admin.sock"
)

func (b *bench) start(ctx context.Context, role string) (*process, error) {
	endpoint := "unix:///run/" + role + ".sock"
	args := []string{role, "--endpoint=" + endpoint}
	if role == "node" {
		args = append(args, "--node-id=bench")
	} else {
		args = append(args, "--admin-endpoint=unix://"+adminSocket)
	}
	log, err := os.OpenFile(filepath.Join(logDir, role+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{role: role, server: b.server, share: b.share, command: exec.Command(b.binary, args...), volumes: map[string]*csi.Volume{}}
	p.command.Stdout, p.command.Stderr = log, log
	if err := p.command.Start(); err != nil {
		return nil, err
	}
	// Fixed windows, so that this client adds no pings of its own to what it measures.
	p.conn, err = grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithInitialWindowSize(1<<20), grpc.WithInitialConnWindowSize(1<<20))
	if err != nil {
		return nil, err
	}
	if _, err := csi.NewIdentityClient(p.conn).Probe(ctx, &csi.ProbeRequest{}, grpc.WaitForReady(true)); err != nil {
		return nil, fmt.Errorf("the %s does not answer: %w", role, err)
	}
	return p, nil
}

func (p *process) stop(ctx context.Context) error {
	if err := p.conn.Close(); err != nil {
		return err
	}
	if err := p.command.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- p.command.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			return fmt.Errorf("the %s did not end well: %w", p.role, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the %s does not end: %w", p.role, ctx.Err())
	}
}

func capability() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER},
	}
}

func (p *process) create(ctx context.Context, name string) error { return p.make(ctx, name, nil) }

// make makes a volume on the share, from a source unless that is nil.
func (p *process) make(ctx context.Context, name string, source *csi.VolumeContentSource) error {
	r, err := csi.NewControllerClient(p.conn).CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name:                name,
		VolumeContentSource: source,
		VolumeCapabilities:  []*csi.VolumeCapability{capability()},
		Parameters:          map[string]string{"server": p.server, "share": p.share},
	})
	if err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.volumes[name] = r.Volume
	return nil
}

func (p *process) delete(ctx context.Context, name string) error {
	_, err := csi.NewControllerClient(p.conn).DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: p.volumes[name].GetVolumeId()})
	if err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

func stagingPath(name string) string { return filepath.Join(mountsDir, "staging", name) }
func targetPath(name string) string  { return filepath.Join(mountsDir, "pods", name, "mount") }

func (p *process) stage(ctx context.Context, name string, v *csi.Volume) error {
	if err := os.MkdirAll(stagingPath(name), 0o750); err != nil {
		return err
	}
	_, err := csi.NewNodeClient(p.conn).NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: v.VolumeId, StagingTargetPath: stagingPath(name), VolumeCapability: capability(), VolumeContext: v.VolumeContext,
	})
	if err != nil {
		return fmt.Errorf("stage %s: %w", name, err)
	}
	return nil
}

func (p *process) unstage(ctx context.Context, name string, v *csi.Volume) error {
	_, err := csi.NewNodeClient(p.conn).NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{
		VolumeId: v.VolumeId, StagingTargetPath: stagingPath(name),
	})
	if err != nil {
		return fmt.Errorf("unstage %s: %w", name, err)
	}
	return nil
}

func (p *process) publish(ctx context.Context, name string, v *csi.Volume) error {
	if err := os.MkdirAll(filepath.Dir(targetPath(name)), 0o750); err != nil {
		return err
	}
	_, err := csi.NewNodeClient(p.conn).NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: v.VolumeId, StagingTargetPath: stagingPath(name), TargetPath: targetPath(name),
		VolumeCapability: capability(), VolumeContext: v.VolumeContext,
	})
	if err != nil {
		return fmt.Errorf("publish %s: %w", name, err)
	}
	return nil
}

func (p *process) unpublish(ctx context.Context, name string, v *csi.Volume) error {
	_, err := csi.NewNodeClient(p.conn).NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: v.VolumeId, TargetPath: targetPath(name)})
	if err != nil {
		return fmt.Errorf("unpublish %s: %w", name, err)
	}
	return nil
}
