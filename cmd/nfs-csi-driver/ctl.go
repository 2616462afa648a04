package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/ctl"
	"github.com/nfs-csi/nfs-csi-driver/pkg/driver"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/admin"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/worker"
)

// adminSocket is where the chart has the controller serve ctl.
const adminSocket = "/run/nfs-csi/admin.sock"

// serveAdmin serves ctl on a socket of its own.
func (s *settings) serveAdmin(pool *worker.StorePool) task {
	return func(ctx context.Context) error {
		listener, err := driver.Listen(ctx, s.Controller.AdminEndpoint)
		if err != nil {
			return fmt.Errorf("--admin-endpoint: %w", err)
		}
		server := driver.NewAdminServer(&admin.Server{
			Driver:  s.DriverName,
			Exports: pool.Exports,
			Open: func(ctx context.Context, export nfs.Export) (admin.Backend, error) {
				store, err := pool.Open(ctx, export)
				if err != nil {
					return nil, err
				}
				return store, nil
			},
		}, klog.FromContext(ctx))
		return server.Serve(ctx, listener)
	}
}

func ctlCommand() *cobra.Command {
	var c ctl.Command
	parent := &cobra.Command{
		Use:   "ctl command [flags]",
		Short: "Look at volumes, snapshots, trash, archives and orphans, and mend them",
		Long: `ctl shows what there is on the exports, and mends it. It asks the controller in
whose container it runs. With --path it needs none: it works on the export that
is mounted there, with the rights of whoever runs it.`,
		Example: `  kubectl -n nfs-csi exec deploy/nfs-csi-driver-controller -c driver -- /nfs-csi-driver ctl volumes
  nfs-csi-driver ctl trash --path /mnt/export --usage`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q", args[0])}
			}
			return usageError{fmt.Errorf("which one: volumes, snapshots, trash, archive, orphans, adopt, restore or purge?")}
		},
		Run: func(*cobra.Command, []string) {},
	}
	flags := parent.PersistentFlags()
	flags.SortFlags = false
	flags.StringVar(&c.Socket, "socket", adminSocket, "`path` of the controller's --admin-endpoint")
	flags.StringVar(&c.Path, "path", "", "`directory` where the root of an export is mounted; no controller is asked")
	flags.StringVar(&c.Export, "export", "", "`export` to work on, server:/share, where the controller knows several; with --path the one that is mounted there")
	flags.StringVarP(&c.Output, "output", "o", "table", "`format`: "+strings.Join(ctl.Outputs(), ", "))
	flags.StringVar(&c.Store.DriverName, "driver-name", driver.DefaultName, "with --path: CSI `name` of the driver")
	flags.StringVar(&c.Store.InstanceID, "instance-id", "", "with --path: `id` of the installation (default the driver's name)")
	parent.PersistentPreRunE = func(command *cobra.Command, _ []string) error {
		c.Stdout, c.Stderr = command.OutOrStdout(), command.ErrOrStderr()
		if !slices.Contains(ctl.Outputs(), c.Output) {
			return usageError{fmt.Errorf("--output %q is none of %s", c.Output, strings.Join(ctl.Outputs(), ", "))}
		}
		if c.Store.InstanceID == "" {
			c.Store.InstanceID = c.Store.DriverName
		}
		return setupLogging(c.Stderr, "text", "0")
	}
	parent.AddCommand(
		ctlList(&c, "volumes", nfs.ItemVolume, "Volumes, by name", "  nfs-csi-driver ctl volumes\n  nfs-csi-driver ctl volumes -o wide --usage --export nfs.example.com:/srv/k8s"),
		ctlList(&c, "snapshots", nfs.ItemSnapshot, "Snapshots, by name", "  nfs-csi-driver ctl snapshots\n  nfs-csi-driver ctl snapshots --usage -o json"),
		ctlList(&c, "trash", nfs.ItemTrash, "Deleted volumes that are not yet unlinked, the oldest first", "  nfs-csi-driver ctl trash\n  nfs-csi-driver ctl trash --usage -o json"),
		ctlList(&c, "archive", nfs.ItemArchive, "Archived volumes, the oldest first", "  nfs-csi-driver ctl archive\n  nfs-csi-driver ctl archive --usage --path /mnt/export"),
		ctlOrphans(&c), ctlAdopt(&c), ctlRestore(&c), ctlPurge(&c))
	return parent
}

// ctlRun has mistakes that ctl finds in the command line exit with 2.
func ctlRun(run func(ctx context.Context) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, _ []string) error {
		err := run(c.Context())
		if err != nil && ctl.IsUsage(err) {
			return usageError{err}
		}
		return err
	}
}

func ctlList(c *ctl.Command, name string, kind nfs.ItemKind, short, example string) *cobra.Command {
	var usage bool
	command := &cobra.Command{
		Use: name + " [flags]", Short: short, Example: example, Args: noArguments,
		RunE: ctlRun(func(ctx context.Context) error { return c.List(ctx, kind, usage) }),
	}
	command.Flags().BoolVar(&usage, "usage", false, "count the files and the disk space of each: reads every directory, which may take long")
	return command
}

func ctlOrphans(c *ctl.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "orphans [flags]",
		Short: "Directories without a record, records without a directory",
		Long: `orphans looks into the directories that hold volumes, never into a volume. A volume
that is made or deleted at that moment may be among them: look twice before you
remove anything.`,
		Example: "  nfs-csi-driver ctl orphans\n  nfs-csi-driver ctl orphans --path /mnt/export -o json",
		Args:    noArguments,
		RunE:    ctlRun(func(ctx context.Context) error { return c.Orphans(ctx) }),
	}
}

