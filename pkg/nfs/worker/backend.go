package worker

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/admin"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/worker/workerpb"
)

// Backends are what a worker process serves.
type Backends struct {
	// Prepare, if set, is called before anything is served.
	Prepare func() error
	// OpenStore opens the store of an export. It is called once in a process,
	// and may change the process for good: mounts, capabilities, umask.
	OpenStore func(context.Context, StoreConfig) (Backend, error)
	// Mounter serves the node.
	Mounter Mounter
}

// StoreConfig is what a store is opened with.
type StoreConfig struct {
	Export nfs.Export
	// Origin is another export that volumes are copied from; the zero value for none.
	Origin nfs.Export
	// DriverName and InstanceID say whose volumes these are.
	DriverName, InstanceID string
	// PurgeConcurrency is how many files of the trash are unlinked at a time.
	PurgeConcurrency int
	// PurgeRate is how many are unlinked per second at most; 0 means no limit.
	PurgeRate int
	// CopyWait is how long a create waits for a copy before it fails with ErrBusy.
	CopyWait time.Duration
}

// Backend is the store of one export, as the worker process has it. The methods
// are those of driver.Store.
type Backend interface {
	CreateVolume(ctx context.Context, spec nfs.VolumeSpec) (nfs.Volume, error)
	GetVolume(ctx context.Context, id string) (nfs.Volume, error)
	ListVolumes(ctx context.Context, after string, limit int) ([]nfs.Volume, error)
	UpdateVolume(ctx context.Context, id string, change nfs.VolumeChange) (nfs.Volume, error)
	DeleteVolume(ctx context.Context, id, dir string) error
	CreateSnapshot(ctx context.Context, name, volumeID string) (nfs.Snapshot, error)
	GetSnapshot(ctx context.Context, id string) (nfs.Snapshot, error)
	ListSnapshots(ctx context.Context, volumeID, after string, limit int) ([]nfs.Snapshot, error)
	DeleteSnapshot(ctx context.Context, id string) error
	Usage(ctx context.Context) (nfs.Usage, error)
	// Status answers from memory.
	Status() Status

	admin.Backend
}

// Status is the state of a store.
type Status struct {
	// TrashBacklog is the number of deleted volumes that wait to be unlinked,
	// and TrashFailing how many of them could not be so far.
	TrashBacklog, TrashFailing int64
	// TrashSettled is set when the store has read its trash and looked for unfinished
	// copies, and nothing is left to do.
	TrashSettled bool
	// TrashOldest is when the first of the backlog was deleted; zero without any.
	TrashOldest time.Time
	// Purged is the number of files and directories unlinked since the store was opened.
	Purged int64
	// SkippedRecords counts the records that listings left out as unreadable.
	SkippedRecords int64
	// Archives is the number of archived volumes, as last seen, ArchivesExpired how
	// many went to the trash since the store was opened, and NextExpiry when the next
	// will; zero for never.
	Archives, ArchivesExpired int64
	NextExpiry                time.Time
	// Copies is the number of snapshots and clones being copied, or waiting for it.
	Copies int64
	// CopiesFailed, CopiedFiles and CopiedBytes count since the store was opened: the
	// copies given up, and what has been copied.
	CopiesFailed, CopiedFiles, CopiedBytes int64
	// Quota is set where a volume cannot grow beyond its capacity.
	Quota bool
}

// workWaits reports whether the worker has something to do without a caller, or
// does not know yet.
func (s Status) workWaits() bool { return s.TrashBacklog > 0 || s.Copies > 0 || !s.TrashSettled }

// Mounter is the part of driver.Mounter that may wait for a server.
type Mounter interface {
	Mount(ctx context.Context, export nfs.Export, dir, target string, readOnly bool) error
	Bind(ctx context.Context, source, target string, readOnly bool) error
	Usage(ctx context.Context, path string) (nfs.Usage, error)
}

var (
	errOpenedTwice = errors.New("the store of this worker was opened before")
	errNotOpen     = errors.New("the store of this worker is not open")
)

// storeServer serves the Backend to the pool.
type storeServer struct {
	workerpb.UnimplementedStoreServer
	openStore func(context.Context, StoreConfig) (Backend, error)

	mu      sync.Mutex
	opening bool
	backend Backend
}

