package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

// Options of a cluster. The zero value is fine.
type Options struct {
	// Name is part of the names of directories and of the network namespace. Default "cluster".
	Name string
	// Nodes is how many nodes there are: node1, node2 and so on. Default 2, at most 9.
	Nodes int
	// NodeMemoryMB is each node's memory. Default 2048; used on the host as far as the node uses it.
	NodeMemoryMB int
	// Exports of the NFS server guest, whose name is "server". Default: an XFS at /export.
	Exports []lab.ExportSpec
	// LogDir gets the logs of everything that runs. Default: a new temporary directory.
	LogDir string
	// Log gets a line for everything that the cluster does. Default: standard error.
	Log io.Writer
}

// Cluster is a Kubernetes cluster whose nodes are guests of a lab.
type Cluster struct {
	lab      *lab.Lab
	log      *logger
	dir      string // keys, configuration, etcd's data; gone after Close
	programs programs
	control  *controlPlane
	server   *lab.Server
	nodes    []*Node
}

// startTimeout bounds a start, not counting builds, when the caller's context does not.
const startTimeout = 5 * time.Minute

// Start starts a cluster and returns when all its nodes are ready. What the machine lacks is
// installed or built first.
func Start(ctx context.Context, o Options) (_ *Cluster, err error) {
	o.Name = cmp.Or(o.Name, "cluster")
	o.Nodes = cmp.Or(o.Nodes, 2)
	o.NodeMemoryMB = cmp.Or(o.NodeMemoryMB, 2048)
	if o.Nodes < 1 || o.Nodes > 9 {
		return nil, fmt.Errorf("a cluster of %d nodes: want 1 to 9", o.Nodes)
	}
	if o.Exports == nil {
		o.Exports = []lab.ExportSpec{{Path: "/export", FS: lab.XFS}}
	}
	if o.Log == nil {
		o.Log = os.Stderr
	}
	c := &Cluster{log: &logger{w: o.Log}}
	if err := Prepare(ctx, c.log); err != nil {
		return nil, err
	}
	if c.programs, err = build(ctx, c.log); err != nil {
		return nil, err
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	c.lab, err = lab.Start(ctx, lab.Options{Name: o.Name, LogDir: o.LogDir, Log: c.log, Tools: tools()})
	if err != nil {
		return nil, err
	}
	if err := c.configure(ctx, o.Nodes); err != nil {
		return nil, err
	}
	if err := c.startAll(ctx, o); err != nil {
		return nil, err
	}
	if err := c.waitNodes(ctx); err != nil {
		return nil, err
	}
	c.log.printf("cluster: %d nodes ready after %v", len(c.nodes), time.Since(began).Round(100*time.Millisecond))
	return c, nil
}

// Prepare installs what this machine lacks to run a cluster, and says in one error what it cannot
// install. The cluster's own programs are not among that: they are built.
func Prepare(ctx context.Context, log io.Writer) error {
	if err := lab.Prepare(ctx, log, tools()...); err != nil {
		return err
	}
	// Two nodes and the server take 2.6 GiB with little to do.
	if free := lab.FreeMemoryMB(); free < 3<<10 {
		return fmt.Errorf("a cluster needs 3 GiB free in /dev/shm for its guests' memory, there are %d MiB (a container gets more with --shm-size)", free)
	}
	return nil
}

// tools are what the lab must find, beyond its own, and where Debian has it.
func tools() []lab.Tool {
	return []lab.Tool{
		{Name: "runc", Package: "runc"},
		{Name: "busybox", Package: "busybox-static"},
		{Name: cniPlugins + "/bridge", Package: "containernetworking-plugins"},
	}
}

// configure makes the network and everything that is written before something starts.
func (c *Cluster) configure(ctx context.Context, nodes int) error {
	c.dir = filepath.Join(c.lab.StateDir(), "cluster")
	for _, dir := range []string{c.dir, c.LogDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make the cluster's directory: %w", err)
		}
	}
	if err := c.configureNetwork(ctx); err != nil {
		return err
	}
	var err error
	c.control, err = newControlPlane(c.lab.Netns(), c.lab.HostIPv4(), c.dir, c.LogDir(), c.programs)
	if err != nil {
		return err
	}
	for i := range nodes {
		name := fmt.Sprintf("node%d", i+1)
		n, err := newNode(name, nodePodSubnet(i), c.control, filepath.Join(c.dir, name), c.LogDir(), c.programs)
		if err != nil {
			return err
		}
		c.nodes = append(c.nodes, n)
	}
	return nil
}