func ctlAdopt(c *ctl.Command) *cobra.Command {
	command := ctlMend("1Gi", nfs.Retain, func(ctx context.Context, directory string, task nfs.Task) error {
		task.Dir = directory
		return c.Adopt(ctx, task)
	})
	command.Use = "adopt directory --name name [flags]"
	command.Short = "Give an existing directory a record, which makes it a volume"
	command.Long = `adopt gives a directory of the export a record, so that it is a volume of this
driver from then on, and writes the PersistentVolume to use it with. Without --yes
it only says whether it can. The directory and what is in it are not changed.`
	command.Example = `  nfs-csi-driver ctl adopt team/data --name team-data
  nfs-csi-driver ctl adopt team/data --name team-data --capacity 100Gi --yes > pv.yaml`
	return command
}

func ctlRestore(c *ctl.Command) *cobra.Command {
	var dir string
	command := ctlMend("", "", func(ctx context.Context, archive string, task nfs.Task) error {
		task.Key, task.Dir = archive, dir
		return c.Restore(ctx, task)
	})
	command.Use = "restore archive --name name [flags]"
	command.Short = "Take an archived volume back into service"
	command.Long = `restore makes a volume of an archive, which is named by its id ("ctl archive -o wide"
shows it) or by the name of the volume that it was, and writes the PersistentVolume
to use it with. Without --yes it only says whether it can. The directory is renamed,
whatever its size, and nothing in it is changed.`
	command.Example = `  nfs-csi-driver ctl restore pvc-4fbb2d7e-58c6-4d4c-a7a3-8d5d3f6f2e11 --name data-again
  nfs-csi-driver ctl restore pvc-4fbb2d7e-58c6-4d4c-a7a3-8d5d3f6f2e11 --name data-again --claim shop/data --yes > pv.yaml`
	command.Flags().StringVar(&dir, "directory", "", "where the directory is to be (default where it was)")
	return command
}

// ctlMend is a command that makes a volume of its one argument. Defaults that are empty
// are for the store to know.
func ctlMend(capacity string, onDelete nfs.OnDelete, run func(ctx context.Context, what string, task nfs.Task) error) *cobra.Command {
	var task nfs.Task
	var claim, size, disposal string
	command := &cobra.Command{Args: func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usageError{fmt.Errorf("it takes one argument, and %d are given", len(args))}
		}
		return nil
	}}
	note := ""
	if capacity == "" {
		note = " (default as it was)"
	}
	flags := command.Flags()
	flags.SortFlags = false
	flags.StringVar(&task.Name, "name", "", "`name` of the PersistentVolume (required)")
	flags.StringVar(&size, "capacity", capacity, "`size` of the volume; it is recorded, not enforced"+note)
	flags.StringVar(&disposal, "on-delete", string(onDelete), "what becomes of the directory when the volume is deleted: retain, archive or delete"+note)
	flags.StringVar(&claim, "claim", "", "`namespace/name` of the PersistentVolumeClaim that is to get the volume")
	flags.BoolVar(&task.Commit, "yes", false, "do it")
	command.RunE = func(command *cobra.Command, args []string) error {
		return ctlRun(func(ctx context.Context) (err error) {
			if task.Name == "" {
				return usageError{fmt.Errorf("--name is missing: the name of the PersistentVolume")}
			}
			if size != "" {
				if task.CapacityBytes, err = ctl.ParseSize(size); err != nil {
					return usageError{fmt.Errorf("--capacity: %w", err)}
				}
			}
			if disposal != "" {
				if task.OnDelete, err = nfs.ParseOnDelete(disposal); err != nil {
					return usageError{fmt.Errorf("--on-delete: %w", err)}
				}
			}
			var ok bool
			if task.Claim.Namespace, task.Claim.Name, ok = strings.Cut(claim, "/"); claim != "" && (!ok || task.Claim.Namespace == "" || task.Claim.Name == "") {
				return usageError{fmt.Errorf("--claim %q is not namespace/name", claim)}
			}
			return run(ctx, args[0], task)
		})(command, args)
	}
	return command
}

func ctlPurge(c *ctl.Command) *cobra.Command {
	var noWait bool
	command := &cobra.Command{
		Use:   "purge [flags]",
		Short: "Empty the trash now, and show how far it is",
		Long: `purge has everything in the trash tried again that could not be removed so far, and
waits until the trash is empty. The controller purges at its own rate. With --path
the purge runs here; what another process has deleted is taken over once that
process has been silent for 20 seconds.`,
		Example: "  nfs-csi-driver ctl purge\n  nfs-csi-driver ctl purge --path /mnt/export --purge-rate 0",
		Args:    noArguments,
		RunE:    ctlRun(func(ctx context.Context) error { return c.Purge(ctx, !noWait) }),
	}
	flags := command.Flags()
	flags.BoolVar(&noWait, "no-wait", false, "do not wait for the trash to be empty")
	flags.IntVar(&c.Store.PurgeRate, "purge-rate", 2000, "with --path: `files` to unlink per second; 0 for no limit")
	flags.IntVar(&c.Store.PurgeConcurrency, "purge-concurrency", 4, "with --path: `files` to unlink at once")
	return command
}
