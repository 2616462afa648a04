// Command bench measures the driver in the lab against bare operations of the
// same run: a table on standard output, the figures in out/bench.json. It
// exits with 1 when a bound is missed.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nfs-csi/nfs-csi-driver/test/bench/report"
	"github.com/nfs-csi/nfs-csi-driver/test/lab"
	"github.com/nfs-csi/nfs-csi-driver/test/testbed"
)

const (
	budget  = 25 * time.Minute
	share   = "/srv/xfs"
	ext4    = "/srv/ext4"
	inguest = "github.com/nfs-csi/nfs-csi-driver/test/bench/inguest"
	// filled directories of files each are made on the server, to become the
	// content of volumes.
	filled, files = 10, 100_000
)

func main() {
	only := flag.String("only", "", "measure only this: mounts, copies or volumes")
	flag.Parse()
	testbed.Main("bench", budget, func(ctx context.Context) error { return run(ctx, *only) })
}

func run(ctx context.Context, only string) (err error) {
	if !slices.Contains([]string{"", "mounts", "copies", "volumes"}, only) {
		return fmt.Errorf("-only=%s: it is mounts, copies or volumes", only)
	}
	bed, err := testbed.Start(ctx, testbed.Options{
		Name:     "bench",
		Clients:  1,
		Exports:  []lab.ExportSpec{{Path: share, FS: lab.XFS, SizeMB: 6144}, {Path: ext4, FS: lab.Ext4, SizeMB: 3072}},
		Log:      os.Stderr,
		Programs: []string{inguest},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	if err := fill(ctx, bed, only); err != nil {
		return err
	}
	client := bed.Clients[0]
	err = client.Run(ctx, lab.Cmd{
		Args: []string{
			bed.Path("inguest"),
			"-driver=" + bed.Path("nfs-csi-driver"),
			"-server=" + bed.Server.IPv4(),
			"-client=" + client.IPv4(),
			"-share=" + share,
			"-ext4=" + ext4,
			fmt.Sprintf("-filled=%d", filled),
			"-only=" + only,
			"-out=/out/bench.json",
		},
		Stdout: os.Stderr,
		Stderr: os.Stderr,
	})
	if err != nil {
		return fmt.Errorf("%w (the driver's logs are in %s)", err, bed.OutDir())
	}
	return publish(filepath.Join(bed.OutDir(), "bench.json"))
}

// fill makes on the server what becomes the content of volumes.
func fill(ctx context.Context, bed *testbed.Bed, only string) error {
	if only == "" || only == "copies" {
		fmt.Fprintln(os.Stderr, "making what is to be copied on the server")
		for to, big := range map[string]bool{share: true, ext4: false} {
			if _, err := bed.Server.Output(ctx, bed.Path("inguest"), "-sources="+to, fmt.Sprintf("-big=%t", big)); err != nil {
				return err
			}
		}
	}
	if only != "" && only != "volumes" {
		return nil
	}
	fmt.Fprintf(os.Stderr, "making %d directories of %d files on the server\n", filled, files)
	group, ctx := errgroup.WithContext(ctx)
	for i := range filled {
		group.Go(func() error {
			script := fmt.Sprintf("mkdir -p %[1]s/filled/%[2]d && cd %[1]s/filled/%[2]d && seq %[3]d | xargs touch", share, i, files)
			_, err := bed.Server.Output(ctx, "sh", "-c", script)
			return err
		})
	}
	return group.Wait()
}

// publish copies the report to out/, prints it, and says what was missed.
func publish(from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	var r report.Report
	if err := json.Unmarshal(data, &r); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	if err := os.MkdirAll("out", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join("out", "bench.json"), data, 0o644); err != nil {
		return err
	}
	if err := r.Print(os.Stdout); err != nil {
		return err
	}
	if missed := r.Missed(); len(missed) > 0 {
		return fmt.Errorf("%d of %d bounds missed: %s", len(missed), r.Bounds(), strings.Join(missed, "; "))
	}
	fmt.Printf("all %d bounds met\n", r.Bounds())
	return nil
}