func (s *storeServer) Open(ctx context.Context, req *workerpb.OpenRequest) (*workerpb.StatusResponse, error) {
	s.mu.Lock()
	again := s.opening
	s.opening = true
	s.mu.Unlock()
	if again {
		return nil, errOpenedTwice
	}
	backend, err := s.openStore(ctx, StoreConfig{
		Export:           exportFromPB(req.GetExport()),
		Origin:           exportFromPB(req.GetOrigin()),
		DriverName:       req.GetDriverName(),
		InstanceID:       req.GetInstanceId(),
		PurgeConcurrency: int(req.GetPurgeConcurrency()),
		PurgeRate:        int(req.GetPurgeRate()),
		CopyWait:         time.Duration(req.GetCopyWaitNano()),
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.backend = backend
	s.mu.Unlock()
	return statusToPB(backend.Status()), nil
}

func (s *storeServer) opened() (Backend, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.backend == nil {
		return nil, errNotOpen
	}
	return s.backend, nil
}

func (s *storeServer) CreateVolume(ctx context.Context, req *workerpb.CreateVolumeRequest) (*workerpb.Volume, error) {
	b, err := s.opened()
	if err != nil {
		return nil, err
	}
	v, err := b.CreateVolume(ctx, specFromPB(req))
	if err != nil {
		return nil, err
	}
	return volumeToPB(v), nil
}

func (s *storeServer) GetVolume(ctx context.Context, req *workerpb.GetVolumeRequest) (*workerpb.Volume, error) {
	b, err := s.opened()
	if err != nil {
		return nil, err
	}
	v, err := b.GetVolume(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	return volumeToPB(v), nil
}

// maxPage keeps an answer of the longest possible volumes under gRPC's limit of
// 4 MiB; the client asks again for more.
const maxPage = 500

func (s *storeServer) ListVolumes(ctx context.Context, req *workerpb.ListVolumesRequest) (*workerpb.ListVolumesResponse, error) {
	b, err := s.opened()
	if err != nil {
		return nil, err
	}
	limit := int(req.GetLimit())
	if limit <= 0 || limit > maxPage {
		limit = maxPage
	}
	volumes, err := b.ListVolumes(ctx, req.GetAfter(), limit)
	if err != nil {
		return nil, err
	}
	resp := &workerpb.ListVolumesResponse{}
	for _, v := range volumes {
		resp.Volumes = append(resp.Volumes, volumeToPB(v))
	}
	return resp, nil
}

func (s *storeServer) UpdateVolume(ctx context.Context, req *workerpb.UpdateVolumeRequest) (*workerpb.Volume, error) {
	b, err := s.opened()
	if err != nil {
		return nil, err
	}
	v, err := b.UpdateVolume(ctx, req.GetId(), changeFromPB(req))
	if err != nil {
		return nil, err
	}
	return volumeToPB(v), nil
}

func (s *storeServer) DeleteVolume(ctx context.Context, req *workerpb.DeleteVolumeRequest) (*workerpb.Empty, error) {
	b, err := s.opened()
	if err != nil {
		return nil, err
	}
	return empty(b.DeleteVolume(ctx, req.GetId(), req.GetDir()))
}

func (s *storeServer) Usage(ctx context.Context, _ *workerpb.Empty) (*workerpb.UsageResponse, error) {
	b, err := s.opened()
	if err != nil {
		return nil, err
	}
	u, err := b.Usage(ctx)
	if err != nil {
		return nil, err
	}
	return usageToPB(u), nil
}

func (s *storeServer) Status(context.Context, *workerpb.Empty) (*workerpb.StatusResponse, error) {
	b, err := s.opened()
	if err != nil {
		return nil, err
	}
	return statusToPB(b.Status()), nil
}

// mountServer serves the Mounter to the pool.
type mountServer struct {
	workerpb.UnimplementedMounterServer
	mounter Mounter
}

func (s *mountServer) Mount(ctx context.Context, req *workerpb.MountRequest) (*workerpb.Empty, error) {
	return empty(s.mounter.Mount(ctx, exportFromPB(req.GetExport()), req.GetDir(), req.GetTarget(), req.GetReadOnly()))
}

func (s *mountServer) Bind(ctx context.Context, req *workerpb.BindRequest) (*workerpb.Empty, error) {
	return empty(s.mounter.Bind(ctx, req.GetSource(), req.GetTarget(), req.GetReadOnly()))
}

func (s *mountServer) Usage(ctx context.Context, req *workerpb.MountUsageRequest) (*workerpb.UsageResponse, error) {
	u, err := s.mounter.Usage(ctx, req.GetPath())
	if err != nil {
		return nil, err
	}
	return usageToPB(u), nil
}

func empty(err error) (*workerpb.Empty, error) {
	if err != nil {
		return nil, err
	}
	return &workerpb.Empty{}, nil
}

func statusToPB(s Status) *workerpb.StatusResponse {
	return &workerpb.StatusResponse{
		TrashBacklog:       s.TrashBacklog,
		TrashFailing:       s.TrashFailing,
		TrashSettled:       s.TrashSettled,
		Purged:             s.Purged,
		SkippedRecords:     s.SkippedRecords,
		Archives:           s.Archives,
		ArchivesExpired:    s.ArchivesExpired,
		NextExpiryUnixNano: timeToPB(s.NextExpiry),
		Quota:              s.Quota,

		TrashOldestUnixNano: timeToPB(s.TrashOldest),
		Copies:              s.Copies,
		CopiesFailed:        s.CopiesFailed,
		CopiedFiles:         s.CopiedFiles,
		CopiedBytes:         s.CopiedBytes,
	}
}

func statusFromPB(s *workerpb.StatusResponse) Status {
	if s == nil {
		return Status{}
	}
	return Status{
		TrashBacklog:    s.GetTrashBacklog(),
		TrashFailing:    s.GetTrashFailing(),
		TrashSettled:    s.GetTrashSettled(),
		Purged:          s.GetPurged(),
		SkippedRecords:  s.GetSkippedRecords(),
		Archives:        s.GetArchives(),
		ArchivesExpired: s.GetArchivesExpired(),
		NextExpiry:      timeFromPB(s.NextExpiryUnixNano),
		Quota:           s.GetQuota(),

		TrashOldest:  timeFromPB(s.TrashOldestUnixNano),
		Copies:       s.GetCopies(),
		CopiesFailed: s.GetCopiesFailed(),
		CopiedFiles:  s.GetCopiedFiles(),
		CopiedBytes:  s.GetCopiedBytes(),
	}
}
