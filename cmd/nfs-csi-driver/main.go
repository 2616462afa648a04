// Command nfs-csi-driver provisions Kubernetes volumes on NFS exports.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/worker"
)

func main() {
	// The driver executes itself for every worker, so this way is kept short.
	if len(os.Args) == 2 && os.Args[1] == "worker" {
		os.Exit(runWorker())
	}
	if len(os.Args) > 1 && os.Args[1] == "node" {
		beDrowsy()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop) // A second signal ends the process at once.
	os.Exit(execute(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// runWorker serves one export to the process that started it. What hangs in it
// ends with the process.
func runWorker() int {
	if err := setupLogging(os.Stderr, os.Getenv(envName("log-format")), os.Getenv(envName("v"))); err != nil {
		fmt.Fprintln(os.Stderr, "nfs-csi-driver worker:", err)
		return 2
	}
	if err := worker.Main(context.Background(), worker.SocketFD, worker.System()); err != nil {
		fmt.Fprintln(os.Stderr, "nfs-csi-driver worker:", err)
		return 1
	}
	return 0
}

// usageError is a mistake of whoever wrote the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// execute runs the command line and returns the exit code: 0, 1 for a failure,
// 2 for a wrong command line.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:   "nfs-csi-driver",
		Short: "Kubernetes volumes on NFS exports",
		Long: `nfs-csi-driver turns NFS exports into dynamically provisioned Kubernetes storage.

It runs as "controller" once per cluster, next to the CSI sidecars, and as
"node" on every node; "ctl" is for operators. Every flag of those two can also be set by the environment variable
that its help names; the flag wins.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q", args[0])}
			}
			return usageError{errors.New("which one: controller, node, ctl or version?")}
		},
		Run:               func(*cobra.Command, []string) {},
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.AddCommand(controllerCommand(), nodeCommand(), ctlCommand(), versionCommand())
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })

	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintf(stderr, "%s: %v\n", command.CommandPath(), err)
	if errors.As(err, &usageError{}) {
		_, _ = fmt.Fprintf(stderr, "Run '%s --help' for usage.\n", command.CommandPath())
		return 2
	}
	return 1
}
