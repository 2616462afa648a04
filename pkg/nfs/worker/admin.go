package worker

import (
	"context"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/admin"
)

// admin is the one backend of a worker, whatever the export.
func (s *storeServer) admin(context.Context, nfs.Export) (admin.Backend, error) {
	b, err := s.opened()
	if err != nil {
		return nil, err
	}
	return b, nil
}

func callAdmin[T any](ctx context.Context, s *Store, method string, rpc func(context.Context, admin.Backend) (T, error)) (T, error) {
	return call(ctx, s.pool.keeper(s.export, false), request[T]{
		method: method,
		proves: true,
		rpc: func(ctx context.Context, p *process) (T, error) {
			return rpc(ctx, admin.NewClient(p.conn, s.export))
		},
	})
}

// ListItems implements admin.Backend.
func (s *Store) ListItems(ctx context.Context, kind nfs.ItemKind, after string, limit int) ([]nfs.Item, error) {
	return callAdmin(ctx, s, "ListItems", func(ctx context.Context, b admin.Backend) ([]nfs.Item, error) {
		return b.ListItems(ctx, kind, after, limit)
	})
}

// RunTask implements admin.Backend.
func (s *Store) RunTask(ctx context.Context, task nfs.Task) (nfs.TaskState, error) {
	return callAdmin(ctx, s, "RunTask", func(ctx context.Context, b admin.Backend) (nfs.TaskState, error) {
		return b.RunTask(ctx, task)
	})
}

// PurgeTrash implements admin.Backend.
func (s *Store) PurgeTrash(ctx context.Context, retry bool) (nfs.TrashState, error) {
	return callAdmin(ctx, s, "PurgeTrash", func(ctx context.Context, b admin.Backend) (nfs.TrashState, error) {
		return b.PurgeTrash(ctx, retry)
	})
}
