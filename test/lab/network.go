package lab

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Every lab has a namespace of its own, so all can use the same addresses.
const (
	subnet4  = "10.97.0.0/24"
	subnet6  = "fd00:97::/64"
	hostIPv4 = "10.97.0.1"
	hostIPv6 = "fd00:97::1"
	bridge   = "lab0"
)

// network is a lab's network namespace and the bridge in it.
type network struct {
	name string
}

func newNetwork(ctx context.Context, name string) (*network, error) {
	n := &network{name: name}
	if err := runHost(ctx, "ip", "netns", "add", name); err != nil {
		return nil, err
	}
	err := n.ip(ctx,
		"link set lo up",
		"link add "+bridge+" type bridge",
		"address add "+hostIPv4+"/24 dev "+bridge,
		"address add "+hostIPv6+"/64 dev "+bridge+" nodad",
		"link set "+bridge+" up",
	)
	if err != nil {
		return n, err
	}
	return n, nil
}

// path is the file that setns(2) takes.
func (n *network) path() string { return filepath.Join("/run/netns", n.name) }

// remove deletes the namespace and with it every device in it.
func (n *network) remove(ctx context.Context) error {
	if _, err := os.Lstat(n.path()); os.IsNotExist(err) {
		return nil
	}
	return runHost(ctx, "ip", "netns", "delete", n.name)
}

// addPort makes a guest's tap and plugs it into the bridge; it may be there from an earlier run
// of the guest.
func (n *network) addPort(ctx context.Context, tap string) error {
	if runHost(ctx, "ip", "-n", n.name, "link", "show", tap) != nil {
		if err := n.ip(ctx, "tuntap add dev "+tap+" mode tap vnet_hdr"); err != nil {
			return err
		}
	}
	return n.ip(ctx, "link set "+tap+" up", "link set "+tap+" master "+bridge)
}

// plug connects the tap to the bridge, or takes it off: the guest's packets then go nowhere, as
// with a switch that died, and the guest sees no loss of carrier.
func (n *network) plug(ctx context.Context, tap string, in bool) error {
	if in {
		return n.ip(ctx, "link set "+tap+" master "+bridge)
	}
	return n.ip(ctx, "link set "+tap+" nomaster")
}

// ip runs commands of ip(8) in the namespace, all in one process.
func (n *network) ip(ctx context.Context, commands ...string) error {
	cmd := exec.CommandContext(ctx, "ip", "-n", n.name, "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip in namespace %s: %w: %s", n.name, err, bytes.TrimSpace(out))
	}
	return nil
}

// Addresses of the guest with an index: 10.97.0.10 and fd00:97::10 are those of the first.
func guestIPv4(index int) string { return nthAddress(hostIPv4, 10+index) }
func guestIPv6(index int) string { return nthAddress(hostIPv6, 10+index) }

func nthAddress(host string, n int) string {
	b := netip.MustParseAddr(host).AsSlice()
	b[len(b)-1] = byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a.String()
}

// runHost runs a program on the host; its output is in the error.
func runHost(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
