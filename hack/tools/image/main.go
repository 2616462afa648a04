// Command image builds the container image of this project without a container
// engine, and checks an image that anything built.
//
//	image build -dockerfile Dockerfile -binary FILE -arch ARCH [-build-arg KEY=VALUE]... TAR NAME
//	image check TAR NAME
//
// TAR is a docker-archive, which docker load, podman load and ctr images import
// read; NAME is the name and tag of the image in it.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("no command given: build or check")
	}
	flags := flag.NewFlagSet("image "+args[0], flag.ContinueOnError)
	dockerfile := flags.String("dockerfile", "Dockerfile", "file whose last stage is built")
	binary := flags.String("binary", "", "static binary that the image holds")
	arch := flags.String("arch", "", "architecture of the binary, as Go calls it")
	buildArgs := map[string]string{}
	flags.Func("build-arg", "`KEY=VALUE` of an ARG; repeatable", func(s string) error {
		key, value, ok := strings.Cut(s, "=")
		if !ok {
			return fmt.Errorf("%q is not KEY=VALUE", s)
		}
		buildArgs[key] = value
		return nil
	})
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if flags.NArg() != 2 {
		return fmt.Errorf("%s takes TAR and NAME, not %d arguments", args[0], flags.NArg())
	}
	tar := flags.Arg(0)
	tag, err := name.NewTag(flags.Arg(1))
	if err != nil {
		return fmt.Errorf("image name: %w", err)
	}

	switch args[0] {
	case "build":
		f, err := os.Open(*dockerfile)
		if err != nil {
			return err
		}
		defer f.Close()
		s, err := parseStage(f, buildArgs)
		if err != nil {
			return fmt.Errorf("%s: %w", *dockerfile, err)
		}
		img, err := buildImage(s, *binary, *arch)
		if err != nil {
			return err
		}
		return tarball.WriteToFile(tar, tag, img)
	case "check":
		img, err := tarball.ImageFromPath(tar, &tag)
		if err != nil {
			return fmt.Errorf("%s: %w", tar, err)
		}
		r, err := checkImage(img)
		if err != nil {
			return fmt.Errorf("%s: %w", tar, err)
		}
		_, err = fmt.Fprintf(out, "%s: %s %s, %.1f MB unpacked, limit %d MB\n", tar, flags.Arg(1), r.platform, float64(r.bytes)/1e6, maxBytes/1_000_000)
		return err
	}
	return fmt.Errorf("unknown command %q: build or check", args[0])
}
