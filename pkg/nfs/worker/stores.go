package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/worker/workerpb"
)

const (
	kindStore = "store"
	kindMount = "mount"
)

// maxCopyWait is how long a create waits for a copy at most. It leaves a caller that
// waits ten seconds, as external-provisioner does, time for the rest.
const maxCopyWait = 5 * time.Second

// StorePool runs one store worker for each export that is in use. But for the
// return type of Open, it is a driver.Stores. It is also a prometheus.Collector.
type StorePool struct {
	*pool
	options StoreOptions
}

// NewStorePool returns a pool that lives until Close; it logs to the logger of
// ctx, and ends all its work when ctx ends.
func NewStorePool(ctx context.Context, options StoreOptions) (*StorePool, error) {
	if err := options.Validate(); err != nil {
		return nil, err
	}
	p := &StorePool{pool: newPool(ctx, kindStore, options.Options), options: options}
	for _, export := range options.Exports {
		k := p.keeper(export, true)
		k.mu.Lock()
		// It stays mounted for the first caller.
		k.known, k.lastUse = true, time.Now()
		k.mu.Unlock()
		p.release(k)
	}
	return p, nil
}

// KnowClassExports replaces the exports that StorageClasses name. What waits in
// the trash of a new one is purged without anybody asking. It is listed from
// then on that it could be opened, so that a class with a mistake in it does not
// fail every listing.
func (p *StorePool) KnowClassExports(exports []nfs.Export) {
	p.know(exports, func(k *keeper) *bool { return &k.class })
}

// KnowVolumeExports replaces the exports that existing volumes are on. They are
// purged as those of KnowClassExports are, and listed in any case.
func (p *StorePool) KnowVolumeExports(exports []nfs.Export) {
	p.know(exports, func(k *keeper) *bool { return &k.volume })
}

func (p *StorePool) know(exports []nfs.Export, mark func(*keeper) *bool) {
	keys := map[string]bool{}
	for _, export := range exports {
		keys[export.Key()] = true
		k := p.keeper(export, true)
		k.mu.Lock()
		*mark(k) = true
		k.wanted = k.wanted || !k.opened
		k.mu.Unlock()
		p.release(k)
	}
	for _, k := range p.all() {
		if !keys[k.key] {
			k.mu.Lock()
			*mark(k) = false
			k.mu.Unlock()
		}
	}
}

// Open returns the store of the export; its worker is started if need be.
//
// Errors: nfs.ErrInvalid for mount options that the kernel refuses,
// nfs.ErrPermission, nfs.ErrNoExport, and nfs.ErrUnavailable when the server does
// not answer in time or did not a moment ago.
func (p *StorePool) Open(ctx context.Context, export nfs.Export) (*Store, error) {
	store := &Store{pool: p, export: export}
	k := p.keeper(export, false)
	if k.used() {
		p.release(k)
		return store, nil
	}
	_, err := call(ctx, k, request[struct{}]{
		method: "Open",
		rpc:    func(context.Context, *process) (struct{}, error) { return struct{}{}, nil },
	})
	if err != nil {
		return nil, err
	}
	return store, nil
}

// Exports returns the exports configured, those opened for a caller since the
// start, and those that KnowVolumeExports and KnowClassExports tell of, in the
// order of their keys.
func (p *StorePool) Exports() []nfs.Export {
	var exports []nfs.Export
	for _, k := range p.all() {
		k.mu.Lock()
		if k.known || k.volume || k.class && k.opened {
			exports = append(exports, k.export)
		}
		k.mu.Unlock()
	}
	return exports
}

// keeper returns the keeper of the export, held. A new one opens the export by
// itself when that is wanted: only a look shows whether work waits there.
func (p *StorePool) keeper(export nfs.Export, wanted bool) *keeper {
	return p.use(export.Key(), func() *keeper {
		k := p.newKeeper(&workerpb.OpenRequest{Export: exportToPB(export)})
		k.name, k.label = export.String(), strings.TrimSpace(export.Key())
		k.export, k.wanted = export, wanted
		return k
	})
}

// copyKeeper returns the keeper, held, of a second worker for the export, which
// copies to it from another and goes when it is idle.
func (p *StorePool) copyKeeper(export, origin nfs.Export) *keeper {
	// No export has a NUL in it.
	return p.use(export.Key()+"\x00"+origin.Key(), func() *keeper {
		k := p.newKeeper(&workerpb.OpenRequest{Export: exportToPB(export), Origin: exportToPB(origin)})
		k.name = fmt.Sprintf("%s (copying from %s)", export, origin)
		k.label = strings.TrimSpace(export.Key()) + " from " + strings.TrimSpace(origin.Key())
		return k
	})
}

// newKeeper returns a keeper whose workers open a store that way.
func (p *StorePool) newKeeper(how *workerpb.OpenRequest) *keeper {
	how.DriverName, how.InstanceId = p.options.DriverName, p.options.InstanceID
	how.PurgeConcurrency, how.PurgeRate = int32(p.options.PurgeConcurrency), int32(p.options.PurgeRate)
	how.CopyWaitNano = int64(min(maxCopyWait, p.pool.options.CallTimeout/3))
	return &keeper{
		open: func(ctx context.Context, process *process) (Status, error) {
			s, err := workerpb.NewStoreClient(process.conn).Open(ctx, how)
			return statusFromPB(s), err
		},
		status: func(ctx context.Context, process *process) (Status, error) {
			s, err := workerpb.NewStoreClient(process.conn).Status(ctx, &workerpb.Empty{})
			return statusFromPB(s), err
		},
	}
}

