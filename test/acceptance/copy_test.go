package acceptance

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

// createFrom asks for a volume that is a copy.
func createFrom(ctx context.Context, b *bed, name, server, share string, source *csi.VolumeContentSource) (*csi.Volume, error) {
	var response csi.CreateVolumeResponse
	err := b.controller.Call(ctx, "Controller/CreateVolume", &csi.CreateVolumeRequest{
		Name:                name,
		VolumeCapabilities:  []*csi.VolumeCapability{manyWriters},
		Parameters:          map[string]string{"server": server, "share": share},
		VolumeContentSource: source,
	}, &response)
	return response.Volume, err
}

func fromVolume(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id}}}
}

func fromSnapshot(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id}}}
}

// listTree lists all there is to know of a tree but times of access.
const listTree = `cd "$1" && find . -printf '%P %y %m %U:%G %n %T@ %l\n' | sort && find . -type f -exec md5sum {} + | sort`

// TestCopyAcrossExports: clones and restores work to another export of the same
// server and to another server, and one that cannot be reached fails in time.
func TestCopyAcrossExports(t *testing.T) {
	ctx, b := inLab(t)
	const copies = "/srv/copies"
	second := b.mustStartServer(ctx, t, "second", copies)
	source := b.mustCreate(ctx, t, "across-source", data)
	shell(ctx, t, b.Server.Guest, `cd "$1" && mkdir -m 2751 sub && echo one >sub/file && ln sub/file linked && ln -s nowhere symlink &&
		dd if=/dev/urandom of=sub/large bs=64k count=64 2>/dev/null && truncate -s 3000000 sparse && mkfifo fifo &&
		chown -h 12:34 sub sub/file symlink && chmod 4711 sub/large && touch -h -d '2001-02-03 04:05:06.789' . sub sub/file symlink`, data+"/across-source")
	want := shell(ctx, t, b.Server.Guest, listTree, data+"/across-source")

	var snapshot csi.CreateSnapshotResponse
	eventually(t, time.Minute, func() (string, bool) {
		err := b.controller.Call(ctx, "Controller/CreateSnapshot", &csi.CreateSnapshotRequest{Name: "across-snapshot", SourceVolumeId: source.VolumeId}, &snapshot)
		return fmt.Sprint(snapshot.Snapshot, err), err == nil && snapshot.Snapshot.ReadyToUse
	})
	t.Cleanup(func() {
		err := b.controller.Call(ctx, "Controller/DeleteSnapshot", &csi.DeleteSnapshotRequest{SnapshotId: snapshot.Snapshot.SnapshotId}, &csi.DeleteSnapshotResponse{})
		if err != nil {
			t.Error(err)
		}
	})
	for name, tt := range map[string]struct {
		server *lab.Server
		share  string
		source *csi.VolumeContentSource
	}{
		"across-clone":           {b.Server, odd, fromVolume(source.VolumeId)},
		"across-restore":         {b.Server, odd, fromSnapshot(snapshot.Snapshot.SnapshotId)},
		"across-servers":         {second, copies, fromVolume(source.VolumeId)},
		"across-servers-restore": {second, copies, fromSnapshot(snapshot.Snapshot.SnapshotId)},
	} {
		t.Run(name, func(t *testing.T) {
			var v *csi.Volume
			eventually(t, time.Minute, func() (string, bool) {
				var err error
				v, err = createFrom(ctx, b, name, tt.server.IPv4(), tt.share, tt.source)
				if err != nil && status.Code(err) != codes.Aborted {
					t.Fatal(err)
				}
				return fmt.Sprint(err), err == nil
			})
			if got := shell(ctx, t, tt.server.Guest, listTree, tt.share+"/"+name); got != want {
				t.Errorf("the copy:\n%s\nits source:\n%s", got, want)
			}
			if err := remove(ctx, b.controller, v.VolumeId); err != nil {
				t.Error(err)
			}
		})
	}

	t.Run("source cannot be reached", func(t *testing.T) {
		cut, err := create(ctx, b.controller, "across-cut", second.IPv4(), copies)
		if err != nil {
			t.Fatal(err)
		}
		if err := second.CutNetwork(ctx); err != nil {
			t.Fatal(err)
		}
		// Twice: the second call finds the breaker open.
		for range 2 {
			err := within(t, operationTimeout, "CreateVolume", func() error {
				_, err := createFrom(ctx, b, "across-lost", b.Server.IPv4(), data, fromVolume(cut.VolumeId))
				return err
			})
			wantUnavailable(t, err)
		}
		b.mustCreate(ctx, t, "across-unharmed", data)
		if err := second.RestoreNetwork(ctx); err != nil {
			t.Fatal(err)
		}
		eventually(t, 2*time.Minute, func() (string, bool) {
			v, err := createFrom(ctx, b, "across-lost", b.Server.IPv4(), data, fromVolume(cut.VolumeId))
			if err == nil {
				err = remove(ctx, b.controller, v.VolumeId)
			}
			return fmt.Sprint(err), err == nil
		})
		if err := remove(ctx, b.controller, cut.VolumeId); err != nil {
			t.Error(err)
		}
	})
}
