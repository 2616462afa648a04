package store

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// treeCounts are the entries of a tree, its root among them, and the bytes of its
// files as they are long. A file with several names counts with each.
type treeCounts struct {
	Dirs     int64 `json:"dirs"`
	Files    int64 `json:"files"`
	Symlinks int64 `json:"symlinks"`
	FIFOs    int64 `json:"fifos"`
	Bytes    int64 `json:"bytes"`
}

func (t treeCounts) entries() int64 { return t.Dirs + t.Files + t.Symlinks + t.FIFOs }

// copyManifest says what a complete copy holds, and what it lacks of its source.
type copyManifest struct {
	Version int `json:"version"`
	treeCounts
	// LinkedBytes is how much of Bytes is counted again for further names of a file.
	LinkedBytes int64     `json:"linkedBytes"`
	Notes       copyNotes `json:"notes"`
	Finished    time.Time `json:"finished"`
}

// copyNotes counts what a copy could not keep.
type copyNotes struct {
	Sockets  int64 `json:"sockets,omitempty"`  // skipped
	Devices  int64 `json:"devices,omitempty"`  // skipped
	Mounts   int64 `json:"mounts,omitempty"`   // other file systems in the tree, skipped
	Changed  int64 `json:"changed,omitempty"`  // files and directories that never kept still
	Vanished int64 `json:"vanished,omitempty"` // were there at first
	Unlinked int64 `json:"unlinked,omitempty"` // names that became files of their own
	// Xattrs that the target did not take, by the first part of their name.
	Xattrs map[string]int64 `json:"xattrs,omitempty"`
	// Inherits says that directories of the copy have got an access list from above
	// the store's own directory, which the server does not let a client take away.
	Inherits bool `json:"inherits,omitempty"`
	// Examples are some of the paths, each with what it is an example of.
	Examples []string `json:"examples,omitempty"`
}

const maxExamples = 20

// notes collects copyNotes.
type notes struct {
	mu sync.Mutex
	n  copyNotes
}

func (n *notes) add(count *int64, what, rel string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	*count++
	if len(n.n.Examples) < maxExamples {
		// A path may be of any length and bytes.
		if len(rel) > unix.PathMax {
			rel = rel[:unix.PathMax]
		}
		n.n.Examples = append(n.n.Examples, fmt.Sprintf("%s: %q", what, rel))
	}
}

func (n *notes) socket(rel string)   { n.add(&n.n.Sockets, "socket", rel) }
func (n *notes) device(rel string)   { n.add(&n.n.Devices, "device", rel) }
func (n *notes) mount(rel string)    { n.add(&n.n.Mounts, "mount", rel) }
func (n *notes) changed(rel string)  { n.add(&n.n.Changed, "changed", rel) }
func (n *notes) vanished(rel string) { n.add(&n.n.Vanished, "vanished", rel) }
func (n *notes) unlinked(rel string) { n.add(&n.n.Unlinked, "unlinked", rel) }

func (n *notes) xattr(space string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.n.Xattrs == nil {
		n.n.Xattrs = map[string]int64{}
	}
	n.n.Xattrs[space]++
}

func (n *notes) inherits() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.n.Inherits = true
}

func (n *notes) get() copyNotes {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := n.n
	out.Xattrs, out.Examples = maps.Clone(n.n.Xattrs), slices.Clone(n.n.Examples)
	return out
}

// verify reads the copy again and compares what is there with what was copied.
func (c *treeCopy) verify(ctx context.Context) error {
	found, err := c.countTree(ctx, c.data)
	if err != nil {
		return err
	}
	if want := c.total.counts(); found != want {
		return fmt.Errorf("%w: the copy in %q has %+v, where %+v were copied: something else has changed it, or the server has lost some; trying again mends it",
			nfs.ErrUnavailable, c.data.path, found, want)
	}
	return nil
}

