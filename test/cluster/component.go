package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

// component is a program of the cluster that is built from a Go module.
type component struct {
	name    string // of the program
	module  string
	pkg     string // within the module; none is the module's own
	version string // variable that the linker sets to the version, if the program needs that
	dir     string // of the module that pins it, below the directory build
}

func components() []component {
	const (
		kubernetes  = "k8s.io/kubernetes"
		containerd  = "github.com/containerd/containerd/v2"
		provisioner = "github.com/kubernetes-csi/external-provisioner/v6"
		resizer     = "github.com/kubernetes-csi/external-resizer/v2"
		snapshotter = "github.com/kubernetes-csi/external-snapshotter/v8"
		helm        = "helm.sh/helm/v4"

		// Clients refuse a server whose version they cannot parse.
		kubernetesVersion = "k8s.io/component-base/version.gitVersion"
		helmVersion       = helm + "/internal/version.version"
		sidecarVersion    = "main.version"
	)
	return []component{
		{name: "etcd", module: "go.etcd.io/etcd/server/v3"},
		{name: "kube-apiserver", module: kubernetes, pkg: "cmd/kube-apiserver", version: kubernetesVersion},
		{name: "kube-controller-manager", module: kubernetes, pkg: "cmd/kube-controller-manager", version: kubernetesVersion},
		{name: "kube-scheduler", module: kubernetes, pkg: "cmd/kube-scheduler", version: kubernetesVersion},
		{name: "kubelet", module: kubernetes, pkg: "cmd/kubelet", version: kubernetesVersion},
		{name: "kubectl", module: kubernetes, pkg: "cmd/kubectl", version: kubernetesVersion},
		{name: "containerd", module: containerd, pkg: "cmd/containerd"},
		{name: "containerd-shim-runc-v2", module: containerd, pkg: "cmd/containerd-shim-runc-v2"},
		{name: "ctr", module: containerd, pkg: "cmd/ctr"},
		{name: "helm", module: helm, pkg: "cmd/helm", version: helmVersion},
		{name: "csi-resizer", module: resizer, pkg: "cmd/csi-resizer", version: sidecarVersion},
		{name: "csi-snapshotter", module: snapshotter, pkg: "cmd/csi-snapshotter", version: sidecarVersion},
		{name: "snapshot-controller", module: snapshotter, pkg: "cmd/snapshot-controller", version: sidecarVersion},
		// It does not compile with the client libraries of the others.
		{name: "csi-provisioner", module: provisioner, pkg: "cmd/csi-provisioner", version: sidecarVersion, dir: "csi-provisioner"},
	}
}

// programs are built components: where each is, and of which version.
type programs map[string]program

type program struct {
	path    string
	version string // of its module, like v1.37.2
}

// Build compiles every component that the cache does not hold, and says on log what it does. It
// takes half an hour on two cores when nothing is there. Builds on one machine wait for each
// other.
func Build(ctx context.Context, log io.Writer) error {
	_, err := build(ctx, &logger{w: log})
	return err
}

