package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/nfs-csi/nfs-csi-driver/pkg/driver"
)

// settings are the options of the driver and those of this program.
type settings struct {
	driver.Options
	verbosity int
	logFormat string
}

// group is some flags under a heading.
type group struct {
	title string
	flags *pflag.FlagSet
}

func newGroup(title string) group {
	return group{title, pflag.NewFlagSet(title, pflag.ContinueOnError)}
}

// commonGroups are the flags of both controller and node.
func (s *settings) commonGroups() []group {
	serving, workers, cluster, logging := newGroup("Serving"), newGroup("NFS"), newGroup("Kubernetes"), newGroup("Logging")
	serving.flags.StringVar(&s.Endpoint, "endpoint", "unix:///csi/csi.sock", "`socket` for the CSI services: unix:///path")
	serving.flags.StringVar(&s.DriverName, "driver-name", driver.DefaultName, "CSI `name` of the driver, as StorageClasses name it")
	serving.flags.StringVar(&s.HTTPEndpoint, "http-endpoint", "", "`host:port` for /healthz, /readyz and /metrics, such as :8080; empty for none")
	workers.flags.DurationVar(&s.OperationTimeout, "operation-timeout", 30*time.Second, "how long a server may take for one operation before the caller gets an error")
	workers.flags.DurationVar(&s.WorkerIdleTimeout, "worker-idle-timeout", 10*time.Minute, "how long a worker process without work is kept")
	cluster.flags.StringVar(&s.Kubeconfig, "kubeconfig", "", "`file` that names the cluster (default the cluster that this process is a pod of, if it is)")
	logging.flags.IntVarP(&s.verbosity, "v", "v", 2, "log `level`: 0 failures, 2 changes, 4 every call, 5 debugging")
	logging.flags.StringVar(&s.logFormat, "log-format", "text", "`format` of the log: text or json")
	return []group{serving, workers, cluster, logging}
}

func (s *settings) controllerGroup() group {
	g := newGroup("Controller")
	g.flags.StringVar(&s.Controller.InstanceID, "instance-id", "", "`id` of this installation, for clusters that share an export (default the driver's name)")
	g.flags.StringArrayVar(&s.Controller.Exports, "export", nil, "`export` to know from the start, \"server:/share [option,option]\", besides those that the cluster names; repeatable, in the environment one per line")
	g.flags.IntVar(&s.Controller.PurgeRate, "purge-rate", 2000, "deleted `files` to unlink per second on one export; 0 for no limit")
	g.flags.IntVar(&s.Controller.PurgeConcurrency, "purge-concurrency", 4, "deleted `files` of one export to unlink at once")
	g.flags.StringVar(&s.Controller.AdminEndpoint, "admin-endpoint", "", "`socket` for ctl: unix:///path; empty for none")
	return g
}

func (s *settings) nodeGroup() group {
	g := newGroup("Node")
	g.flags.StringVar(&s.Node.NodeID, "node-id", "", "`name` of this Kubernetes node")
	g.flags.StringVar(&s.Node.KubeletRegistrationDir, "kubelet-registration-dir", "", "`directory` where the kubelet looks for plugins (its plugins_registry); empty for no registration")
	g.flags.StringVar(&s.Node.KubeletCSISocket, "kubelet-csi-socket", "", "`path` of the CSI socket as the kubelet sees it (default that of --endpoint)")
	g.flags.StringVar(&s.Node.StartupTaint, "startup-taint", "", "`key` of the taint to remove from the node once the kubelet has registered the driver; empty for none")
	return g
}

// envName is the environment variable of a flag.
func envName(flag string) string {
	return "NFS_CSI_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// envNames are all variables that set a flag; the first that is set counts.
// Those without our prefix are what the CSI specification and common manifests use.
func envNames(flag string) []string {
	names := []string{envName(flag)}
	switch flag {
	case "endpoint":
		names = append(names, "CSI_ENDPOINT")
	case "node-id":
		names = append(names, "NODE_ID", "KUBE_NODE_NAME")
	}
	return names
}

// addGroups adds the flags to the command and has its help show them in groups,
// each with its environment variables.
func addGroups(c *cobra.Command, groups []group) {
	c.Flags().SortFlags = false
	for _, g := range groups {
		g.flags.SortFlags = false
		g.flags.VisitAll(func(f *pflag.Flag) { f.Usage += " [$" + strings.Join(envNames(f.Name), ", $") + "]" })
		c.Flags().AddFlagSet(g.flags)
	}
	c.SetUsageFunc(func(c *cobra.Command) error {
		out := c.OutOrStderr()
		_, _ = fmt.Fprintf(out, "Usage:\n  %s\n\nExamples:\n%s\n", c.UseLine(), c.Example)
		for _, g := range groups {
			_, _ = fmt.Fprintf(out, "\n%s:\n%s", g.title, g.flags.FlagUsagesWrapped(100))
		}
		return nil
	})
}

// applyEnvironment sets the flags that the command line did not.
func applyEnvironment(flags *pflag.FlagSet) error {
	var failed error
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed || failed != nil {
			return
		}
		for _, name := range envNames(f.Name) {
			value, ok := os.LookupEnv(name)
			if !ok {
				continue
			}
			values := []string{value}
			if f.Value.Type() == "stringArray" {
				values = nonEmpty(strings.Split(value, "\n"))
			}
			for _, v := range values {
				if err := flags.Set(f.Name, v); err != nil {
					failed = fmt.Errorf("environment variable %s: %w", name, err)
					return
				}
			}
			return
		}
	})
	return failed
}

func nonEmpty(lines []string) []string {
	var out []string
	for _, l := range lines {
		if l = strings.TrimSpace(l); l != "" {
			out = append(out, l)
		}
	}
	return out
}

// setupLogging has klog write in the format, at the level given as a number.
func setupLogging(w io.Writer, format, level string) error {
	v := 2
	if level != "" {
		var err error
		if v, err = strconv.Atoi(level); err != nil || v < 0 || v > 10 {
			return fmt.Errorf("--v %q is not a number between 0 and 10", level)
		}
	}
	var logger klog.Logger
	switch format {
	case "", "text":
		logger = textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(w), textlogger.Verbosity(v)))
	case "json":
		// logr's V(n) is slog's level -n.
		logger = logr.FromSlogHandler(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: slog.Level(-v)}))
	default:
		return fmt.Errorf("--log-format %q is neither text nor json", format)
	}
	var global klog.Level
	if err := global.Set(strconv.Itoa(v)); err != nil {
		return err
	}
	klog.SetLoggerWithOptions(logger, klog.ContextualLogger(true))
	return nil
}
