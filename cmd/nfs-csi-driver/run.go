package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/driver"
	"github.com/nfs-csi/nfs-csi-driver/pkg/kube"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/mount"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/worker"
)

func controllerCommand() *cobra.Command {
	var s settings
	c := &cobra.Command{
		Use:   "controller [flags]",
		Short: "Create, list and delete volumes: once per cluster, next to external-provisioner",
		Example: `  nfs-csi-driver controller --endpoint=unix:///csi/csi.sock --http-endpoint=:8080
  nfs-csi-driver controller --export="nfs.example:/srv/k8s nfsvers=4.2,hard"`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := s.prepare(c, driver.Options.ValidateController); err != nil {
				return err
			}
			return s.runController(c.Context())
		},
	}
	addGroups(c, append([]group{s.controllerGroup()}, s.commonGroups()...))
	return c
}

func nodeCommand() *cobra.Command {
	var s settings
	c := &cobra.Command{
		Use:   "node [flags]",
		Short: "Mount volumes for pods: on every node, known to the kubelet",
		Example: `  nfs-csi-driver node --node-id=worker-1 --endpoint=unix:///csi/csi.sock
  nfs-csi-driver node --node-id=$NODE_NAME --kubelet-registration-dir=/registration \
      --kubelet-csi-socket=/var/lib/kubelet/plugins/csi.nfs-csi.io/csi.sock`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := s.prepare(c, driver.Options.ValidateNode); err != nil {
				return err
			}
			return s.runNode(c.Context())
		},
	}
	addGroups(c, append([]group{s.nodeGroup()}, s.commonGroups()...))
	return c
}

func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unexpected argument %q: settings are flags", args[0])}
	}
	return nil
}

// prepare completes the settings from the environment, checks them and begins
// to log.
func (s *settings) prepare(c *cobra.Command, validate func(driver.Options) error) error {
	if err := applyEnvironment(c.Flags()); err != nil {
		return usageError{err}
	}
	if s.Controller.InstanceID == "" {
		s.Controller.InstanceID = s.DriverName
	}
	if err := validate(s.Options); err != nil {
		return usageError{err}
	}
	if err := setupLogging(c.ErrOrStderr(), s.logFormat, strconv.Itoa(s.verbosity)); err != nil {
		return usageError{err}
	}
	return nil
}

// workerOptions are those of either pool.
func (s *settings) workerOptions() worker.Options {
	return worker.Options{
		CallTimeout:  s.OperationTimeout,
		StartTimeout: s.OperationTimeout,
		IdleTimeout:  s.WorkerIdleTimeout,
		Spare:        true,
		Command: func() *exec.Cmd {
			c := worker.Self()
			c.Env = append(c.Env, envName("v")+"="+strconv.Itoa(s.verbosity), envName("log-format")+"="+s.logFormat)
			return c
		},
	}
}

// stores makes a StorePool a driver.Stores.
type stores struct{ *worker.StorePool }

func (s stores) Open(ctx context.Context, export nfs.Export) (driver.Store, error) {
	store, err := s.StorePool.Open(ctx, export)
	if err != nil {
		return nil, err
	}
	return store, nil
}

func (s *settings) runController(ctx context.Context) error {
	exports, err := s.Controller.ParseExports()
	if err != nil {
		return usageError{err}
	}
	cluster, noCluster := kube.New(s.Kubeconfig)
	if noCluster != nil && s.Kubeconfig != "" {
		return usageError{noCluster}
	}
	pool, err := worker.NewStorePool(context.WithoutCancel(ctx), worker.StoreOptions{
		Options:          s.workerOptions(),
		DriverName:       s.DriverName,
		InstanceID:       s.Controller.InstanceID,
		PurgeConcurrency: s.Controller.PurgeConcurrency,
		PurgeRate:        s.Controller.PurgeRate,
		Exports:          exports,
	})
	if err != nil {
		return err
	}
	var tasks []task
	if s.Controller.AdminEndpoint != "" {
		tasks = append(tasks, s.serveAdmin(pool))
	}
	if noCluster == nil {
		tasks = append(tasks, s.learnExports(cluster, pool))
	} else {
		klog.FromContext(ctx).Info("Only the exports of --export and of calls are known", "reason", noCluster.Error())
	}
	return s.run(ctx, driver.Config{Stores: stores{pool}}, pool, nil, tasks...)
}

