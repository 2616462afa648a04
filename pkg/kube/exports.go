package kube

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// Exports says how to read exports out of a cluster's objects, and whom to tell.
type Exports struct {
	// DriverName is the provisioner of the StorageClasses and the driver of the
	// PersistentVolumes that count.
	DriverName string
	// OfClass returns the export of a StorageClass, OfVolume that of a volume
	// handle. An object for which they fail names no export.
	OfClass  func(parameters map[string]string, mountOptions []string) (nfs.Export, error)
	OfVolume func(handle string) (nfs.Export, error)
	// Classes is told all exports that StorageClasses name, whenever they have
	// changed, in the order of their keys; Volumes those of PersistentVolumes.
	// Neither is told twice at once.
	Classes, Volumes func([]nfs.Export)
}

// WatchExports follows the StorageClasses and PersistentVolumes of the cluster
// until ctx ends. While it cannot, what was told last remains; it tries again
// for ever, and logs to the logger of ctx now and then what it needs.
func (c *Client) WatchExports(ctx context.Context, e Exports) {
	logger := klog.FromContext(ctx)
	classes := follower{
		client: c, path: "apis/storage.k8s.io/v1/storageclasses", tell: e.Classes,
		trouble: trouble{logger: logger, message: "Cannot learn exports from StorageClasses",
			rights: "let this service account list and watch storageclasses.storage.k8s.io, or name the exports by --export"},
		export: func(o object) (nfs.Export, bool) {
			if o.Provisioner != e.DriverName {
				return nfs.Export{}, false
			}
			export, err := e.OfClass(o.Parameters, o.MountOptions)
			if err != nil {
				logger.Info("StorageClass names no usable export", "storageClass", o.Metadata.Name, "err", err)
			}
			return export, err == nil
		},
	}
	volumes := follower{
		client: c, path: "api/v1/persistentvolumes", tell: e.Volumes,
		trouble: trouble{logger: logger, message: "Cannot learn exports from PersistentVolumes",
			rights: "let this service account list and watch persistentvolumes, or name the exports by --export"},
		export: func(o object) (nfs.Export, bool) {
			if o.Spec.CSI == nil || o.Spec.CSI.Driver != e.DriverName {
				return nfs.Export{}, false
			}
			export, err := e.OfVolume(o.Spec.CSI.VolumeHandle)
			if err != nil {
				logger.V(4).Info("PersistentVolume names no export", "persistentVolume", o.Metadata.Name, "err", err)
			}
			return export, err == nil
		},
	}
	var both sync.WaitGroup
	both.Go(func() { classes.run(ctx) })
	both.Go(func() { volumes.run(ctx) })
	both.Wait()
}

// follower follows the objects at one path.
type follower struct {
	client  *Client
	path    string
	export  func(object) (nfs.Export, bool)
	tell    func([]nfs.Export)
	trouble trouble

	named named
}

func (f *follower) run(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; {
		began := time.Now()
		err := f.listAndWatch(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > f.client.maxPause {
			failures = 0
		}
		failures++
		// Gone: the server has forgotten the version, which a new list mends.
		if status := new(StatusError); !errors.As(err, &status) || status.Code != http.StatusGone {
			f.trouble.failed(err)
		}
		f.client.pause(ctx, failures)
	}
}

// listAndWatch returns when only another list helps.
func (f *follower) listAndWatch(ctx context.Context) error {
	now := named{}
	version, err := f.client.list(ctx, f.path, func(o object) { f.apply(&now, o, false) })
	if err != nil {
		return err
	}
	before := f.named.exports()
	f.named = now
	if exports := f.named.exports(); !slices.EqualFunc(before, exports, nfs.Export.Equal) {
		f.tell(exports)
	}
	for {
		version, err = f.client.watch(ctx, f.path, version, f.trouble.over, func(o object, deleted bool) {
			if f.apply(&f.named, o, deleted) {
				f.tell(f.named.exports())
			}
		})
		if err != nil {
			return err
		}
	}
}

// apply reports whether the object changes which exports are named.
func (f *follower) apply(n *named, o object, deleted bool) bool {
	export, ok := f.export(o)
	if deleted || !ok {
		return n.remove(o.Metadata.Name)
	}
	return n.put(o.Metadata.Name, export)
}

// named is which object names which export. Many objects name the same one.
type named struct {
	by      map[string]*namedExport // of the object's name
	objects map[string]*namedExport // of the export's key
}

type namedExport struct {
	export  nfs.Export
	objects int
}

func (n *named) put(object string, export nfs.Export) (changed bool) {
	old, had := n.by[object]
	if had && old.export.Equal(export) {
		return false
	}
	if n.by == nil {
		n.by, n.objects = map[string]*namedExport{}, map[string]*namedExport{}
	}
	if had {
		changed = n.remove(object)
	}
	key := export.Key()
	e, known := n.objects[key]
	if !known {
		e = &namedExport{export: export}
		n.objects[key] = e
	}
	e.objects++
	n.by[object] = e
	return changed || !known
}

func (n *named) remove(object string) (changed bool) {
	e, had := n.by[object]
	if !had {
		return false
	}
	delete(n.by, object)
	e.objects--
	if e.objects > 0 {
		return false
	}
	delete(n.objects, e.export.Key())
	return true
}

// exports returns the exports in the order of their keys.
func (n *named) exports() []nfs.Export {
	var exports []nfs.Export
	for _, key := range slices.Sorted(maps.Keys(n.objects)) {
		exports = append(exports, n.objects[key].export)
	}
	return exports
}
