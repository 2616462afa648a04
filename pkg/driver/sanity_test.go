package driver_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"k8s.io/klog/v2/ktesting"
	mountutils "k8s.io/mount-utils"

	"github.com/nfs-csi/nfs-csi-driver/pkg/driver"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/mount"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/store"
)

// oneExport is a real store on a temporary directory, in the place of an export.
type oneExport struct {
	export nfs.Export
	store  *store.Store

	mu   sync.Mutex
	used bool
}

func (o *oneExport) Open(_ context.Context, export nfs.Export) (driver.Store, error) {
	if !export.Equal(o.export) {
		return nil, nfs.ErrNoExport
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.used = true
	return o.store, nil
}

func (o *oneExport) Exports() []nfs.Export {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.used {
		return nil
	}
	return []nfs.Export{o.export}
}

// fakeMounter makes mount-utils' FakeMounter a driver.Mounter: nothing is
// mounted, but the mount table is kept.
type fakeMounter struct{ *mountutils.FakeMounter }

func (f fakeMounter) Mount(_ context.Context, export nfs.Export, dir, target string, readOnly bool) error {
	return f.FakeMounter.Mount(export.Source(export.Addresses()[0], dir), target, "nfs4", append(access(readOnly), "vers=4.2"))
}

func (f fakeMounter) Bind(_ context.Context, source, target string, readOnly bool) error {
	return f.FakeMounter.Mount(source, target, "nfs4", append(access(readOnly), "bind", "vers=4.2"))
}

func (f fakeMounter) Unmount(_ context.Context, target string) error {
	return f.FakeMounter.Unmount(target)
}

func (f fakeMounter) List() ([]mountutils.MountInfo, error) {
	points, err := f.FakeMounter.List()
	if err != nil {
		return nil, err
	}
	var infos []mountutils.MountInfo
	for _, p := range points {
		// FakeMounter forgets the options of all mounts when it unmounts one.
		options := append(slices.Clone(p.Opts), "vers=4.2")
		infos = append(infos, mountutils.MountInfo{Source: p.Device, MountPoint: p.Path, FsType: p.Type, MountOptions: options, SuperOptions: options})
	}
	return infos, nil
}

func (f fakeMounter) Usage(context.Context, string) (nfs.Usage, error) {
	return nfs.Usage{TotalBytes: 100, AvailableBytes: 60, UsedBytes: 40}, nil
}

func access(readOnly bool) []string {
	if readOnly {
		return []string{"ro"}
	}
	return []string{"rw"}
}

// TestSanity runs csi-sanity, without a spec skipped or focused, against the
// driver with the real store. Specs of capabilities that are not advertised
// skip themselves.
func TestSanity(t *testing.T) {
	logger, ctx := ktesting.NewTestContext(t)
	share := t.TempDir()
	root, err := os.OpenRoot(share)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	s, err := store.Open(ctx, root, store.Options{DriverName: driver.DefaultName, InstanceID: "sanity"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()

	export := nfs.Export{Server: "nfs.example", Share: "/srv/sanity"}
	server := driver.NewServer(driver.Config{
		Name:    driver.DefaultName,
		Version: "test",
		Stores:  &oneExport{export: export, store: s},
		Mounter: fakeMounter{mountutils.NewFakeMounter(nil)},
		Match:   mount.New(mount.Options{}).Match,
		NodeID:  "node",
		Logger:  logger,
	})
	dir := t.TempDir()
	endpoint := "unix://" + filepath.Join(dir, "csi.sock")
	listener, err := driver.Listen(ctx, endpoint)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	defer func() {
		stop()
		select {
		case err := <-served:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Error("the server does not stop")
		}
	}()

	config := sanity.NewTestConfig()
	config.Address = endpoint
	config.TargetPath = filepath.Join(dir, "target")
	config.StagingPath = filepath.Join(dir, "staging")
	config.TestVolumeParameters = map[string]string{"server": export.Server, "share": export.Share}
	config.TestVolumeMutableParameters = map[string]string{"onDelete": "delete", "mountPermissions": "0770"}
	sanity.Test(t, config)

	left, err := s.ListVolumes(ctx, "", 0)
	if err != nil || len(left) > 0 {
		t.Errorf("volumes left after the run: %v, %v", left, err)
	}
	snapshots, err := s.ListSnapshots(ctx, "", "", 0)
	if err != nil || len(snapshots) > 0 {
		t.Errorf("snapshots left after the run: %v, %v", snapshots, err)
	}
}
