package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// maxBytes is what the image may hold, unpacked.
const maxBytes = 35_000_000

// machines says which ELF machine belongs to which Go architecture.
var machines = map[string]elf.Machine{
	"amd64":   elf.EM_X86_64,
	"arm64":   elf.EM_AARCH64,
	"ppc64le": elf.EM_PPC64,
	"riscv64": elf.EM_RISCV,
	"s390x":   elf.EM_S390,
}

// buildImage returns the image of the stage with that binary in its one layer.
// The same input gives the same image, byte for byte: all times are zero.
func buildImage(s stage, binary, arch string) (v1.Image, error) {
	data, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{
		Name:    strings.TrimPrefix(s.file, "/"),
		Mode:    0o755,
		Size:    int64(len(data)),
		ModTime: time.Unix(0, 0),
	}); err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buf.Bytes())), nil
	})
	if err != nil {
		return nil, err
	}
	img, err := mutate.Append(empty.Image, mutate.Addendum{
		Layer:   layer,
		History: v1.History{CreatedBy: "COPY " + path.Base(s.file) + " " + s.file},
	})
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	config.Created = v1.Time{Time: time.Unix(0, 0).UTC()}
	config.Config = v1.Config{Labels: s.labels, User: s.user, Entrypoint: s.entrypoint}
	return mutate.ConfigFile(img, config)
}

// report is what checkImage found.
type report struct {
	platform string
	bytes    int64
}

// checkImage refuses an image whose digests do not fit its content, that is
// too large, or whose entrypoint cannot run in it.
func checkImage(img v1.Image) (report, error) {
	if err := validate.Image(img); err != nil {
		return report{}, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return report{}, err
	}
	if len(config.Config.Entrypoint) == 0 {
		return report{}, errors.New("the image has no entrypoint")
	}
	r := report{platform: config.OS + "/" + config.Architecture}
	entrypoint := strings.TrimPrefix(config.Config.Entrypoint[0], "/")
	found := false
	files := mutate.Extract(img)
	defer files.Close()
	for t := tar.NewReader(files); ; {
		header, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return report{}, err
		}
		r.bytes += header.Size
		if path.Clean(header.Name) != entrypoint {
			continue
		}
		found = true
		data, err := io.ReadAll(t)
		if err != nil {
			return report{}, err
		}
		if err := checkBinary(data, header.FileInfo().Mode(), config.Architecture); err != nil {
			return report{}, fmt.Errorf("/%s: %w", entrypoint, err)
		}
	}
	switch {
	case !found:
		return report{}, fmt.Errorf("the image lacks its entrypoint /%s", entrypoint)
	case r.bytes >= maxBytes:
		return report{}, fmt.Errorf("the image holds %d bytes, not less than %d", r.bytes, maxBytes)
	}
	return r, nil
}

// checkBinary refuses what cannot run in an image without a C library.
func checkBinary(data []byte, mode os.FileMode, arch string) error {
	if mode.Perm()&0o111 != 0o111 {
		return fmt.Errorf("mode %v lets not everybody run it", mode)
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return err
	}
	if want, ok := machines[arch]; !ok || f.Machine != want {
		return fmt.Errorf("built for %v, but the image is for %s", f.Machine, arch)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("linked dynamically; build it with CGO_ENABLED=0")
		}
	}
	return nil
}
