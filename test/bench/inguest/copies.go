package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nfs-csi/nfs-csi-driver/test/bench/report"
)

// What makeSources leaves on each share, to become the content of volumes.
const (
	treeName = "tree" // 10,000 files of 4 KiB
	bigName  = "big"  // a file of 1 GiB
)

// makeSources makes what is copied, the large file only where asked to. It runs on the
// server, where that takes seconds.
func makeSources(share string, large bool) error {
	content := []byte(strings.Repeat("0123456789abcdef", 4<<10/16))
	for d := range 100 {
		dir := filepath.Join(share, treeName, fmt.Sprint(d))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for f := range 100 {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(f)), content, 0o644); err != nil {
				return err
			}
		}
	}
	// What is written back later would be measured as if it were the copies.
	defer unix.Sync()
	if !large {
		return nil
	}
	big, err := os.Create(filepath.Join(share, bigName))
	if err != nil {
		return err
	}
	defer big.Close()
	chunk := slices.Repeat(content, 256) // 1 MiB
	for range 1 << 10 {
		if _, err := big.Write(chunk); err != nil {
			return err
		}
	}
	return big.Close()
}

// copies compares what copies with the tools that others use, and with the server's
// own clone of a file, each on a mount of the same export from the same guest.
func (b *bench) copies(ctx context.Context) error {
	controller, err := b.start(ctx, "controller")
	if err != nil {
		return err
	}
	for _, e := range []struct {
		name, share string
	}{{"XFS", b.share}, {"ext4", b.ext4}} {
		controller.share = e.share
		if err := b.bareMount(e.share, bareDir); err != nil {
			return err
		}
		if e.share == b.share {
			if err := b.copyBig(ctx, controller); err != nil {
				return fmt.Errorf("1 GiB on %s: %w", e.name, err)
			}
		}
		if err := b.copyTree(ctx, controller, e.name); err != nil {
			return fmt.Errorf("10,000 files on %s: %w", e.name, err)
		}
		if err := unix.Unmount(bareDir, 0); err != nil {
			return err
		}
	}
	most, err := workerBytes(controller)
	if err != nil {
		return err
	}
	b.row("resident memory of a worker after copies", "MiB", 0, float64(most)/(1<<20), 24, "<= 24 MiB")
	return controller.stop(ctx)
}

// copyTree copies many small files. Nothing is removed meanwhile: the driver would
// still be at it while the next copy is measured.
func (b *bench) copyTree(ctx context.Context, controller *process, on string) error {
	source, err := b.sourceVolume(ctx, controller, treeName)
	if err != nil {
		return err
	}
	at := filepath.Join(bareDir, source)
	archive := filepath.Join(bareDir, "bare.tar")
	cp, err := b.cold("cp -a", func() error { return run(ctx, "cp", "-a", at, filepath.Join(bareDir, "bare-cp")) })
	if err != nil {
		return err
	}
	// The one row with a bound: a disk of the host's that pauses must not decide it.
	var clones []float64
	for i := range 3 {
		took, err := b.cold("clone", func() error {
			return controller.clone(ctx, fmt.Sprintf("clone-%d-%s", i, source), fromVolume(controller.volumes[source]))
		})
		if err != nil {
			return err
		}
		clones = append(clones, took)
	}
	slices.Sort(clones)
	clone := clones[1]
	pack, err := b.cold("tar -cf", func() error { return run(ctx, "tar", "-cf", archive, "-C", at, ".") })
	if err != nil {
		return err
	}
	var snapshot *csi.Snapshot
	taken, err := b.cold("snapshot", func() (err error) {
		snapshot, err = controller.snapshot(ctx, "snapshot-"+source, controller.volumes[source])
		return err
	})
	if err != nil {
		return err
	}
	unpacked := filepath.Join(bareDir, "bare-untar")
	if err := os.Mkdir(unpacked, 0o755); err != nil {
		return err
	}
	unpack, err := b.cold("tar -xf", func() error { return run(ctx, "tar", "-xf", archive, "-C", unpacked) })
	if err != nil {
		return err
	}
	restore, err := b.cold("restore", func() error { return controller.clone(ctx, "restore-"+source, fromSnapshot(snapshot)) })
	if err != nil {
		return err
	}
	b.row("clone of 10,000 files, p50, "+on, "s", cp, clone, 0.6*cp, "<= 0.6x cp -a")
	b.comparison("snapshot of 10,000 files, "+on, "s", cp, taken, "cp -a")
	b.comparison("snapshot of 10,000 files, "+on, "s", pack, taken, "tar -cf")
	b.comparison("restore of 10,000 files, "+on, "s", cp, restore, "cp -a")
	b.comparison("restore of 10,000 files, "+on, "s", unpack, restore, "tar -xf")
	return nil
}

