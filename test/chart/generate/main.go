// Command generate writes what is made from the Helm chart: run it after every
// change to charts/nfs-csi-driver or to the values in testdata/matrix.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	chart "github.com/nfs-csi/nfs-csi-driver/test/chart"
)

func main() {
	// go run -C test/chart sets the working directory.
	if err := run("../.."); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run(root string) error {
	files, err := chart.Generated(root)
	if err != nil {
		return err
	}
	for name, data := range files {
		target := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(target, data, 0o644); err != nil {
			return err
		}
	}
	stale, err := chart.Stale(root, files)
	if err != nil {
		return err
	}
	for _, name := range stale {
		if err := os.Remove(filepath.Join(root, name)); err != nil {
			return err
		}
	}
	return nil
}
