package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// Names of the images that every node has.
const (
	// PauseImage holds the namespaces of a pod.
	PauseImage = "registry.k8s.io/pause:lab"
	// BusyboxImage is a shell and Debian's busybox-static, under the name that the examples in
	// deploy/kubernetes use: they run here as they are.
	BusyboxImage = "docker.io/library/busybox:1.37"
)

// image is a container image of one layer.
type image struct {
	name       string
	files      map[string]file // by path without a leading slash
	entrypoint []string
	cmd        []string
}

// file is a regular file from the host, a directory, a symbolic link or a literal text.
type file struct {
	mode fs.FileMode
	host string // path of the contents
	link string
	text string
}

// sidecars are the programs of the Kubernetes CSI project that run beside a controller.
func sidecars() []string {
	return []string{"csi-provisioner", "csi-resizer", "csi-snapshotter", "snapshot-controller"}
}

// SidecarImage is the official name of a sidecar's image, as its project publishes it:
// csi-provisioner, csi-resizer, csi-snapshotter or snapshot-controller.
func (c *Cluster) SidecarImage(name string) string {
	return "registry.k8s.io/sig-storage/" + name + ":" + c.programs[name].version
}

// sidecarImage is like the project's own: the program is the entry point. The projects' images
// have root as their user.
func sidecarImage(name, ref string, p program) image {
	return image{name: ref, entrypoint: []string{"/" + name}, files: map[string]file{
		name:  {mode: 0o755, host: p.path},
		"tmp": {mode: fs.ModeDir | fs.ModeSticky | 0o777},
	}}
}

func pauseImage(binary string) image {
	return image{name: PauseImage, entrypoint: []string{"/pause"}, files: map[string]file{
		"pause": {mode: 0o755, host: binary},
	}}
}

func busyboxImage() (image, error) {
	binary, err := exec.LookPath("busybox")
	if err != nil {
		return image{}, fmt.Errorf("image busybox: %w", err)
	}
	if err := requireStatic(binary); err != nil {
		return image{}, fmt.Errorf("image busybox: %w; install Debian's busybox-static", err)
	}
	applets, err := exec.Command(binary, "--list").Output()
	if err != nil {
		return image{}, fmt.Errorf("image busybox: list its programs: %w", err)
	}
	files := map[string]file{
		"bin":         {mode: fs.ModeDir | 0o755},
		"bin/busybox": {mode: 0o755, host: binary},
		"etc":         {mode: fs.ModeDir | 0o755},
		"etc/passwd":  {mode: 0o644, text: "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"},
		"etc/group":   {mode: 0o644, text: "root:x:0:\nnogroup:x:65534:\n"},
		"root":        {mode: fs.ModeDir | 0o700},
		"tmp":         {mode: fs.ModeDir | fs.ModeSticky | 0o777},
	}
	for name := range strings.FieldsSeq(string(applets)) {
		if name != "busybox" {
			files["bin/"+name] = file{mode: fs.ModeSymlink | 0o777, link: "busybox"}
		}
	}
	return image{name: BusyboxImage, files: files, cmd: []string{"sh"}}, nil
}

// requireStatic refuses a program that needs libraries, which an image has not.
func requireStatic(program string) error {
	f, err := elf.Open(program)
	if err != nil {
		return fmt.Errorf("look at %s: %w", program, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is not a static program", program)
		}
	}
	return nil
}

// write writes the image as a docker-archive, the format of `docker save`: a manifest, a
// configuration and a layer, which is a tar in the tar.
func (i image) write(w io.Writer) error {
	layer, err := os.CreateTemp("", "layer-")
	if err != nil {
		return fmt.Errorf("image %s: %w", i.name, err)
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	digest := sha256.New()
	if err := i.writeLayer(io.MultiWriter(layer, digest)); err != nil {
		return fmt.Errorf("image %s: %w", i.name, err)
	}
	size, err := layer.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = layer.Seek(0, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", i.name, err)
	}
	config, err := json.Marshal(object{
		"architecture": "amd64",
		"os":           "linux",
		"config":       object{"Entrypoint": i.entrypoint, "Cmd": i.cmd, "Env": []string{"PATH=/bin:/"}},
		"rootfs":       object{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", digest.Sum(nil))}},
	})
	if err != nil {
		return fmt.Errorf("image %s: %w", i.name, err)
	}
	configName := fmt.Sprintf("%x.json", sha256.Sum256(config))
	manifest, err := json.Marshal([]object{{
		"Config": configName, "RepoTags": []string{i.name}, "Layers": []string{"layer.tar"},
	}})
	if err != nil {
		return fmt.Errorf("image %s: %w", i.name, err)
	}
	tw := tar.NewWriter(w)
	for _, part := range []struct {
		name string
		size int64
		r    io.Reader
	}{
		{"manifest.json", int64(len(manifest)), bytes.NewReader(manifest)},
		{configName, int64(len(config)), bytes.NewReader(config)},
		{"layer.tar", size, layer},
	} {
		err := tw.WriteHeader(&tar.Header{Name: part.name, Mode: 0o644, Size: part.size})
		if err == nil {
			_, err = io.Copy(tw, part.r)
		}
		if err != nil {
			return fmt.Errorf("image %s: %w", i.name, err)
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("image %s: %w", i.name, err)
	}
	return nil
}

func (i image) writeLayer(w io.Writer) error {
	tw := tar.NewWriter(w)
	for _, name := range sortedKeys(i.files) {
		f := i.files[name]
		if err := f.writeTo(tw, path.Clean(name)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return tw.Close()
}

func (f file) writeTo(tw *tar.Writer, name string) error {
	header := &tar.Header{Name: name, Mode: int64(f.mode.Perm())}
	if f.mode&fs.ModeSticky != 0 {
		header.Mode |= 0o1000
	}
	var contents io.Reader
	switch {
	case f.mode.IsDir():
		header.Typeflag, header.Name = tar.TypeDir, name+"/"
	case f.link != "":
		header.Typeflag, header.Linkname = tar.TypeSymlink, f.link
	case f.host != "":
		src, err := os.Open(f.host)
		if err != nil {
			return err
		}
		defer src.Close()
		info, err := src.Stat()
		if err != nil {
			return err
		}
		header.Typeflag, header.Size, contents = tar.TypeReg, info.Size(), src
	default:
		header.Typeflag, header.Size, contents = tar.TypeReg, int64(len(f.text)), strings.NewReader(f.text)
	}
	if err := tw.WriteHeader(header); err != nil {
		return err
	}
	if contents == nil {
		return nil
	}
	_, err := io.Copy(tw, contents)
	return err
}

// save writes the image to a new file in a directory.
func (i image) save(dir string) (_ string, err error) {
	f, err := os.CreateTemp(dir, "image-*.tar")
	if err != nil {
		return "", fmt.Errorf("image %s: %w", i.name, err)
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			os.Remove(f.Name())
		}
	}()
	return filepath.Clean(f.Name()), i.write(f)
}
