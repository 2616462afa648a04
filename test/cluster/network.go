package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

// nodePodSubnet is where the addresses of a node's pods come from.
func nodePodSubnet(index int) string { return fmt.Sprintf("10.244.%d.0/24", index+1) }

// configureNetwork makes the host's end of the lab's network the router between nodes, pods and
// the NFS server, and the owner of the API server's service address.
func (c *Cluster) configureNetwork(ctx context.Context) error {
	if err := c.ip(ctx, "address", "add", serviceAddress+"/32", "dev", "lo"); err != nil {
		return err
	}
	done := make(chan error, 1)
	lab.OnThread(func() {
		if err := enterNetns(c.lab.Netns()); err != nil {
			done <- err
			return
		}
		done <- os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
	})
	if err := <-done; err != nil {
		return fmt.Errorf("make the host a router for the cluster: %w", err)
	}
	return nil
}

// route tells the host which node has a subnet of pods.
func (c *Cluster) route(ctx context.Context, subnet, node string) error {
	return c.ip(ctx, "route", "replace", subnet, "via", node)
}

// ip runs ip(8) in the lab's network namespace.
func (c *Cluster) ip(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"-n", c.lab.Netns()}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %v: %w: %s", args, err, bytes.TrimSpace(out))
	}
	return nil
}
