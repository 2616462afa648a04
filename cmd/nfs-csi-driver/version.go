package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/nfs-csi/nfs-csi-driver/pkg/driver"
)

// The linker sets these (-X main.version=...).
var (
	version string
	commit  string
)

// currentBuild returns what the linker or else the Go command wrote into the
// binary.
func currentBuild() driver.Build {
	b := driver.Build{Version: version, Commit: commit}
	if info, ok := debug.ReadBuildInfo(); ok {
		if b.Version == "" {
			b.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && b.Commit == "" {
				b.Commit = s.Value
			}
		}
	}
	if b.Version == "" {
		b.Version = "(devel)"
	}
	if b.Commit == "" {
		b.Commit = "unknown"
	}
	return b
}

func versionCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version, commit and Go version of this binary",
		Args:  noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			build := currentBuild()
			switch output {
			case "text":
				_, err := fmt.Fprintf(c.OutOrStdout(), "nfs-csi-driver %s\ncommit: %s\ngo: %s\n", build.Version, build.Commit, runtime.Version())
				return err
			case "json":
				return json.NewEncoder(c.OutOrStdout()).Encode(struct {
					driver.Build
					Go string `json:"go"`
				}{build, runtime.Version()})
			}
			return usageError{fmt.Errorf("--output %q is neither text nor json", output)}
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "text", "`format`: text or json")
	return c
}
