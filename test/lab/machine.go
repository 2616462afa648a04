package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Problem is something that the machine lacks.
type Problem struct {
	What    string // one sentence
	Package string // the Debian package that cures it, if one does
}

// Tool is a program that a lab needs on the machine, and the Debian package that has it.
type Tool struct{ Name, Package string }

// Check returns what this machine lacks to run a lab that needs more tools, or none more.
func Check(more ...Tool) []Problem {
	var problems []Problem
	add := func(pkg, format string, args ...any) {
		problems = append(problems, Problem{What: fmt.Sprintf(format, args...), Package: pkg})
	}
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		add("", "a lab needs Linux on x86-64, this is %s on %s", runtime.GOOS, runtime.GOARCH)
		return problems
	}
	if os.Geteuid() != 0 {
		add("", "a lab needs root for its network namespace")
	}
	if err := unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK); err != nil {
		add("", "a lab needs /dev/net/tun: %v", err)
	}
	if _, err := exec.LookPath("go"); err != nil {
		add("", "a lab needs the Go toolchain to compile its agent")
	}
	// Memory of the guests is a deleted file there.
	if free := FreeMemoryMB(); free < 1024 {
		add("", "a lab needs 1 GiB free in %s for the guests' memory, there are %d MiB", memoryDir, free)
	}
	for _, t := range append(tools(), more...) {
		if _, err := findTool(t.Name); err != nil {
			add(t.Package, "%s is missing (Debian package %s)", t.Name, t.Package)
		}
	}
	return problems
}

func tools() []Tool {
	return []Tool{
		{"linux.uml", "user-mode-linux"},
		{"ip", "iproute2"},
		{"taskset", "util-linux"},
		{"modprobe", "kmod"},
		{"mkfs.ext4", "e2fsprogs"},
		{"mkfs.xfs", "xfsprogs"},
		{"mount.nfs", "nfs-common"},
		{"nfsdcld", "nfs-common"},
		{"rpc.nfsd", "nfs-kernel-server"},
		{"rpcbind", "rpcbind"},
		{"busybox", "busybox-static"}, // its ping
	}
}

// findTool looks in PATH and where programs for root are, which may be missing from PATH.
func findTool(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(dir + "/" + name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

// Install installs the packages that cure problems and says on log what it does. It returns the
// problems that are left.
func Install(ctx context.Context, log io.Writer, more ...Tool) ([]Problem, error) {
	return install(ctx, &logger{w: log}, more)
}

func install(ctx context.Context, log *logger, more []Tool) ([]Problem, error) {
	var packages []string
	for _, p := range Check(more...) {
		if p.Package != "" && !slices.Contains(packages, p.Package) {
			packages = append(packages, p.Package)
		}
	}
	if len(packages) == 0 || os.Geteuid() != 0 {
		return Check(more...), nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return Check(more...), nil
	}
	// Lists that cannot be updated, perhaps because something else does that now, may do.
	updated := aptGet(ctx, log, "update")
	if err := aptGet(ctx, log, append([]string{"install", "-y", "--no-install-recommends"}, packages...)...); err != nil {
		return Check(more...), errors.Join(err, updated)
	}
	return Check(more...), nil
}

func aptGet(ctx context.Context, log *logger, args ...string) error {
	log.printf("apt-get %s", strings.Join(args, " "))
	// A machine that has just started often installs updates by itself.
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q", "-o", "DPkg::Lock::Timeout=600"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w: %s", args[0], err, lastLines(string(out), 10))
	}
	return nil
}

// Prepare makes the machine ready for a lab that needs more tools, or none more, or says in one
// error what is missing. It says on log what it installs. Start does the same; to prepare before
// is for those who do something long before that.
func Prepare(ctx context.Context, log io.Writer, more ...Tool) error {
	return prepare(ctx, &logger{w: log}, more)
}

// prepare makes the machine ready for a lab or says in one error what is missing.
func prepare(ctx context.Context, log *logger, more []Tool) error {
	problems := Check(more...)
	if slices.ContainsFunc(problems, func(p Problem) bool { return p.Package != "" }) {
		var err error
		if problems, err = install(ctx, log, more); err != nil {
			return err
		}
	}
	if len(problems) == 0 {
		return nil
	}
	var what []string
	for _, p := range problems {
		what = append(what, p.What)
	}
	return fmt.Errorf("this machine cannot run a lab: %s", strings.Join(what, "; "))
}

// FreeMemoryMB is how much memory guests can take together before they fail: what is free in
// /dev/shm, in MiB.
func FreeMemoryMB() uint64 {
	var st unix.Statfs_t
	if err := unix.Statfs(memoryDir, &st); err != nil {
		return 0
	}
	return st.Bavail * uint64(st.Bsize) >> 20
}

// lastLines returns the last n lines of s.
func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