// countTree counts what is in a directory and beneath, and the directory.
func (c *treeCopy) countTree(ctx context.Context, root *dir) (treeCounts, error) {
	t := &tally{}
	w := newTreeWalk(c.concurrency, c.job)
	w.visit = func(ctx context.Context, p *pair) error {
		// The server is asked, not the cache of the client that has written it.
		if _, err := p.src.fresh(ctx); err != nil {
			return err
		}
		t.dirs.Add(1)
		return p.src.entries(ctx, func(name string, kind uint32) error {
			a := attr{mode: kind}
			if kind == 0 || kind == unix.S_IFREG {
				var err error
				if a, err = p.src.attr(ctx, name); err != nil {
					return err
				}
			}
			switch a.kind() {
			case unix.S_IFDIR:
			case unix.S_IFREG, unix.S_IFLNK, unix.S_IFIFO:
				t.count(a)
				return nil
			default:
				return fmt.Errorf("%w: %q was put into the copy by somebody else: remove it", nfs.ErrForeign, path.Join(p.src.path, name))
			}
			d, err := p.src.openDir(ctx, name)
			if err != nil {
				return err
			}
			w.descend(ctx, &pair{src: d, rel: path.Join(p.rel, name), depth: p.depth + 1})
			return nil
		})
	}
	w.reopen = func(ctx context.Context, rel string) (*pair, error) {
		d, err := root.below(ctx, rel)
		if err != nil {
			return nil, err
		}
		return &pair{src: d, rel: rel}, nil
	}
	d, err := root.again(ctx)
	if err != nil {
		return treeCounts{}, err
	}
	err = w.run(ctx, &pair{src: d})
	return t.counts(), err
}

// linkedBytes is what the names of files count for beyond the first of each.
func (c *treeCopy) linkedBytes(ctx context.Context) (bytes int64, err error) {
	links := c.links.Load()
	if links == nil {
		return 0, nil
	}
	err = links.list(ctx, func(names []string) error {
		for _, name := range names {
			a, err := links.attr(ctx, name)
			if err != nil {
				return err
			}
			if a.kind() == unix.S_IFREG && a.nlink > 2 { // One of them is this.
				bytes += int64(a.nlink-2) * a.size
			}
		}
		return nil
	})
	return bytes, err
}

// writeManifest ends the copy.
func (c *treeCopy) writeManifest(ctx context.Context) (*copyManifest, error) {
	linked, err := c.linkedBytes(ctx)
	if err != nil {
		return nil, err
	}
	m := &copyManifest{
		Version: copyVersion, treeCounts: c.total.counts(), LinkedBytes: linked,
		Notes: c.notes.get(), Finished: time.Now().UTC().Truncate(time.Second),
	}
	data, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return m, c.replace(ctx, manifestName, data)
}

// readManifest returns the manifest of a copy that is complete, or nil.
func readManifest(ctx context.Context, job *dir) (*copyManifest, error) {
	data, _, err := job.readFile(ctx, manifestName, manifestLimit)
	if err != nil {
		return nil, ignoreAbsent(err)
	}
	m := &copyManifest{}
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("%w: %q is not what this driver writes: %w", nfs.ErrForeign, path.Join(job.path, manifestName), err)
	}
	if m.Version != copyVersion {
		return nil, fmt.Errorf("%w: %q has version %d, which this driver does not know", nfs.ErrForeign, path.Join(job.path, manifestName), m.Version)
	}
	return m, nil
}

// String is such as "copied 12345 of 20000 entries, 1.2 GiB of 3.4 GiB".
func (p copyProgress) String() string {
	if p.TotalEntries == 0 {
		return fmt.Sprintf("copied %d entries so far, %s", p.Entries, byteText(p.Bytes))
	}
	return fmt.Sprintf("copied %d of %d entries, %s of %s", p.Entries, p.TotalEntries, byteText(p.Bytes), byteText(p.TotalBytes))
}

func byteText(n int64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/(1<<10), 0
	for ; value >= 1<<10 && unit < len(units)-1; unit++ {
		value /= 1 << 10
	}
	return fmt.Sprintf("%.1f %ciB", value, units[unit])
}