// copyBig clones one large file where the server can.
func (b *bench) copyBig(ctx context.Context, controller *process) error {
	source, err := b.sourceVolume(ctx, controller, bigName)
	if err != nil {
		return err
	}
	bare, err := b.series(few, func(i int) error {
		return cloneFile(filepath.Join(bareDir, source, bigName), filepath.Join(bareDir, fmt.Sprintf("bare-%s-%d", bigName, i)))
	})
	if err != nil {
		return err
	}
	cp, err := b.series(few, func(i int) error {
		return run(ctx, "cp", "--reflink=always", filepath.Join(bareDir, source, bigName), filepath.Join(bareDir, fmt.Sprintf("cp-%s-%d", bigName, i)))
	})
	if err != nil {
		return err
	}
	clone, err := b.series(few, func(i int) error {
		return controller.clone(ctx, fmt.Sprintf("clone-%s-%d", source, i), fromVolume(controller.volumes[source]))
	})
	if err != nil {
		return err
	}
	// The ioctl alone is four calls, a third of what the least volume takes: no volume
	// can be made in three times that.
	b.row("clone of one 1 GiB file, XFS, p50", "ms", cp, clone, 3*cp, "<= 3x cp --reflink=always")
	b.comparison("clone of one 1 GiB file, XFS, p50", "ms", bare, clone, "ioctl FICLONE")
	return nil
}

// sourceVolume makes a volume of what makeSources has left under that name.
func (b *bench) sourceVolume(ctx context.Context, controller *process, content string) (name string, err error) {
	name = "bench-" + content
	if err := controller.create(ctx, name); err != nil {
		return "", err
	}
	return name, os.Rename(filepath.Join(bareDir, content), filepath.Join(bareDir, name, content))
}

// cold returns in how many seconds f is done by a client that has nothing in its
// caches. Those of the server are as the copies before have left them.
func (b *bench) cold(what string, f func() error) (float64, error) {
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return 0, err
	}
	d, err := b.timed(f)
	if err == nil {
		fmt.Printf("  %-44s %10.2f s\n", what, d.Seconds())
	}
	return d.Seconds(), err
}

func run(ctx context.Context, program string, args ...string) error {
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %q: %w: %s", program, args, err, out)
	}
	return nil
}

// cloneFile makes a file that shares the blocks of another (ioctl_ficlone(2)).
func cloneFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		return fmt.Errorf("clone %s: %w", from, err)
	}
	return dst.Close()
}

// comparison puts a figure beside another.
func (b *bench) comparison(name, unit string, bare, driver float64, beside string) {
	b.rows = append(b.rows, report.Comparison(name, unit, bare, driver, beside))
}

func fromVolume(v *csi.Volume) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
		Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: v.GetVolumeId()},
	}}
}

func fromSnapshot(s *csi.Snapshot) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
		Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: s.GetSnapshotId()},
	}}
}

// clone makes a volume of the source, and returns when it is there. A call waits for
// the copy for some seconds and is then to be repeated, which is done at once.
func (p *process) clone(ctx context.Context, name string, source *csi.VolumeContentSource) error {
	for {
		err := p.make(ctx, name, source)
		if status.Code(err) != codes.Aborted {
			return err
		}
	}
}

// snapshot returns when the snapshot is ready to use. A call waits for that for half a
// second and then says that it is not, whereupon it is repeated at once.
func (p *process) snapshot(ctx context.Context, name string, of *csi.Volume) (*csi.Snapshot, error) {
	for {
		r, err := csi.NewControllerClient(p.conn).CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: of.GetVolumeId()})
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", name, err)
		}
		if r.GetSnapshot().GetReadyToUse() {
			return r.GetSnapshot(), nil
		}
	}
}
