package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

// LoadImage gives every node the images of a tar as `docker save` or `make image` writes it, under
// the names that are in it. Pods that use them need imagePullPolicy IfNotPresent or Never: there
// is no registry.
func (c *Cluster) LoadImage(ctx context.Context, tar string) error {
	// A copy under a new name: a guest may have seen the file before it was built again.
	src, err := os.Open(tar)
	if err != nil {
		return fmt.Errorf("load image: %w", err)
	}
	defer src.Close()
	tmp, err := os.CreateTemp(c.dir, "image-*.tar")
	if err != nil {
		return fmt.Errorf("load image: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = io.Copy(tmp, src)
	if err = errors.Join(err, tmp.Close()); err != nil {
		return fmt.Errorf("load image %s: %w", tar, err)
	}
	return c.load(ctx, tmp.Name())
}

// LoadSidecars gives every node the images of the named sidecars, all of them without names,
// under the names that SidecarImage returns.
func (c *Cluster) LoadSidecars(ctx context.Context, names ...string) error {
	if len(names) == 0 {
		names = sidecars()
	}
	for _, name := range names {
		tar, err := sidecarImage(name, c.SidecarImage(name), c.programs[name]).save(c.dir)
		if err != nil {
			return err
		}
		err = c.load(ctx, tar)
		if err = errors.Join(err, os.Remove(tar)); err != nil {
			return fmt.Errorf("load image of %s: %w", name, err)
		}
	}
	return nil
}

// load imports a tar that the guests can see into all nodes at once.
func (c *Cluster) load(ctx context.Context, tar string) error {
	errs := make([]error, len(c.nodes))
	var wg sync.WaitGroup
	for i, n := range c.nodes {
		wg.Go(func() { errs[i] = n.importImage(ctx, tar) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (n *Node) importImage(ctx context.Context, tar string) error {
	// --local: done by ctr, not by containerd's transfer service, which takes three times as long.
	if _, err := n.ctr(ctx, "images", "import", "--local", "--snapshotter", snapshotter, tar); err != nil {
		return fmt.Errorf("import image: %w", err)
	}
	return nil
}

// nodeImages makes the images that every node has from its start.
func (c *Cluster) nodeImages(ctx context.Context) ([]string, error) {
	pause := filepath.Join(c.dir, "pause")
	if err := lab.GoBuild(ctx, pause, "github.com/nfs-csi/nfs-csi-driver/test/cluster/pause"); err != nil {
		return nil, err
	}
	busybox, err := busyboxImage()
	if err != nil {
		return nil, err
	}
	var tars []string
	for _, i := range []image{pauseImage(pause), busybox} {
		tar, err := i.save(c.dir)
		if err != nil {
			return nil, err
		}
		tars = append(tars, tar)
	}
	return tars, nil
}
