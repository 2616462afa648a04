package worker

import (
	"time"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/worker/workerpb"
)

func exportToPB(e nfs.Export) *workerpb.Export {
	return &workerpb.Export{Server: e.Server, Share: e.Share, Options: e.Options}
}

func exportFromPB(e *workerpb.Export) nfs.Export {
	return nfs.Export{Server: e.GetServer(), Share: e.GetShare(), Options: e.GetOptions()}
}

func specToPB(s nfs.VolumeSpec) *workerpb.CreateVolumeRequest {
	return &workerpb.CreateVolumeRequest{
		Name:             s.Name,
		Dir:              s.Dir,
		MinBytes:         s.MinBytes,
		MaxBytes:         s.MaxBytes,
		OnDelete:         string(s.OnDelete),
		ArchiveRetention: int64(s.ArchiveRetention),
		Mode:             nfs.UnixMode(s.Mode),
		Uid:              s.UID,
		Gid:              s.GID,
		Claim:            claimToPB(s.Claim),
		RestoreArchive:   s.RestoreArchive,
		Source:           sourceToPB(s.Source),
		Shared:           s.Shared,
	}
}

func specFromPB(s *workerpb.CreateVolumeRequest) nfs.VolumeSpec {
	return nfs.VolumeSpec{
		Name:             s.GetName(),
		Dir:              s.GetDir(),
		MinBytes:         s.GetMinBytes(),
		MaxBytes:         s.GetMaxBytes(),
		OnDelete:         nfs.OnDelete(s.GetOnDelete()),
		ArchiveRetention: time.Duration(s.GetArchiveRetention()),
		Mode:             nfs.FileMode(s.GetMode()),
		UID:              s.Uid,
		GID:              s.Gid,
		Claim:            claimFromPB(s.GetClaim()),
		RestoreArchive:   s.GetRestoreArchive(),
		Source:           sourceFromPB(s.GetSource()),
		Shared:           s.GetShared(),
	}
}

func changeToPB(id string, c nfs.VolumeChange) *workerpb.UpdateVolumeRequest {
	pb := &workerpb.UpdateVolumeRequest{Id: id, MinBytes: c.MinBytes, MaxBytes: c.MaxBytes, Uid: c.UID, Gid: c.GID}
	if c.OnDelete != nil {
		pb.OnDelete = new(string(*c.OnDelete))
	}
	if c.ArchiveRetention != nil {
		pb.ArchiveRetention = new(int64(*c.ArchiveRetention))
	}
	if c.Mode != nil {
		pb.Mode = new(nfs.UnixMode(*c.Mode))
	}
	return pb
}

func changeFromPB(pb *workerpb.UpdateVolumeRequest) nfs.VolumeChange {
	c := nfs.VolumeChange{MinBytes: pb.GetMinBytes(), MaxBytes: pb.GetMaxBytes(), UID: pb.Uid, GID: pb.Gid}
	if pb.OnDelete != nil {
		c.OnDelete = new(nfs.OnDelete(pb.GetOnDelete()))
	}
	if pb.ArchiveRetention != nil {
		c.ArchiveRetention = new(time.Duration(pb.GetArchiveRetention()))
	}
	if pb.Mode != nil {
		c.Mode = new(nfs.FileMode(pb.GetMode()))
	}
	return c
}

func volumeToPB(v nfs.Volume) *workerpb.Volume {
	pb := &workerpb.Volume{
		Id:               v.ID,
		Name:             v.Name,
		Dir:              v.Dir,
		CapacityBytes:    v.CapacityBytes,
		OnDelete:         string(v.OnDelete),
		ArchiveRetention: int64(v.ArchiveRetention),
		Mode:             nfs.UnixMode(v.Mode),
		Uid:              v.UID,
		Gid:              v.GID,
		Claim:            claimToPB(v.Claim),
		RestoredArchive:  v.RestoredArchive,
		RestoredName:     v.RestoredName,
		Source:           sourceToPB(v.Source),
		Shared:           v.Shared,
	}
	pb.CreatedUnixNano = timeToPB(v.Created)
	return pb
}

func volumeFromPB(v *workerpb.Volume) nfs.Volume {
	return nfs.Volume{
		ID:               v.GetId(),
		Name:             v.GetName(),
		Dir:              v.GetDir(),
		CapacityBytes:    v.GetCapacityBytes(),
		OnDelete:         nfs.OnDelete(v.GetOnDelete()),
		ArchiveRetention: time.Duration(v.GetArchiveRetention()),
		Mode:             nfs.FileMode(v.GetMode()),
		UID:              v.Uid,
		GID:              v.Gid,
		Claim:            claimFromPB(v.GetClaim()),
		RestoredArchive:  v.GetRestoredArchive(),
		RestoredName:     v.GetRestoredName(),
		Shared:           v.GetShared(),
		Created:          timeFromPB(v.CreatedUnixNano),
		Source:           sourceFromPB(v.GetSource()),
	}
}

// timeToPB returns nil for the zero time.
func timeToPB(t time.Time) *int64 {
	if t.IsZero() {
		return nil
	}
	return new(t.UnixNano())
}

func timeFromPB(nano *int64) time.Time {
	if nano == nil {
		return time.Time{}
	}
	return time.Unix(0, *nano).UTC()
}

func claimToPB(c nfs.Claim) *workerpb.Claim {
	return &workerpb.Claim{Namespace: c.Namespace, Name: c.Name}
}

func claimFromPB(c *workerpb.Claim) nfs.Claim {
	return nfs.Claim{Namespace: c.GetNamespace(), Name: c.GetName()}
}

func usageToPB(u nfs.Usage) *workerpb.UsageResponse {
	return &workerpb.UsageResponse{
		TotalBytes:      u.TotalBytes,
		AvailableBytes:  u.AvailableBytes,
		UsedBytes:       u.UsedBytes,
		TotalInodes:     u.TotalInodes,
		AvailableInodes: u.AvailableInodes,
		UsedInodes:      u.UsedInodes,
	}
}

func usageFromPB(u *workerpb.UsageResponse) nfs.Usage {
	return nfs.Usage{
		TotalBytes:      u.GetTotalBytes(),
		AvailableBytes:  u.GetAvailableBytes(),
		UsedBytes:       u.GetUsedBytes(),
		TotalInodes:     u.GetTotalInodes(),
		AvailableInodes: u.GetAvailableInodes(),
		UsedInodes:      u.GetUsedInodes(),
	}
}
