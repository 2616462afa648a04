package store

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

const (
	deepPrefix = "deep."

	// maxDepth bounds the descriptors and the stack that a tree takes.
	maxDepth = 32
)

func (p *purger) unlink(ctx context.Context, d *dir, name string) error {
	if err := p.pace(ctx); err != nil {
		return err
	}
	err := d.unlink(ctx, name)
	if err == nil {
		p.removed.Add(1)
	}
	if isAbsent(err) {
		return nil
	}
	return err
}

// remove removes the entry of that name and all beneath it. What other processes
// remove at the same time is fine. top is the uppermost directory of the tree
// and nil for the entry that is the tree.
func (p *purger) remove(ctx context.Context, parent *dir, name string, top *dir, depth int) error {
	err := p.unlink(ctx, parent, name)
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	if depth >= maxDepth {
		// Further up it is reached again, with fewer directories held open.
		err := parent.rename(ctx, name, top, deepPrefix+randomName())
		if errors.Is(err, nfs.ErrPermission) && parent.widen(ctx, name) == nil {
			err = parent.rename(ctx, name, top, deepPrefix+randomName())
		}
		return ignoreAbsent(err)
	}
	d, err := parent.openDir(ctx, name)
	if errors.Is(err, nfs.ErrPermission) && parent.widen(ctx, name) == nil {
		d, err = parent.openDir(ctx, name)
	}
	if err != nil {
		return ignoreAbsent(err)
	}
	defer d.close()
	if top == nil {
		top = d
	}
	// The directory itself may vanish beneath us; rmdir will tell.
	if err := p.empty(ctx, d, top, depth+1); err != nil && !isAbsent(err) && !errors.Is(err, nfs.ErrStale) {
		return err
	}
	if err := p.pace(ctx); err != nil {
		return err
	}
	if err = parent.rmdir(ctx, name); err == nil {
		p.removed.Add(1)
	}
	return ignoreAbsent(err)
}

func ignoreAbsent(err error) error {
	if isAbsent(err) {
		return nil
	}
	return err
}

// empty removes all that is in the directory. Names may be skipped when a
// directory is read while entries of it go, on NFS in particular, so it reads
// again until there is nothing, or nothing that can be removed.
func (p *purger) empty(ctx context.Context, d, top *dir, depth int) error {
	for widened := false; ; {
		seen, failed, err := p.sweep(ctx, d, top, depth)
		switch {
		case err != nil:
			return err
		case seen == 0:
			return nil
		case failed == nil:
			continue
		case errors.Is(failed, nfs.ErrPermission) && !widened && d.chmod(ctx, 0o700) == nil:
			widened = true
		default:
			return failed
		}
	}
}

// sweep reads the directory once and removes what it sees. failed is the first
// failure to remove something.
func (p *purger) sweep(ctx context.Context, d, top *dir, depth int) (seen int, failed, err error) {
	var mu sync.Mutex
	err = d.list(ctx, func(names []string) error {
		seen += len(names)
		var wg sync.WaitGroup
		for _, name := range names {
			p.spawn(&wg, func() {
				if err := p.remove(ctx, d, name, top, depth); err != nil {
					mu.Lock()
					defer mu.Unlock()
					if failed == nil {
						failed = err
					}
				}
			})
		}
		wg.Wait()
		return ctx.Err()
	})
	return seen, failed, err
}
