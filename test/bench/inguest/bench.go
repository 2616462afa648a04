package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/test/bench/report"
)

const (
	// serial is the number of samples of cheap operations, few of those that mount.
	serial, few = 200, 10
	// crowd and concurrency: the creates that run at the same time.
	crowd, concurrency = 200, 20
	// many volumes are made before the memory of the processes is read.
	many = 1000
	// staged of them are staged and published as well.
	staged = 200
)

type bench struct {
	binary, server, client string
	// share is on XFS, ext4 another.
	share, ext4 string
	filled      int
	only        string // the name of a step; "" for all
	rows        []report.Row

	controller, node *process
}

func (b *bench) row(name, unit string, bare, driver, limit float64, bound string) {
	r := report.NewRow(name, unit, bare, driver, limit, bound)
	b.rows = append(b.rows, r)
	fmt.Printf("  %-44s %10.2f %s\n", name, driver, unit)
}

func (b *bench) run(ctx context.Context) error {
	// Where the kubelet and a log collector would be no slower than a real disk:
	// the guest's own root is an overlay on the host's files.
	for _, dir := range []string{mountsDir, logDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
			return err
		}
	}
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"mounts", b.mounts},
		{"copies", b.copies},
		{"volumes", b.volumes},
	} {
		if b.only != "" && b.only != step.name {
			continue
		}
		fmt.Printf("measuring %s\n", step.name)
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// mounts compares what mounts with a bare mount, each from the state in which
// nothing of the server is mounted.
func (b *bench) mounts(ctx context.Context) error {
	var bare, first, stage []time.Duration
	for range few {
		d, err := b.timed(func() error { return b.bareMount(b.share, bareDir) })
		if err != nil {
			return fmt.Errorf("bare mount: %w", err)
		}
		bare = append(bare, d)
		if err := unix.Unmount(bareDir, 0); err != nil {
			return err
		}
	}
	for i := range few {
		controller, err := b.start(ctx, "controller")
		if err != nil {
			return err
		}
		// A controller has been up for a while when a new export comes: its spare
		// worker is there.
		if err := waitForChild(ctx, controller.command.Process.Pid); err != nil {
			return err
		}
		name := fmt.Sprintf("bench-first-%d", i)
		d, err := b.timed(func() error { return controller.create(ctx, name) })
		if err != nil {
			return err
		}
		first = append(first, d)
		if err := controller.delete(ctx, name); err != nil {
			return err
		}
		if err := controller.stop(ctx); err != nil {
			return err
		}
	}
	controller, err := b.start(ctx, "controller")
	if err != nil {
		return err
	}
	if err := controller.create(ctx, "bench-stage"); err != nil {
		return err
	}
	// Only the node's mounts shall be there while the node is measured.
	if err := controller.stop(ctx); err != nil {
		return err
	}
	node, err := b.start(ctx, "node")
	if err != nil {
		return err
	}
	for range few {
		d, err := b.timed(func() error { return node.stage(ctx, "bench-stage", controller.volumes["bench-stage"]) })
		if err != nil {
			return err
		}
		stage = append(stage, d)
		if err := node.unstage(ctx, "bench-stage", controller.volumes["bench-stage"]); err != nil {
			return err
		}
	}
	if err := node.stop(ctx); err != nil {
		return err
	}
	m := p50(bare)
	b.row("first CreateVolume on an export", "ms", m, p50(first), 1.5*m+150, "<= 1.5x a bare mount + 150 ms")
	b.row("NodeStage", "ms", m, p50(stage), 1.5*m, "<= 1.5x a bare mount")
	return nil
}

// volumes compares the work on an export in use.
func (b *bench) volumes(ctx context.Context) (err error) {
	if b.controller, err = b.start(ctx, "controller"); err != nil {
		return err
	}
	if b.node, err = b.start(ctx, "node"); err != nil {
		return err
	}
	if err := b.bareMount(b.share, bareDir); err != nil {
		return err
	}
	bareCreate, bareDelete, err := bareWork(filepath.Join(bareDir, "bare"))
	if err != nil {
		return fmt.Errorf("bare operations: %w", err)
	}
	bind, err := bareBind()
	if err != nil {
		return fmt.Errorf("bare bind: %w", err)
	}

	create, err := b.series(serial, func(i int) error { return b.controller.create(ctx, fmt.Sprintf("bench-%d", i)) })
	if err != nil {
		return err
	}
	b.row("CreateVolume p50", "ms", bareCreate, create, 4*bareCreate, "<= 4x write+fsync+rename and mkdir")
	// Before the deletes: the purge of what they leave would run at the same time
	// on the guest's only processor, and be measured as if it were the node.
	if err := b.publish(ctx, bind); err != nil {
		return err
	}
	remove, err := b.series(serial, func(i int) error { return b.controller.delete(ctx, fmt.Sprintf("bench-%d", i)) })
	if err != nil {
		return err
	}
	b.row("DeleteVolume p50, empty", "ms", bareDelete, remove, 4*bareDelete, "<= 4x rename and unlink")
	if err := b.crowd(ctx, create); err != nil {
		return err
	}
	if err := b.full(ctx, bareDelete); err != nil {
		return err
	}
	if err := b.whilePurging(ctx, bareCreate, bareDelete); err != nil {
		return err
	}
	fmt.Println("measuring memory")
	return b.memory(ctx)
}

// crowd makes volumes at the same time; cores is 1 in a guest.
func (b *bench) crowd(ctx context.Context, serialP50 float64) error {
	const cores = 1
	samples := make([]time.Duration, crowd)
	errs := make([]error, crowd)
	next := make(chan int, crowd)
	for i := range crowd {
		next <- i
	}
	close(next)
	var wg sync.WaitGroup
	for range concurrency {
		wg.Go(func() {
			for i := range next {
				samples[i], errs[i] = b.timed(func() error { return b.controller.create(ctx, fmt.Sprintf("bench-crowd-%d", i)) })
			}
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			return err
		}
		if err := b.controller.delete(ctx, fmt.Sprintf("bench-crowd-%d", i)); err != nil {
			return err
		}
	}
	limit := 2 * serialP50 * concurrency / cores
	b.row(fmt.Sprintf("%d creates at concurrency %d, p50", crowd, concurrency), "ms", serialP50, p50(samples), limit,
		"<= 2x serial p50 x concurrency / cores")
	return nil
}

func (b *bench) publish(ctx context.Context, bind float64) error {
	const name = "bench-publish"
	if err := b.controller.create(ctx, name); err != nil {
		return err
	}
	volume := b.controller.volumes[name]
	if err := b.node.stage(ctx, name, volume); err != nil {
		return err
	}
	var publish, unpublish []time.Duration
	for range serial {
		d, err := b.timed(func() error { return b.node.publish(ctx, name, volume) })
		if err != nil {
			return err
		}
		publish = append(publish, d)
		if d, err = b.timed(func() error { return b.node.unpublish(ctx, name, volume) }); err != nil {
			return err
		}
		unpublish = append(unpublish, d)
	}
	b.row("NodePublish p50", "ms", bind, p50(publish), bind+3, "<= bind + unbind + 3 ms")
	b.row("NodeUnpublish p50", "ms", bind, p50(unpublish), bind+3, "<= bind + unbind + 3 ms")
	if err := b.node.unstage(ctx, name, volume); err != nil {
		return err
	}
	return b.controller.delete(ctx, name)
}

// full deletes volumes that hold the filled directories.
func (b *bench) full(ctx context.Context, bare float64) error {
	for i := range b.filled {
		name := fmt.Sprintf("bench-full-%d", i)
		if err := b.controller.create(ctx, name); err != nil {
			return err
		}
		from := filepath.Join(bareDir, "filled", strconv.Itoa(i))
		if err := os.Rename(from, filepath.Join(bareDir, name, "files")); err != nil {
			return err
		}
	}
	remove, err := b.series(b.filled, func(i int) error { return b.controller.delete(ctx, fmt.Sprintf("bench-full-%d", i)) })
	if err != nil {
		return err
	}
	b.row("DeleteVolume p50, 100,000 files", "ms", bare, remove, 4*bare, "<= 4x rename and unlink")
	return unix.Unmount(bareDir, 0)
}

// memory reads what the processes hold after many volumes.
func (b *bench) memory(ctx context.Context) error {
	for i := range many {
		name := fmt.Sprintf("bench-many-%d", i)
		if err := b.controller.create(ctx, name); err != nil {
			return err
		}
		if i >= staged {
			continue
		}
		volume := b.controller.volumes[name]
		if err := b.node.stage(ctx, name, volume); err != nil {
			return err
		}
		if err := b.node.publish(ctx, name, volume); err != nil {
			return err
		}
	}
	const mib = 1 << 20
	for _, p := range []*process{b.controller, b.node} {
		memory, err := residentBytes(p.command.Process.Pid)
		if err != nil {
			return err
		}
		b.row(fmt.Sprintf("resident memory of the %s, %d volumes", p.role, many), "MiB", 0, float64(memory)/mib, 48, "<= 48 MiB")
		most, err := workerBytes(p)
		if err != nil {
			return err
		}
		b.row(fmt.Sprintf("resident memory of the %s's worker", p.role), "MiB", 0, float64(most)/mib, 24, "<= 24 MiB")
	}
	info, err := os.Stat(b.binary)
	if err != nil {
		return err
	}
	b.row("size of the binary", "MB", 0, float64(info.Size())/1e6, 35, "< 35 MB")
	for i := range staged {
		name := fmt.Sprintf("bench-many-%d", i)
		volume := b.controller.volumes[name]
		if err := b.node.unpublish(ctx, name, volume); err != nil {
			return err
		}
		if err := b.node.unstage(ctx, name, volume); err != nil {
			return err
		}
	}
	if err := b.node.stop(ctx); err != nil {
		return err
	}
	return b.controller.stop(ctx)
}

func (b *bench) timed(f func() error) (time.Duration, error) {
	began := time.Now()
	err := f()
	return time.Since(began), err
}

// series returns the p50 in milliseconds of n calls in a row.
func (b *bench) series(n int, f func(i int) error) (float64, error) {
	var samples []time.Duration
	for i := range n {
		d, err := b.timed(func() error { return f(i) })
		if err != nil {
			return 0, err
		}
		samples = append(samples, d)
	}
	return p50(samples), nil
}

// p50 returns the median in milliseconds.
func p50(samples []time.Duration) float64 {
	if len(samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(samples))
	middle := sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]
	return float64(middle) / 2 / float64(time.Millisecond)
}