// Store is the store of one export, reached through the pool. It stays good when
// its worker is replaced. Errors are those of driver.Store; every method fails
// with nfs.ErrUnavailable when the server does not answer in time or did not a
// moment ago.
type Store struct {
	pool   *StorePool
	export nfs.Export
}

func callStore[T any](ctx context.Context, s *Store, method string, rpc func(context.Context, workerpb.StoreClient) (T, error)) (T, error) {
	return callKeeper(ctx, s.pool.keeper(s.export, false), method, rpc)
}

// callKeeper gives up the caller's hold on the keeper.
func callKeeper[T any](ctx context.Context, k *keeper, method string, rpc func(context.Context, workerpb.StoreClient) (T, error)) (T, error) {
	return call(ctx, k, request[T]{
		method: method,
		proves: true,
		rpc: func(ctx context.Context, p *process) (T, error) {
			return rpc(ctx, workerpb.NewStoreClient(p.conn))
		},
	})
}

// CreateVolume implements driver.Store. A volume with a source on another export is
// made by a worker that mounts both, unless it is there already.
func (s *Store) CreateVolume(ctx context.Context, spec nfs.VolumeSpec) (nfs.Volume, error) {
	k, err := s.creator(ctx, spec)
	if err != nil {
		return nfs.Volume{}, err
	}
	v, err := callKeeper(ctx, k, "CreateVolume", func(ctx context.Context, c workerpb.StoreClient) (*workerpb.Volume, error) {
		return c.CreateVolume(ctx, specToPB(spec))
	})
	if err != nil {
		return nfs.Volume{}, err
	}
	return volumeFromPB(v), nil
}

// creator returns the keeper, held, whose worker is to make the volume.
func (s *Store) creator(ctx context.Context, spec nfs.VolumeSpec) (*keeper, error) {
	if origin := spec.Source.Export; origin.Server != "" {
		// What is there needs no source, which may be gone by now.
		_, err := s.GetVolume(ctx, nfs.RecordID(spec.Name))
		if errors.Is(err, nfs.ErrNotFound) {
			return s.pool.copyKeeper(s.export, origin), nil
		}
		if err != nil {
			return nil, err
		}
	}
	return s.pool.keeper(s.export, false), nil
}

// GetVolume implements driver.Store.
func (s *Store) GetVolume(ctx context.Context, id string) (nfs.Volume, error) {
	v, err := callStore(ctx, s, "GetVolume", func(ctx context.Context, c workerpb.StoreClient) (*workerpb.Volume, error) {
		return c.GetVolume(ctx, &workerpb.GetVolumeRequest{Id: id})
	})
	if err != nil {
		return nfs.Volume{}, err
	}
	return volumeFromPB(v), nil
}

// ListVolumes implements driver.Store.
func (s *Store) ListVolumes(ctx context.Context, after string, limit int) ([]nfs.Volume, error) {
	var volumes []nfs.Volume
	for {
		ask := maxPage
		if limit > 0 {
			ask = min(maxPage, limit-len(volumes))
		}
		page, err := callStore(ctx, s, "ListVolumes", func(ctx context.Context, c workerpb.StoreClient) (*workerpb.ListVolumesResponse, error) {
			return c.ListVolumes(ctx, &workerpb.ListVolumesRequest{After: after, Limit: int32(ask)})
		})
		if err != nil {
			return nil, err
		}
		for _, v := range page.GetVolumes() {
			volumes = append(volumes, volumeFromPB(v))
		}
		if len(page.GetVolumes()) < ask || len(volumes) == limit {
			return volumes, nil
		}
		after = volumes[len(volumes)-1].ID
	}
}

// UpdateVolume implements driver.Store.
func (s *Store) UpdateVolume(ctx context.Context, id string, change nfs.VolumeChange) (nfs.Volume, error) {
	v, err := callStore(ctx, s, "UpdateVolume", func(ctx context.Context, c workerpb.StoreClient) (*workerpb.Volume, error) {
		return c.UpdateVolume(ctx, changeToPB(id, change))
	})
	if err != nil {
		return nfs.Volume{}, err
	}
	return volumeFromPB(v), nil
}

// DeleteVolume implements driver.Store.
func (s *Store) DeleteVolume(ctx context.Context, id, dir string) error {
	_, err := callStore(ctx, s, "DeleteVolume", func(ctx context.Context, c workerpb.StoreClient) (*workerpb.Empty, error) {
		return c.DeleteVolume(ctx, &workerpb.DeleteVolumeRequest{Id: id, Dir: dir})
	})
	return err
}

// Usage implements driver.Store.
func (s *Store) Usage(ctx context.Context) (nfs.Usage, error) {
	u, err := callStore(ctx, s, "Usage", func(ctx context.Context, c workerpb.StoreClient) (*workerpb.UsageResponse, error) {
		return c.Usage(ctx, &workerpb.Empty{})
	})
	if err != nil {
		return nfs.Usage{}, err
	}
	return usageFromPB(u), nil
}