// learnExports tells the pool of the exports that the cluster's objects name.
func (s *settings) learnExports(cluster *kube.Client, pool *worker.StorePool) task {
	return func(ctx context.Context) error {
		defer cluster.Close()
		cluster.WatchExports(ctx, kube.Exports{
			DriverName: s.DriverName,
			OfClass:    driver.ClassExport,
			OfVolume:   driver.HandleExport,
			Classes:    pool.KnowClassExports,
			Volumes:    pool.KnowVolumeExports,
		})
		return nil
	}
}

func (s *settings) runNode(ctx context.Context) error {
	var cluster *kube.Client
	if s.Node.StartupTaint != "" {
		var err error
		if cluster, err = kube.New(s.Kubeconfig); err != nil {
			return usageError{fmt.Errorf("--startup-taint: %w", err)}
		}
		defer cluster.Close()
	}
	host := mount.New(mount.Options{})
	pool, err := worker.NewMountPool(context.WithoutCancel(ctx), host, s.workerOptions())
	if err != nil {
		return err
	}
	var registration *driver.Registration
	if dir := s.Node.KubeletRegistrationDir; dir != "" {
		socket := s.Node.KubeletCSISocket
		if socket == "" {
			if socket, err = driver.SocketPath(s.Endpoint); err != nil {
				return usageError{err}
			}
		}
		registration = driver.NewRegistration(driver.RegistrationOptions{
			Dir: dir, DriverName: s.DriverName, Endpoint: socket, Logger: klog.FromContext(ctx),
		})
	}
	var tasks []task
	if cluster != nil {
		tasks = append(tasks, func(ctx context.Context) error {
			cluster.RemoveTaint(ctx, s.Node.NodeID, s.Node.StartupTaint, registration.Registered())
			return nil
		})
	}
	return s.run(ctx, driver.Config{Mounter: pool, Match: host.Match, NodeID: s.Node.NodeID}, pool, registration, tasks...)
}

// pool is what StorePool and MountPool have in common.
type pool interface {
	prometheus.Collector
	Close(ctx context.Context) error
}

// task runs beside the server until ctx ends or it has nothing more to do. An
// error of it ends the process.
type task func(ctx context.Context) error

// run serves until ctx ends or something fails, then ends the workers.
func (s *settings) run(ctx context.Context, config driver.Config, workers pool, registration *driver.Registration, tasks ...task) (err error) {
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		err = errors.Join(err, workers.Close(stop))
	}()
	build := currentBuild()
	logger := klog.FromContext(ctx)
	logger.Info("Starting", "version", build.Version, "commit", build.Commit, "driver", s.DriverName, "pid", os.Getpid())
	config.Name, config.Version, config.Logger = s.DriverName, build.Version, logger

	listener, err := driver.Listen(ctx, s.Endpoint)
	if err != nil {
		return err
	}
	var web net.Listener
	if s.HTTPEndpoint != "" {
		var lc net.ListenConfig
		if web, err = lc.Listen(ctx, "tcp", s.HTTPEndpoint); err != nil {
			_ = listener.Close()
			return fmt.Errorf("--http-endpoint: %w", err)
		}
	}
	// A server has goroutines from the first, which only Serve ends.
	server := driver.NewServer(config)
	checks := []driver.Check{server.ServerCheck()}
	collectors := []prometheus.Collector{workers}
	if registration != nil {
		checks = append(checks, registration.Check())
		collectors = append(collectors, registration.Collector())
	}
	registry, err := server.NewRegistry(build, collectors...)
	if err != nil {
		return err
	}

	running, ctx := errgroup.WithContext(ctx)
	running.Go(func() error { return server.Serve(ctx, listener) })
	if web != nil {
		running.Go(func() error { return driver.ServeHTTP(ctx, web, driver.NewHTTPHandler(registry, checks...)) })
	}
	if registration != nil {
		running.Go(func() error { return registration.Serve(ctx) })
	}
	for _, t := range tasks {
		running.Go(func() error { return t(ctx) })
	}
	return running.Wait()
}