// startAll starts the control plane, the NFS server and the nodes, all at once.
func (c *Cluster) startAll(ctx context.Context, o Options) error {
	// One failure ends the other starts.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	fail := func(err error) {
		if err != nil {
			once.Do(func() { first = err })
			cancel()
		}
	}
	start := func(do func() error) { wg.Go(func() { fail(do()) }) }
	control := make(chan struct{})
	start(func() error {
		defer close(control)
		if err := c.control.start(ctx); err != nil {
			return err
		}
		c.log.printf("control plane: up")
		return nil
	})
	start(func() (err error) {
		c.server, err = c.lab.StartServer(ctx, lab.ServerSpec{Exports: o.Exports})
		if err != nil {
			return err
		}
		return c.server.Run(ctx, lab.Cmd{Args: []string{"ip", "route", "replace", "default", "via", c.lab.HostIPv4()}})
	})
	images, err := c.nodeImages(ctx)
	fail(err)
	for i, n := range c.nodes {
		start(func() error {
			if err := c.startNode(ctx, n, i, o.NodeMemoryMB, images); err != nil {
				return err
			}
			select {
			case <-control:
			case <-ctx.Done():
				return ctx.Err()
			}
			return n.StartKubelet(ctx)
		})
	}
	wg.Wait()
	return first
}

func (c *Cluster) startNode(ctx context.Context, n *Node, index, memoryMB int, images []string) error {
	name := fmt.Sprintf("node%d", index+1)
	var err error
	n.Guest, err = c.lab.StartGuest(ctx, lab.GuestSpec{
		Name: name, MemoryMB: memoryMB, Disks: []lab.DiskSpec{{FS: lab.Ext4, SizeMB: 16 << 10}},
	})
	if err != nil {
		return err
	}
	if _, _, err := c.control.authority.issue(name+"-server", "system:node:"+name, "", name, n.IPv4()); err != nil {
		return err
	}
	if err := c.route(ctx, nodePodSubnet(index), n.IPv4()); err != nil {
		return err
	}
	if err := n.boot(ctx); err != nil {
		return err
	}
	for _, image := range images {
		if err := n.importImage(ctx, image); err != nil {
			return err
		}
	}
	return nil
}

// Close ends everything and removes the cluster's state; logs stay. It can be called again.
func (c *Cluster) Close() error {
	var err error
	if c.control != nil {
		err = c.control.close()
	}
	if c.lab != nil {
		err = errors.Join(err, c.lab.Close())
	}
	return err
}

// LogDir is the host directory with the logs of the control plane, containerd and the kubelets,
// and diagnostics. It stays after Close. The guests' consoles are in the lab's LogDir.
func (c *Cluster) LogDir() string { return filepath.Join(c.lab.OutDir(), "log") }

// Lab is the network that the cluster is in.
func (c *Cluster) Lab() *lab.Lab { return c.lab }

// Server is the NFS server.
func (c *Cluster) Server() *lab.Server { return c.server }

// Nodes are the nodes, node1 first.
func (c *Cluster) Nodes() []*Node { return slices.Clone(c.nodes) }

// Node returns the node of that name, or nil.
func (c *Cluster) Node(name string) *Node {
	for _, n := range c.nodes {
		if n.Name() == name {
			return n
		}
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
