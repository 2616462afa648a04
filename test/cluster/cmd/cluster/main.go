// Command cluster runs a Kubernetes cluster on this machine; see package cluster.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/nfs-csi/nfs-csi-driver/test/cluster"
)

const usage = `usage:
  cluster up [-nodes 2] [-log-dir DIR] [-image TAR]... [-sidecars]   a cluster, until Ctrl-C
  cluster build                                                       only build its programs
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "cluster: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return errors.New("no command given")
	}
	switch args[0] {
	case "up":
		return up(ctx, args[1:])
	case "build":
		return cluster.Build(ctx, os.Stderr)
	}
	fmt.Fprint(os.Stderr, usage)
	return fmt.Errorf("unknown command %q", args[0])
}

func up(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("up", flag.ContinueOnError)
	nodes := flags.Int("nodes", 2, "number of nodes")
	logDir := flags.String("log-dir", "", "directory for logs (default: a temporary one)")
	sidecars := flags.Bool("sidecars", false, "give the nodes the images of the CSI sidecars")
	var images []string
	flags.Func("image", "tar of an image for the nodes, as `docker save` writes it; can be repeated", func(s string) error {
		images = append(images, s)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return err
	}
	c, err := cluster.Start(ctx, cluster.Options{Nodes: *nodes, LogDir: *logDir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for _, tar := range images {
		if err := c.LoadImage(ctx, tar); err != nil {
			return err
		}
	}
	if *sidecars {
		if err := c.LoadSidecars(ctx); err != nil {
			return err
		}
	}
	fmt.Printf("nfs server  %s:/export\nlogs        %s\nkubectl     %s\nhelm        %s\nCtrl-C ends the cluster\nexport KUBECONFIG=%s\n",
		c.Server().IPv4(), c.LogDir(), c.Tool("kubectl"), c.Tool("helm"), c.Kubeconfig())
	<-ctx.Done()
	return nil
}
