package worker

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/singleflight"
	mountutils "k8s.io/mount-utils"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/worker/workerpb"
)

// HostMounter is the part of driver.Mounter that never waits for a server.
type HostMounter interface {
	Unmount(ctx context.Context, target string) error
	List() ([]mountutils.MountInfo, error)
}

// MountPool is a driver.Mounter that runs what may wait for a server in a
// worker for that server. It is also a prometheus.Collector.
type MountPool struct {
	*pool
	host   HostMounter
	probes singleflight.Group

	mu sync.Mutex
	// changes are the mounts and binds under way, by target, also those whose
	// callers have gone.
	changes map[string]*change
	// servers are those of the mounts made here and not unmounted since, by
	// target. They spare a bind the search in mountinfo, which has the last word
	// for all others.
	servers map[string]string
}

// change is one mount or bind under way.
type change struct {
	abandoned bool
	keeper    *keeper
	process   *process // nil until it has begun
}

// NewMountPool returns a pool that lives until Close; it logs to the logger of
// ctx, and ends all its work when ctx ends.
func NewMountPool(ctx context.Context, host HostMounter, options Options) (*MountPool, error) {
	if err := options.Validate(); err != nil {
		return nil, err
	}
	return &MountPool{pool: newPool(ctx, kindMount, options), host: host, changes: map[string]*change{}, servers: map[string]string{}}, nil
}

// Mount implements driver.Mounter. While an earlier mount at the target is not
// over it fails with nfs.ErrBusy.
func (m *MountPool) Mount(ctx context.Context, export nfs.Export, dir, target string, readOnly bool) error {
	err := m.change(ctx, "Mount", m.keeper(export.Server), target, func(ctx context.Context, c workerpb.MounterClient) error {
		_, err := c.Mount(ctx, &workerpb.MountRequest{Export: exportToPB(export), Dir: dir, Target: target, ReadOnly: readOnly})
		return err
	})
	if err == nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.servers[filepath.Clean(target)] = export.Server
	}
	return err
}

// Bind implements driver.Mounter. While an earlier mount at the target is not
// over it fails with nfs.ErrBusy.
func (m *MountPool) Bind(ctx context.Context, source, target string, readOnly bool) error {
	m.mu.Lock()
	server, known := m.servers[filepath.Clean(source)]
	m.mu.Unlock()
	if !known {
		var err error
		if _, server, err = m.find(source); err != nil {
			return err
		}
	}
	return m.change(ctx, "Bind", m.keeper(server), target, func(ctx context.Context, c workerpb.MounterClient) error {
		_, err := c.Bind(ctx, &workerpb.BindRequest{Source: source, Target: target, ReadOnly: readOnly})
		return err
	})
}

// change makes a change at the target by the worker of the keeper, which is held.
func (m *MountPool) change(ctx context.Context, method string, k *keeper, target string, do func(context.Context, workerpb.MounterClient) error) error {
	target = filepath.Clean(target)
	m.mu.Lock()
	if m.changes[target] != nil {
		m.mu.Unlock()
		m.release(k)
		return fmt.Errorf("%w: an earlier mount at %s still waits for its server", nfs.ErrBusy, target)
	}
	c := &change{keeper: k}
	m.changes[target] = c
	m.mu.Unlock()

	_, err := call(ctx, k, request[struct{}]{
		method: method,
		proves: true,
		rpc: func(ctx context.Context, p *process) (struct{}, error) {
			m.mu.Lock()
			abandoned := c.abandoned
			c.process = p
			m.mu.Unlock()
			if abandoned {
				return struct{}{}, encodeError(fmt.Errorf("%w: %s is being unmounted", nfs.ErrBusy, target))
			}
			return struct{}{}, do(ctx, workerpb.NewMounterClient(p.conn))
		},
		after: func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			delete(m.changes, target)
		},
	})
	return err
}

// Unmount implements driver.Mounter. A mount at the target that still waits for
// its server is given up first, with its worker, so that nothing appears at the
// target afterwards.
func (m *MountPool) Unmount(ctx context.Context, target string) error {
	m.mu.Lock()
	var process *process
	delete(m.servers, filepath.Clean(target))
	c := m.changes[filepath.Clean(target)]
	if c != nil {
		c.abandoned = true
		process = c.process
	}
	m.mu.Unlock()
	if process != nil {
		c.keeper.drop(process, errors.New("its worker was ended because it still waited for a mount that is not wanted any more"))
		process.waitExited(m.options.StopTimeout)
	}
	return m.host.Unmount(ctx, target)
}

// List implements driver.Mounter.
func (m *MountPool) List() ([]mountutils.MountInfo, error) { return m.host.List() }

// Usage implements driver.Mounter. Callers that ask for one path at the same
// time share one probe.
func (m *MountPool) Usage(ctx context.Context, path string) (nfs.Usage, error) {
	mountPoint, server, err := m.find(path)
	if err != nil {
		return nfs.Usage{}, err
	}
	k := m.keeper(server)
	probe := m.probes.DoChan(mountPoint, func() (any, error) {
		m.hold(k)
		return call(m.ctx, k, request[*workerpb.UsageResponse]{
			method: "Usage",
			proves: true,
			rpc: func(ctx context.Context, p *process) (*workerpb.UsageResponse, error) {
				return workerpb.NewMounterClient(p.conn).Usage(ctx, &workerpb.MountUsageRequest{Path: path})
			},
		})
	})
	defer m.release(k)
	select {
	case result := <-probe:
		if result.Err != nil {
			return nfs.Usage{}, result.Err
		}
		return usageFromPB(result.Val.(*workerpb.UsageResponse)), nil
	case <-ctx.Done():
		return nfs.Usage{}, k.gaveUp(ctx, "Usage")
	}
}

// keeper returns the keeper of the server, held. server is an address or a list
// of addresses; an address shares the keeper of a list that holds it.
func (m *MountPool) keeper(server string) *keeper {
	key := server
	for _, k := range m.all() {
		if slices.Contains(strings.Split(k.key, ","), server) {
			key = k.key
			break
		}
	}
	name := "server " + key
	if key == "" {
		name = "this node"
	}
	return m.use(key, func() *keeper { return &keeper{name: name, label: key} })
}

// find returns the mount point that the path is in, and the NFS server behind
// it, or "" when it is not on NFS. It reads mountinfo only.
func (m *MountPool) find(path string) (mountPoint, server string, err error) {
	mounts, err := m.host.List()
	if err != nil {
		return "", "", fmt.Errorf("find the mount of %s: %w", path, err)
	}
	path = filepath.Clean(path)
	var found *mountutils.MountInfo
	for i, mount := range mounts {
		// Of mounts on one place the last hides the others.
		if contains(mount.MountPoint, path) && (found == nil || len(mount.MountPoint) >= len(found.MountPoint)) {
			found = &mounts[i]
		}
	}
	if found == nil {
		return path, "", nil
	}
	if found.FsType == "nfs" || found.FsType == "nfs4" {
		server = serverOf(found.Source)
	}
	return found.MountPoint, server, nil
}

func contains(mountPoint, path string) bool {
	return mountPoint == "/" || path == mountPoint || strings.HasPrefix(path, mountPoint+"/")
}

// serverOf returns the address in an NFS mount's source, "host:/path" or
// "[IPv6]:/path".
func serverOf(source string) string {
	if rest, ok := strings.CutPrefix(source, "["); ok {
		server, _, _ := strings.Cut(rest, "]:")
		return server
	}
	server, _, _ := strings.Cut(source, ":")
	return server
}
