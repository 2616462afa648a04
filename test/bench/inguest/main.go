// Command inguest takes the benchmark's measurements. It runs in a client guest
// of the lab, where it first measures bare operations on a mount of the export,
// then the same work done by the driver, and writes a report as JSON.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/test/bench/report"
)

func main() {
	var b bench
	var out, sources string
	flag.StringVar(&b.binary, "driver", "", "path of the driver's binary")
	flag.StringVar(&b.server, "server", "", "IPv4 address of the NFS server")
	flag.StringVar(&b.share, "share", "", "exported path, on XFS")
	flag.StringVar(&b.ext4, "ext4", "", "exported path on ext4")
	flag.StringVar(&b.client, "client", "", "IPv4 address of this guest")
	flag.IntVar(&b.filled, "filled", 0, "number of directories filled/<n> on the share, full of files, that become volumes")
	flag.StringVar(&out, "out", "", "file for the report")
	flag.StringVar(&sources, "sources", "", "instead, on the server: make what is copied in this `directory`")
	big := flag.Bool("big", false, "with -sources: a large file, too")
	flag.StringVar(&b.only, "only", "", "the one `step` to take")
	flag.Parse()
	if sources != "" {
		if err := makeSources(sources, *big); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	err := b.run(ctx)
	if logs := os.CopyFS("/out/driver-logs", os.DirFS(logDir)); logs != nil {
		fmt.Fprintln(os.Stderr, "bench: the driver's logs are lost:", logs)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1) //nolint:gocritic // the context ends with the process
	}
	data, err := json.MarshalIndent(report.Report{Rows: b.rows}, "", "  ")
	if err == nil {
		err = os.WriteFile(out, append(data, '\n'), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
