// Package admin carries what an operator asks of a store over gRPC: from
// "nfs-csi-driver ctl" to the controller, and from there to the worker of the export.
package admin

import (
	"context"
	"errors"

	"google.golang.org/grpc"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/admin/adminpb"
)

// Backend is one export, as an operator works on it; *store.Store is one, with the
// errors that it documents.
type Backend interface {
	// ListItems returns up to limit items (0: all) of the kind with keys after the
	// given one; more may follow when it returned limit.
	ListItems(ctx context.Context, kind nfs.ItemKind, after string, limit int) ([]nfs.Item, error)
	// RunTask begins or joins the task, and answers when it is done or after a second.
	RunTask(ctx context.Context, task nfs.Task) (nfs.TaskState, error)
	// PurgeTrash says what is left in the trash; with retry, all that could not be
	// removed so far is tried again.
	PurgeTrash(ctx context.Context, retry bool) (nfs.TrashState, error)
}

// maxPage keeps an answer of the longest possible items under gRPC's limit of
// 4 MiB; the client asks again for more.
const maxPage = 250

// Server serves backends.
type Server struct {
	adminpb.UnimplementedAdminServer
	// Open returns the backend of an export.
	Open func(context.Context, nfs.Export) (Backend, error)
	// Exports returns those that there are; nil in a worker.
	Exports func() []nfs.Export
	// Driver is the CSI name of the driver.
	Driver string
}

// ListExports implements adminpb.AdminServer.
func (s *Server) ListExports(context.Context, *adminpb.ListExportsRequest) (*adminpb.ListExportsResponse, error) {
	resp := &adminpb.ListExportsResponse{Driver: s.Driver}
	if s.Exports != nil {
		for _, e := range s.Exports() {
			resp.Exports = append(resp.Exports, exportToPB(e))
		}
	}
	return resp, nil
}

// ListItems implements adminpb.AdminServer.
func (s *Server) ListItems(ctx context.Context, req *adminpb.ListItemsRequest) (*adminpb.ListItemsResponse, error) {
	b, err := s.Open(ctx, exportFromPB(req.GetExport()))
	if err != nil {
		return nil, err
	}
	limit := int(req.GetLimit())
	if limit <= 0 || limit > maxPage {
		limit = maxPage
	}
	items, err := b.ListItems(ctx, nfs.ItemKind(req.GetKind()), string(req.GetAfter()), limit)
	if err != nil {
		return nil, err
	}
	return &adminpb.ListItemsResponse{Items: itemsToPB(items)}, nil
}

// RunTask implements adminpb.AdminServer.
func (s *Server) RunTask(ctx context.Context, req *adminpb.RunTaskRequest) (*adminpb.TaskState, error) {
	b, err := s.Open(ctx, exportFromPB(req.GetExport()))
	if err != nil {
		return nil, err
	}
	state, err := b.RunTask(ctx, taskFromPB(req))
	if err != nil {
		return nil, err
	}
	return &adminpb.TaskState{Done: state.Done, Seen: state.Seen, Bytes: state.Bytes, Denied: state.Denied, Items: itemsToPB(state.Items), More: state.More}, nil
}

// PurgeTrash implements adminpb.AdminServer.
func (s *Server) PurgeTrash(ctx context.Context, req *adminpb.PurgeTrashRequest) (*adminpb.TrashState, error) {
	b, err := s.Open(ctx, exportFromPB(req.GetExport()))
	if err != nil {
		return nil, err
	}
	state, err := b.PurgeTrash(ctx, req.GetRetry())
	if err != nil {
		return nil, err
	}
	return &adminpb.TrashState{
		Entries: int64(state.Entries), Failing: int64(state.Failing), Settled: state.Settled, Removed: state.Removed,
		OldestUnixNano: timeToPB(state.Oldest),
	}, nil
}

// Client is a Backend behind a connection to a Server. Errors are those of gRPC.
type Client struct {
	admin  adminpb.AdminClient
	export *adminpb.Export
}

// NewClient returns the client for one export of the server; a worker has only one,
// whatever the export.
func NewClient(conn grpc.ClientConnInterface, export nfs.Export) *Client {
	return &Client{admin: adminpb.NewAdminClient(conn), export: exportToPB(export)}
}

// ListExports returns the exports that a controller knows, and its driver's name.
func ListExports(ctx context.Context, conn grpc.ClientConnInterface) (exports []nfs.Export, driver string, err error) {
	resp, err := adminpb.NewAdminClient(conn).ListExports(ctx, &adminpb.ListExportsRequest{})
	if err != nil {
		return nil, "", err
	}
	for _, e := range resp.GetExports() {
		exports = append(exports, exportFromPB(e))
	}
	return exports, resp.GetDriver(), nil
}

// ListItems implements Backend; it returns 250 at most, whatever the limit.
func (c *Client) ListItems(ctx context.Context, kind nfs.ItemKind, after string, limit int) ([]nfs.Item, error) {
	resp, err := c.admin.ListItems(ctx, &adminpb.ListItemsRequest{Export: c.export, Kind: string(kind), After: []byte(after), Limit: int32(min(max(limit, 0), maxPage))})
	if err != nil {
		return nil, err
	}
	return itemsFromPB(resp.GetItems()), nil
}

// RunTask implements Backend.
func (c *Client) RunTask(ctx context.Context, task nfs.Task) (nfs.TaskState, error) {
	resp, err := c.admin.RunTask(ctx, taskToPB(c.export, task))
	if err != nil {
		return nfs.TaskState{}, err
	}
	return nfs.TaskState{Done: resp.GetDone(), Seen: resp.GetSeen(), Bytes: resp.GetBytes(), Denied: resp.GetDenied(), Items: itemsFromPB(resp.GetItems()), More: resp.GetMore()}, nil
}

// PurgeTrash implements Backend.
func (c *Client) PurgeTrash(ctx context.Context, retry bool) (nfs.TrashState, error) {
	resp, err := c.admin.PurgeTrash(ctx, &adminpb.PurgeTrashRequest{Export: c.export, Retry: retry})
	if err != nil {
		return nfs.TrashState{}, err
	}
	return nfs.TrashState{
		Entries: int(resp.GetEntries()), Failing: int(resp.GetFailing()), Settled: resp.GetSettled(), Removed: resp.GetRemoved(),
		Oldest: timeFromPB(resp.OldestUnixNano),
	}, nil
}

// AllItems returns every item of the kind, page by page.
func AllItems(ctx context.Context, b Backend, kind nfs.ItemKind) ([]nfs.Item, error) {
	var items []nfs.Item
	after := ""
	for {
		page, err := b.ListItems(ctx, kind, after, maxPage)
		if err != nil {
			return nil, err
		}
		items = append(items, page...)
		if len(page) < maxPage {
			return items, nil
		}
		last := page[len(page)-1].Key
		if last <= after {
			return nil, errors.New("the pages of a listing are out of order")
		}
		after = last
	}
}
