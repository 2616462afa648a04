package driver

import (
	"context"
	"fmt"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// inFlight knows which volumes and snapshots have an operation running, so that a second one
// is answered with nfs.ErrBusy instead of waiting behind the first.
type inFlight struct {
	mu sync.Mutex
	// held counts the sharers of a key; -1 is one exclusive owner.
	held map[string]int
}

func newInFlight() *inFlight { return &inFlight{held: map[string]int{}} }

// claim is a key that an operation needs while it runs.
type claim struct {
	key    string
	shared bool
}

// acquire takes all claims or none. It returns the key that another operation
// holds, or "" and the function that gives the claims back.
func (f *inFlight) acquire(claims []claim) (release func(), taken string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range claims {
		if n := f.held[c.key]; n < 0 || n > 0 && !c.shared {
			return nil, c.key
		}
	}
	for _, c := range claims {
		if c.shared {
			f.held[c.key]++
		} else {
			f.held[c.key] = -1
		}
	}
	return func() { f.release(claims) }, ""
}

func (f *inFlight) release(claims []claim) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range claims {
		if n := f.held[c.key]; n > 1 {
			f.held[c.key] = n - 1
		} else {
			delete(f.held, c.key)
		}
	}
}

// intercept refuses a call whose volume is busy.
func (f *inFlight) intercept(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	claims := claimsOf(req)
	if len(claims) == 0 {
		return handler(ctx, req)
	}
	release, taken := f.acquire(claims)
	if taken != "" {
		return nil, fmt.Errorf("%w: another operation for %s runs now; it will be tried again", nfs.ErrBusy, taken)
	}
	defer release()
	return handler(ctx, req)
}

// claimsOf says what a call must have for itself. Staging excludes everything
// else on the volume of this node, so that nothing is ever bound from a staging
// path that is being unmounted. Publishing to one path does not wait for
// another path, and unpublishing waits for nothing but its own path: a publish
// that hangs on a dead server must not keep another pod from ending.
func claimsOf(req any) []claim {
	switch r := req.(type) {
	case *csi.CreateVolumeRequest:
		return exclusive("volume " + nfs.RecordID(r.GetName()))
	case *csi.DeleteVolumeRequest:
		return ofHandle(r)
	case *csi.ControllerExpandVolumeRequest:
		return ofHandle(r)
	case *csi.ControllerModifyVolumeRequest:
		return ofHandle(r)
	case *csi.CreateSnapshotRequest:
		return exclusive("snapshot " + nfs.RecordID(r.GetName()))
	case *csi.DeleteSnapshotRequest:
		if h, err := nfs.ParseSnapshotHandle(r.GetSnapshotId()); err == nil {
			return exclusive("snapshot " + h.ID)
		}
	case *csi.NodeStageVolumeRequest:
		return exclusive("volume " + r.GetVolumeId())
	case *csi.NodeUnstageVolumeRequest:
		return exclusive("volume " + r.GetVolumeId())
	case *csi.NodePublishVolumeRequest:
		mode := r.GetVolumeCapability().GetAccessMode().GetMode()
		return []claim{
			{key: "volume " + r.GetVolumeId(), shared: !singleTarget(mode)},
			{key: "target path " + r.GetTargetPath()},
		}
	case *csi.NodeUnpublishVolumeRequest:
		return exclusive("target path " + r.GetTargetPath())
	}
	return nil
}

// ofHandle is the claim of a volume that a request names by its handle.
func ofHandle(r interface{ GetVolumeId() string }) []claim {
	h, err := nfs.ParseHandle(r.GetVolumeId())
	if err != nil {
		return nil
	}
	return exclusive("volume " + h.ID)
}

func exclusive(key string) []claim { return []claim{{key: key}} }
