// Command demo tells the driver's story on a real Kubernetes cluster on this
// machine: built, installed with Helm as the README says, a claim that two pods
// on two nodes share, a snapshot and its restore, and their end. With -keep the cluster stays up, held by a
// process in the background, until "demo stop".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/test/cluster"
	"github.com/nfs-csi/nfs-csi-driver/test/demo/story"
	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

// budget bounds the story from the start of the cluster on, so that a demo that
// hangs says so. It takes a minute.
const budget = 10 * time.Minute

const usage = `usage, in the root of the repository:
  demo [-keep] -version VERSION   tell the story; with -keep, leave its cluster up
  demo server COMMAND...          run a command on the NFS server of a cluster that was kept
  demo stop                       end a demo, or the cluster that it kept
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := command(ctx, os.Args[1:])
	stop()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode()) // it has said why
	default:
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "stop":
			return stop(ctx, os.Stdout)
		case "server":
			return onServer(ctx, args[1:], os.Stdout)
		}
	}
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(flags.Output(), usage) }
	version := flags.String("version", "", "version of the driver to build")
	keep := flags.Bool("keep", false, "leave the cluster up")
	leashed := flags.Bool("leashed", false, "for the demo's own use: stop when standard input ends")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *version == "" || flags.NArg() > 0 {
		flags.Usage()
		return errors.New("run `make demo`, which knows the version")
	}
	d := &demo{Story: &story.Story{Out: os.Stdout}, version: *version}
	switch {
	case *leashed:
		// A terminal that closes ends the leash; that is enough.
		signal.Ignore(syscall.SIGPIPE)
		d.leash = newLeash(os.Stdin)
		return d.run(d.leash.context(ctx))
	case *keep:
		return detach(ctx, exec.Command("/proc/self/exe", "-leashed", "-version", *version), stateFile, os.Stdout)
	default:
		return d.run(ctx)
	}
}

type demo struct {
	*story.Story
	version string
	leash   *leash // none when the cluster is not to be kept
	log     *os.File
	cluster *cluster.Cluster
}

// run tells the story and leaves nothing behind.
func (d *demo) run(ctx context.Context) (err error) {
	if err := cluster.Prepare(ctx, d.Out); err != nil {
		return err
	}
	release, err := claim(stateFile)
	if err != nil {
		return err
	}
	defer release()
	if err := os.MkdirAll("out", 0o755); err != nil {
		return err
	}
	if d.log, err = os.Create(filepath.Join("out", "demo.log")); err != nil {
		return err
	}
	defer d.log.Close()
	defer func() { err = errors.Join(err, d.stop()) }()
	err = d.tell(ctx)
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return errors.New("interrupted")
	}
	return err
}

// tell tells the whole story, or, where the cluster is to stay, all but its end.
func (d *demo) tell(ctx context.Context) error {
	d.Say("The driver's story on a real Kubernetes cluster: two nodes and an NFS server, each a virtual")
	d.Say("machine on this one. What happens in detail is in %s.", d.log.Name())
	if err := d.build(ctx); err != nil {
		return err
	}
	chapters := []func(context.Context) error{d.start, d.install, d.provision, d.share, d.snapshot, d.reclaim}
	if d.leash != nil {
		chapters = chapters[:len(chapters)-1]
	}
	bounded, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	began := time.Now()
	for _, chapter := range chapters {
		if err := chapter(bounded); err != nil {
			return err
		}
	}
	d.Say("The story took %v, without the builds.", time.Since(began).Round(time.Second))
	if d.leash != nil {
		return d.hold(ctx)
	}
	d.Say("Next: `make demo KEEP=1` leaves the cluster up for you to try; README.md says how to install.")
	return nil
}

// build builds the image and, the first time, the cluster's programs.
func (d *demo) build(ctx context.Context) error {
	d.Chapter("Build the driver's image")
	missing, err := cluster.Missing(ctx)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		d.Say("And before it, this once, what the cluster runs: Kubernetes, containerd, Helm and others are")
		d.Say("compiled from source and kept. On two cores that takes 20 to 40 minutes, less with more.")
		d.Say("`make demo-nfs` shows a volume's life without Kubernetes, in seconds.")
		if err := cluster.Build(ctx, d.Out); err != nil {
			return err
		}
	}
	d.Say("Seconds; a few minutes where Go has nothing in its caches yet.")
	_, err = d.Run("$", []string{"make", "image"}, func() (string, error) {
		cmd := exec.CommandContext(ctx, "make", "--no-print-directory", "image", "VERSION="+d.version)
		cmd.Stdout, cmd.Stderr = d.log, d.log
		// make ends those that it has started.
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = 10 * time.Second
		if err := cmd.Run(); err != nil {
			return "", fmt.Errorf("make image: %w; the end of %s says why", errors.Join(err, ctx.Err()), d.log.Name())
		}
		return "", nil
	})
	if err != nil {
		return err
	}
	info, err := os.Stat(imageTar)
	if err != nil {
		return err
	}
	d.Say("One static binary in %s, %d MB.", imageTar, info.Size()/1e6)
	return nil
}

// start starts the cluster.
func (d *demo) start(ctx context.Context) error {
	d.Chapter("Start a cluster")
	d.Say("Control plane, two nodes with containerd and the kubelet, and an NFS server: about 15 seconds.")
	logs, err := filepath.Abs(filepath.Join("out", "demo"))
	if err != nil {
		return err
	}
	// Logs of an earlier demo would go on there.
	if err := os.RemoveAll(logs); err != nil {
		return err
	}
	d.cluster, err = cluster.Start(ctx, cluster.Options{
		Name: "demo",
		// What the tutorial tells its readers to export, and how.
		Exports: []lab.ExportSpec{{
			Path: share, FS: lab.XFS, SizeMB: 2048, Options: "rw,sync,no_subtree_check,no_root_squash,insecure",
		}},
		LogDir: logs,
		Log:    d.log,
	})
	if err != nil {
		return err
	}
	if err := d.kubectl(ctx, "get", "nodes", "-o", "wide"); err != nil {
		return err
	}
	d.Say("The NFS server is at %s and exports %s.", d.cluster.Server().IPv4(), share)
	return nil
}

// stop ends the cluster.
func (d *demo) stop() error {
	if d.cluster == nil {
		return nil
	}
	if err := d.cluster.Close(); err != nil {
		return err
	}
	d.Say("Everything is stopped.")
	return nil
}
