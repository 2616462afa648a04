package worker

import (
	"context"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/worker/workerpb"
)

func (s *storeServer) ListArchives(ctx context.Context, req *workerpb.ListArchivesRequest) (*workerpb.ListArchivesResponse, error) {
	b, err := s.opened()
	if err != nil {
		return nil, err
	}
	limit := int(req.GetLimit())
	if limit <= 0 || limit > maxPage {
		limit = maxPage
	}
	archives, err := b.ListArchives(ctx, req.GetAfter(), limit)
	if err != nil {
		return nil, err
	}
	resp := &workerpb.ListArchivesResponse{}
	for _, a := range archives {
		resp.Archives = append(resp.Archives, archiveToPB(a))
	}
	return resp, nil
}

// ListArchives returns up to limit archived volumes (0: all) with ids after the
// given one, in the order of their ids. More may follow when it returned limit.
func (s *Store) ListArchives(ctx context.Context, after string, limit int) ([]nfs.ArchivedVolume, error) {
	var archives []nfs.ArchivedVolume
	for {
		ask := maxPage
		if limit > 0 {
			ask = min(maxPage, limit-len(archives))
		}
		page, err := callStore(ctx, s, "ListArchives", func(ctx context.Context, c workerpb.StoreClient) (*workerpb.ListArchivesResponse, error) {
			return c.ListArchives(ctx, &workerpb.ListArchivesRequest{After: after, Limit: int32(ask)})
		})
		if err != nil {
			return nil, err
		}
		for _, a := range page.GetArchives() {
			archives = append(archives, archiveFromPB(a))
		}
		if len(page.GetArchives()) < ask || len(archives) == limit {
			return archives, nil
		}
		after = archives[len(archives)-1].ID
	}
}

func archiveToPB(a nfs.ArchivedVolume) *workerpb.ArchivedVolume {
	return &workerpb.ArchivedVolume{
		Id:               a.ID,
		Name:             a.Name,
		Dir:              a.Dir,
		Target:           a.Target,
		CapacityBytes:    a.CapacityBytes,
		Claim:            claimToPB(a.Claim),
		ArchivedUnixNano: a.Archived.UnixNano(),
		ExpiresUnixNano:  timeToPB(a.Expires),
	}
}

func archiveFromPB(a *workerpb.ArchivedVolume) nfs.ArchivedVolume {
	return nfs.ArchivedVolume{
		ID:            a.GetId(),
		Name:          a.GetName(),
		Dir:           a.GetDir(),
		Target:        a.GetTarget(),
		CapacityBytes: a.GetCapacityBytes(),
		Claim:         claimFromPB(a.GetClaim()),
		Archived:      timeFromPB(new(a.GetArchivedUnixNano())),
		Expires:       timeFromPB(a.ExpiresUnixNano),
	}
}