// Missing returns the names of the programs that the cache does not hold: what Build would build.
func Missing(ctx context.Context) ([]string, error) {
	p, err := newPlan(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, c := range p.missing() {
		names = append(names, c.name)
	}
	return names, nil
}

// plan is where every program is or will be.
type plan struct {
	source, cache string // directories
	programs      programs
}

func newPlan(ctx context.Context) (*plan, error) {
	source, err := buildDir()
	if err != nil {
		return nil, err
	}
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	p := &plan{source: source, cache: cache, programs: make(programs)}
	pinned := make(map[string]*pins)
	for _, c := range components() {
		if pinned[c.dir] == nil {
			if pinned[c.dir], err = readPins(ctx, filepath.Join(source, c.dir), c.dir); err != nil {
				return nil, err
			}
		}
		pins := pinned[c.dir]
		// The digest is there because a version is not all: other modules go into a program, too.
		dir := filepath.Join(cache, fmt.Sprintf("%s-%s-%s", c.name, pins.versions[c.module], pins.digest))
		p.programs[c.name] = program{path: filepath.Join(dir, c.name), version: pins.versions[c.module]}
	}
	return p, nil
}

func (p *plan) missing() []component {
	return slices.DeleteFunc(components(), func(c component) bool {
		_, err := os.Stat(p.programs[c.name].path)
		return err == nil
	})
}

func build(ctx context.Context, log *logger) (programs, error) {
	p, err := newPlan(ctx)
	if err != nil {
		return nil, err
	}
	if len(p.missing()) == 0 {
		return p.programs, nil
	}
	unlock, err := p.lock(ctx, log)
	if err != nil {
		return nil, err
	}
	defer unlock()
	missing := p.missing() // another build may have had the lock
	start := time.Now()
	log.printf("building %d programs from Go modules, once for this version of them", len(missing))
	log.printf("it takes up to 1 GB in %s, and up to 6 GB in Go's caches", p.cache)
	for i, c := range missing {
		program := p.programs[c.name]
		what := fmt.Sprintf("building %s %s (%d of %d)", c.name, program.version, i+1, len(missing))
		err := log.progress(what, start, func() error { return buildOne(ctx, filepath.Join(p.source, c.dir), c, program) })
		if err != nil {
			return nil, err
		}
	}
	return p.programs, nil
}

// lock waits for other builds. It also removes what builds left that were killed.
func (p *plan) lock(ctx context.Context, log *logger) (unlock func(), err error) {
	const name = "cluster.lock"
	once, cancel := context.WithCancel(ctx)
	cancel()
	if unlock, err = lab.LockFile(once, filepath.Join(p.cache, name)); errors.Is(err, context.Canceled) {
		log.printf("waiting for another build of the cluster's programs")
		unlock, err = lab.LockFile(ctx, filepath.Join(p.cache, name))
	}
	if err != nil {
		return nil, fmt.Errorf("wait for other builds: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(p.cache, unfinished+"*"))
	for _, dir := range left {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		unlock()
		return nil, fmt.Errorf("remove what a build left: %w", err)
	}
	return unlock, nil
}

// unfinished begins the names of directories of programs that are being built.
const unfinished = "cluster-build-"

// buildOne compiles one component; its directory appears whole or not at all.
func buildOne(ctx context.Context, source string, c component, p program) error {
	final := filepath.Dir(p.path)
	tmp, err := os.MkdirTemp(filepath.Dir(final), unfinished)
	if err != nil {
		return fmt.Errorf("build %s: %w", c.name, err)
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return fmt.Errorf("build %s: %w", c.name, err)
	}
	ldflags := "-s -w"
	if c.version != "" {
		ldflags += fmt.Sprintf(" -X %s=%s", c.version, p.version)
	}
	_, err = goTool(ctx, source, "build", "-trimpath", "-buildvcs=false", "-ldflags", ldflags,
		"-o", filepath.Join(tmp, c.name), path.Join(c.module, c.pkg))
	if err != nil {
		return fmt.Errorf("build %s: %w", c.name, err)
	}
	if err := os.Rename(tmp, final); err != nil {
		return fmt.Errorf("build %s: %w", c.name, err)
	}
	return nil
}

// goTool runs the go command in a directory and returns its standard output. What it needs of the
// environment is set: the flags of whoever calls are for another module.
func goTool(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=", "GOWORK=off")
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w: %s", args[0], errors.Join(err, ctx.Err()), bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// pins are what a module of the directory build says of its components.
type pins struct {
	versions map[string]string // of modules
	digest   string            // of everything but a component's version that decides what is built
}

func readPins(ctx context.Context, source, dir string) (*pins, error) {
	p := &pins{versions: make(map[string]string)}
	h := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return nil, fmt.Errorf("read the cluster's modules: %w", err)
		}
		h.Write(data)
	}
	fmt.Fprintln(h, runtime.Version())
	args := []string{"list", "-m", "-f", "{{.Path}} {{.Version}}"}
	for _, c := range components() {
		if c.dir == dir {
			fmt.Fprintln(h, c)
			args = append(args, c.module)
		}
	}
	p.digest = fmt.Sprintf("%x", h.Sum(nil))[:8]
	out, err := goTool(ctx, source, args...)
	if err != nil {
		return nil, fmt.Errorf("versions of the cluster's programs: %w", err)
	}
	for line := range strings.Lines(out) {
		if module, version, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			p.versions[module] = version
		}
	}
	return p, nil
}

// buildDir is the directory of the module that pins the components.
func buildDir() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	dir := filepath.Join(filepath.Dir(file), "build")
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); !ok || err != nil {
		return "", errors.New("the cluster builds its programs and needs its source (do not build it with -trimpath)")
	}
	return dir, nil
}

// cacheDir is where built programs stay.
func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil { // no HOME
		base = "/var/cache"
	}
	dir := filepath.Join(base, "nfs-csi-lab")
	if lab.GuestPath(dir) != dir {
		return "", fmt.Errorf("the cache %s is where guests have files of their own; set XDG_CACHE_HOME to another place", dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the cluster's cache: %w", err)
	}
	return dir, nil
}
