package admin

import (
	"time"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/admin/adminpb"
)

func exportToPB(e nfs.Export) *adminpb.Export {
	return &adminpb.Export{Server: e.Server, Share: e.Share, Options: e.Options}
}

func exportFromPB(e *adminpb.Export) nfs.Export {
	return nfs.Export{Server: e.GetServer(), Share: e.GetShare(), Options: e.GetOptions()}
}

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

func itemsToPB(items []nfs.Item) []*adminpb.Item {
	var out []*adminpb.Item
	for _, i := range items {
		out = append(out, &adminpb.Item{
			Kind: string(i.Kind), Key: []byte(i.Key), Path: []byte(i.Path), Volume: volumeToPB(i.Volume),
			Driver: i.Driver, Instance: i.Instance, SinceUnixNano: timeToPB(i.Since), Problem: []byte(i.Problem),
			ExpiresUnixNano: timeToPB(i.Expires), Source: i.Source,
		})
	}
	return out
}

func itemsFromPB(items []*adminpb.Item) []nfs.Item {
	var out []nfs.Item
	for _, i := range items {
		out = append(out, nfs.Item{
			Kind: nfs.ItemKind(i.GetKind()), Key: string(i.GetKey()), Path: string(i.GetPath()), Volume: volumeFromPB(i.GetVolume()),
			Driver: i.GetDriver(), Instance: i.GetInstance(), Since: timeFromPB(i.SinceUnixNano), Problem: string(i.GetProblem()),
			Expires: timeFromPB(i.ExpiresUnixNano), Source: i.GetSource(),
		})
	}
	return out
}

func volumeToPB(v nfs.Volume) *adminpb.Volume {
	return &adminpb.Volume{
		Id: v.ID, Name: v.Name, Dir: v.Dir, CapacityBytes: v.CapacityBytes, OnDelete: string(v.OnDelete),
		Mode: nfs.UnixMode(v.Mode), Uid: v.UID, Gid: v.GID, Claim: claimToPB(v.Claim), CreatedUnixNano: timeToPB(v.Created),
	}
}

func volumeFromPB(v *adminpb.Volume) nfs.Volume {
	return nfs.Volume{
		ID: v.GetId(), Name: v.GetName(), Dir: v.GetDir(), CapacityBytes: v.GetCapacityBytes(), OnDelete: nfs.OnDelete(v.GetOnDelete()),
		Mode: nfs.FileMode(v.GetMode()), UID: v.Uid, GID: v.Gid, Claim: claimFromPB(v.GetClaim()), Created: timeFromPB(v.CreatedUnixNano),
	}
}

func claimToPB(c nfs.Claim) *adminpb.Claim {
	return &adminpb.Claim{Namespace: c.Namespace, Name: c.Name}
}

func claimFromPB(c *adminpb.Claim) nfs.Claim {
	return nfs.Claim{Namespace: c.GetNamespace(), Name: c.GetName()}
}

func taskToPB(export *adminpb.Export, t nfs.Task) *adminpb.RunTaskRequest {
	return &adminpb.RunTaskRequest{
		Export: export, Kind: string(t.Kind), Item: string(t.Item), Key: []byte(t.Key), Name: t.Name, Dir: t.Dir,
		CapacityBytes: t.CapacityBytes, OnDelete: string(t.OnDelete), Claim: claimToPB(t.Claim), Commit: t.Commit,
	}
}

func taskFromPB(t *adminpb.RunTaskRequest) nfs.Task {
	return nfs.Task{
		Kind: nfs.TaskKind(t.GetKind()), Item: nfs.ItemKind(t.GetItem()), Key: string(t.GetKey()), Name: t.GetName(), Dir: t.GetDir(),
		CapacityBytes: t.GetCapacityBytes(), OnDelete: nfs.OnDelete(t.GetOnDelete()), Claim: claimFromPB(t.GetClaim()), Commit: t.GetCommit(),
	}
}
