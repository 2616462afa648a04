package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

const dockerfile = `
# comment
FROM golang AS build
RUN anything goes here
FROM scratch
ARG VERSION=dev
LABEL a="b c" \
      # a comment between the lines
      version="${VERSION}"
COPY --from=build /x /bin/x
USER 0:0
ENTRYPOINT ["/bin/x", "serve"]
`

func TestParseStage(t *testing.T) {
	got, err := parseStage(strings.NewReader(dockerfile), map[string]string{"VERSION": "v1"})
	if err != nil {
		t.Fatal(err)
	}
	want := stage{
		labels:     map[string]string{"a": "b c", "version": "v1"},
		user:       "0:0",
		entrypoint: []string{"/bin/x", "serve"},
		file:       "/bin/x",
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(stage{})); diff != "" {
		t.Errorf("stage differs (-want +got):\n%s", diff)
	}
}

func TestParseStageRefuses(t *testing.T) {
	for what, c := range map[string]struct{ file, want string }{
		"no scratch":    {"FROM debian\n", "not FROM scratch"},
		"instruction":   {dockerfile + "VOLUME /data\n", "VOLUME /data: not understood"},
		"two copies":    {dockerfile + "COPY --from=build /y /y\n", "only one file"},
		"copy context":  {"FROM scratch\nCOPY x y\n", "only one file"},
		"label":         {dockerfile + "LABEL a=b\n", "not of the form"},
		"entrypoint":    {"FROM scratch\nENTRYPOINT /bin/x\n", "ENTRYPOINT /bin/x"},
		"no entrypoint": {"FROM scratch\nCOPY --from=build /x /x\n", "no COPY or no ENTRYPOINT"},
		"cut off":       {dockerfile + "LABEL a=\"b\" \\\n", "nothing follows"},
	} {
		t.Run(what, func(t *testing.T) {
			if _, err := parseStage(strings.NewReader(c.file), nil); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want one with %q", err, c.want)
			}
		})
	}
}

// The project's own Dockerfile builds, twice the same, and what it says is in
// the archive that comes out.
func TestBuildAndCheck(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, fakeELF(t, elf.EM_AARCH64, elf.PT_LOAD), 0o600); err != nil {
		t.Fatal(err)
	}
	var archives [2][]byte
	for i := range archives {
		tar := filepath.Join(dir, "image.tar")
		err := run([]string{"build", "-dockerfile", "../../../Dockerfile", "-binary", program, "-arch", "arm64", "-build-arg", "VERSION=v1.2.3", tar, "nfs-csi/nfs-csi-driver:v1.2.3"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if archives[i], err = os.ReadFile(tar); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("two builds of the same input differ")
	}

	var out strings.Builder
	if err := run([]string{"check", filepath.Join(dir, "image.tar"), "nfs-csi/nfs-csi-driver:v1.2.3"}, &out); err != nil {
		t.Error(err)
	}
	if !strings.Contains(out.String(), "linux/arm64") {
		t.Errorf("check printed %q, which does not name linux/arm64", out.String())
	}
	img, err := tarball.ImageFromPath(filepath.Join(dir, "image.tar"), nil)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if got := config.Config.Labels["org.opencontainers.image.version"]; got != "v1.2.3" {
		t.Errorf("version label is %q, want v1.2.3", got)
	}
	if diff := cmp.Diff([]string{"/nfs-csi-driver"}, config.Config.Entrypoint); diff != "" {
		t.Errorf("entrypoint differs (-want +got):\n%s", diff)
	}
}

func TestCheckRefuses(t *testing.T) {
	s := stage{file: "/x", entrypoint: []string{"/x"}}
	static := fakeELF(t, elf.EM_X86_64, elf.PT_LOAD)
	for what, c := range map[string]struct {
		binary []byte
		arch   string
		change func(*v1.Config)
		want   string
	}{
		"architecture":       {static, "arm64", nil, "the image is for arm64"},
		"no architecture":    {static, "", nil, "the image is for"},
		"dynamic":            {fakeELF(t, elf.EM_X86_64, elf.PT_INTERP), "amd64", nil, "linked dynamically"},
		"script":             {[]byte("#!/bin/sh\n# a shell script is no program here\n"), "amd64", nil, "bad magic number"},
		"large":              {append(bytes.Clone(static), make([]byte, maxBytes)...), "amd64", nil, "not less than"},
		"no entrypoint":      {static, "amd64", func(c *v1.Config) { c.Entrypoint = nil }, "no entrypoint"},
		"missing entrypoint": {static, "amd64", func(c *v1.Config) { c.Entrypoint = []string{"/y"} }, "lacks its entrypoint /y"},
	} {
		t.Run(what, func(t *testing.T) {
			program := filepath.Join(t.TempDir(), "program")
			if err := os.WriteFile(program, c.binary, 0o600); err != nil {
				t.Fatal(err)
			}
			img, err := buildImage(s, program, c.arch)
			if err != nil {
				t.Fatal(err)
			}
			if c.change != nil {
				config, err := img.ConfigFile()
				if err != nil {
					t.Fatal(err)
				}
				changed := *config.Config.DeepCopy()
				c.change(&changed)
				if img, err = mutate.Config(img, changed); err != nil {
					t.Fatal(err)
				}
			}
			archive := filepath.Join(t.TempDir(), "image.tar")
			if err := tarball.WriteToFile(archive, name.MustParseReference("x:y"), img); err != nil {
				t.Fatal(err)
			}
			if err := run([]string{"check", archive, "x:y"}, nil); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want one with %q", err, c.want)
			}
		})
	}
}

// fakeELF returns the headers of an executable for that machine with one
// segment of that type.
func fakeELF(t *testing.T, machine elf.Machine, segment elf.ProgType) []byte {
	t.Helper()
	header := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64,
	}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
	header.Ident[elf.EI_DATA] = byte(elf.ELFDATA2LSB)
	header.Ident[elf.EI_VERSION] = byte(elf.EV_CURRENT)
	var buf bytes.Buffer
	for _, part := range []any{header, elf.Prog64{Type: uint32(segment)}} {
		if err := binary.Write(&buf, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	return buf.Bytes()
}
