package driver

import (
	"context"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// TestRestoreArchive: an archive keeps the mode that it has, unless another is asked for.
func TestRestoreArchive(t *testing.T) {
	for mode, want := range map[string]uint32{"": 0, "0": 0, "0770": 0o770} {
		var asked nfs.VolumeSpec
		store := echoStore()
		echo := store.create
		store.create = func(ctx context.Context, s nfs.VolumeSpec) (nfs.Volume, error) { asked = s; return echo(ctx, s) }
		_, err := serve(t, Config{Stores: oneStore(store)}).CreateVolume(t.Context(), createRequest(func(r *csi.CreateVolumeRequest) {
			r.Parameters["restoreArchive"], r.Parameters["mountPermissions"] = "pvc-0", mode
		}))
		if err != nil || asked.RestoreArchive != "pvc-0" || nfs.UnixMode(asked.Mode) != want {
			t.Errorf("mode %q: asked for %+v, %v", mode, asked, err)
		}
	}
}

// TestSharedParameter: the claims of a class have one directory.
func TestSharedParameter(t *testing.T) {
	for value, want := range map[string]bool{"true": true, "True": true, "false": false, "": false} {
		var asked nfs.VolumeSpec
		store := echoStore()
		echo := store.create
		store.create = func(ctx context.Context, s nfs.VolumeSpec) (nfs.Volume, error) { asked = s; return echo(ctx, s) }
		_, err := serve(t, Config{Stores: oneStore(store)}).CreateVolume(t.Context(), createRequest(func(r *csi.CreateVolumeRequest) {
			r.Parameters["shared"], r.Parameters["subDir"] = value, "common"
		}))
		if err != nil || asked.Shared != want || asked.Dir != "common" {
			t.Errorf("shared %q: asked for %+v, %v", value, asked, err)
		}
	}
}
