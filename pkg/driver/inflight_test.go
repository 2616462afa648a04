package driver

import (
	"context"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// TestInFlight: each row runs one call and, while that hangs, a second one.
func TestInFlight(t *testing.T) {
	type call func(context.Context, *client) error
	create := func(name string) call {
		return func(ctx context.Context, c *client) error {
			_, err := c.CreateVolume(ctx, createRequest(func(r *csi.CreateVolumeRequest) { r.Name = name }))
			return err
		}
	}
	remove := func(handle string) call {
		return func(ctx context.Context, c *client) error {
			_, err := c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: handle})
			return err
		}
	}
	expand := func(ctx context.Context, c *client) error {
		_, err := c.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: testHandle, CapacityRange: &csi.CapacityRange{RequiredBytes: 1}})
		return err
	}
	modify := func(ctx context.Context, c *client) error {
		_, err := c.ControllerModifyVolume(ctx, &csi.ControllerModifyVolumeRequest{VolumeId: testHandle})
		return err
	}
	get := func(ctx context.Context, c *client) error {
		_, err := c.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: testHandle})
		return err
	}
	snapshot := func(name string) call {
		return func(ctx context.Context, c *client) error {
			_, err := c.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: testHandle})
			return err
		}
	}
	removeSnapshot := func(ctx context.Context, c *client) error {
		_, err := c.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: testSnapshotHandle})
		return err
	}
	for _, tt := range []struct {
		name          string
		first, second call
		busy          bool
	}{
		{"the same create", create("pvc-1"), create("pvc-1"), true},
		{"another create", create("pvc-1"), create("pvc-2"), false},
		{"delete of what is being created", create("pvc-1"), remove(testHandle), true},
		{"the same delete", remove(testHandle), remove(testHandle), true},
		{"delete of another", remove(testHandle), remove("v1:10.0.0.1:/data::pvc-2"), false},
		{"expanding what is being deleted", remove(testHandle), expand, true},
		{"modifying what is being expanded", expand, modify, true},
		{"the same snapshot", snapshot("snap-1"), snapshot("snap-1"), true},
		{"another snapshot", snapshot("snap-1"), snapshot("snap-2"), false},
		{"delete of what is being snapshotted", snapshot("snap-1"), removeSnapshot, true},
		{"a volume with the name of a snapshot", snapshot("snap-1"), create("snap-1"), false},
		{"reading", create("pvc-1"), get, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			entered, goOn := make(chan struct{}), make(chan struct{})
			first := true // Only the first call hangs; entered orders it before the second.
			hang := func() {
				if first {
					first = false
					close(entered)
					<-goOn
				}
			}
			c := serve(t, Config{Stores: oneStore(&fakeStore{
				create: func(context.Context, nfs.VolumeSpec) (nfs.Volume, error) { hang(); return nfs.Volume{}, nil },
				delete: func(context.Context, string, string) error { hang(); return nil },
				update: func(context.Context, string, nfs.VolumeChange) (nfs.Volume, error) { hang(); return nfs.Volume{}, nil },
				get:    func(context.Context, string) (nfs.Volume, error) { return nfs.Volume{}, nil },

				createSnapshot: func(context.Context, string, string) (nfs.Snapshot, error) { hang(); return nfs.Snapshot{}, nil },
				deleteSnapshot: func(context.Context, string) error { hang(); return nil },
			})})
			ended := make(chan error, 1)
			go func() { ended <- tt.first(t.Context(), c) }()
			<-entered
			err := tt.second(t.Context(), c)
			close(goOn)
			if firstErr := <-ended; firstErr != nil {
				t.Errorf("the first call: %v", firstErr)
			}
			if tt.busy {
				wantStatus(t, err, codes.Aborted, "-1 runs now")
				err = tt.second(t.Context(), c)
			}
			if err != nil {
				t.Errorf("the second call: %v", err)
			}
		})
	}
}

// TestNodeClaims says which node calls exclude each other.
func TestNodeClaims(t *testing.T) {
	publish := func(volume, target string, mode accessMode) any {
		return &csi.NodePublishVolumeRequest{VolumeId: volume, TargetPath: target, VolumeCapability: mountCapability(mode)}
	}
	unpublish := func(volume, target string) any {
		return &csi.NodeUnpublishVolumeRequest{VolumeId: volume, TargetPath: target}
	}
	stage := func(volume string) any { return &csi.NodeStageVolumeRequest{VolumeId: volume} }
	unstage := func(volume string) any { return &csi.NodeUnstageVolumeRequest{VolumeId: volume} }
	const single = csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	for _, tt := range []struct {
		name          string
		first, second any
		busy          bool
	}{
		{"stage and stage", stage("v"), stage("v"), true},
		{"stage and unstage", stage("v"), unstage("v"), true},
		{"stage of another volume", stage("v"), stage("w"), false},
		{"publish while staging", stage("v"), publish("v", "/t", multiWriter), true},
		{"unstage while publishing", publish("v", "/t", multiWriter), unstage("v"), true},
		{"publish to the same target", publish("v", "/t", multiWriter), publish("v", "/t", multiWriter), true},
		{"publish to another target", publish("v", "/t", multiWriter), publish("v", "/u", multiWriter), false},
		{"publish to another target, for one writer", publish("v", "/t", single), publish("v", "/u", single), true},
		{"unpublish while publishing there", publish("v", "/t", multiWriter), unpublish("v", "/t"), true},
		{"unpublish while publishing elsewhere", publish("v", "/t", single), unpublish("v", "/u"), false},
		{"unpublish while staging", stage("v"), unpublish("v", "/t"), false},
		{"stats", stage("v"), &csi.NodeGetVolumeStatsRequest{VolumeId: "v"}, false},
	} {
		f := newInFlight()
		release, taken := f.acquire(claimsOf(tt.first))
		if taken != "" {
			t.Errorf("%s: the first finds %s taken", tt.name, taken)
			continue
		}
		second, taken := f.acquire(claimsOf(tt.second))
		if (taken != "") != tt.busy {
			t.Errorf("%s: taken is %q, want busy %v", tt.name, taken, tt.busy)
		}
		if second != nil {
			second()
		}
		release()
		if len(f.held) > 0 {
			t.Errorf("%s: left over: %v", tt.name, f.held)
		}
	}
}
