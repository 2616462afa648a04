//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/test/lab/internal/wire"
)

// initGuest is process 1. When the guest cannot be made it ends the guest: if process 1 returned,
// the kernel would panic, and the reason would be far up in the log.
func initGuest() error {
	if err := makeGuest(); err != nil {
		fmt.Printf("lab agent: cannot make the guest: %v\n", err)
		return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	return reapAndServe()
}

func makeGuest() error {
	// For finding programs; the kernel gives process 1 no PATH.
	if err := os.Setenv("PATH", path); err != nil {
		return err
	}
	config, err := readConfig()
	if err != nil {
		return err
	}
	steps := []struct {
		what string
		do   func() error
	}{
		{"root file system", makeRoot},
		{"file systems", makeMounts},
		{"modules", linkModules},
		{"host directories", func() error { return mountHostDirs(config.Mounts) }},
		{"network", func() error { return configureNetwork(config) }},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	return nil
}

func readConfig() (*wire.Config, error) {
	data, err := os.ReadFile(os.Getenv(wire.ConfigVariable))
	if err != nil {
		return nil, fmt.Errorf("read the guest's configuration: %w", err)
	}
	config := new(wire.Config)
	if err := json.Unmarshal(data, config); err != nil {
		return nil, fmt.Errorf("parse the guest's configuration: %w", err)
	}
	return config, nil
}

// makeRoot puts a writable overlay over the host's file system, which is the root so far, and
// makes that the root. The host's own view stays at /host, read-only, so that what the guest
// covers with file systems of its own (/tmp, /run) can be reached there.
func makeRoot() error {
	release, err := kernelRelease()
	if err != nil {
		return err
	}
	// modprobe needs /lib/modules, which is not there before the overlay is.
	if err := loadModule("/usr/lib/uml/modules/" + release + "/kernel/fs/overlayfs/overlay.ko"); err != nil {
		return err
	}
	const base = "/run"
	if err := mount("tmpfs", base, "tmpfs", 0, "mode=0755,size=75%"); err != nil {
		return err
	}
	for _, d := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			return fmt.Errorf("make overlay directory: %w", err)
		}
	}
	if err := mount("overlay", base+"/root", "overlay", 0,
		"lowerdir=/,upperdir="+base+"/upper,workdir="+base+"/work"); err != nil {
		return err
	}
	if err := os.Chdir(base + "/root"); err != nil {
		return err
	}
	if err := os.MkdirAll("host", 0o755); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "host"); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// What the kernel and this function mounted on the old root does not belong in /host; the
	// overlay keeps its layers.
	for _, d := range []string{"/host/run", "/host/dev"} {
		if err := unix.Unmount(d, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
			return fmt.Errorf("unmount %s: %w", d, err)
		}
	}
	return nil
}

func makeMounts() error {
	const noexec = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	mounts := []struct {
		fs, dir string
		flags   uintptr
		data    string
	}{
		{"proc", "/proc", noexec, ""},
		{"sysfs", "/sys", noexec, ""},
		{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
		{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666"},
		{"tmpfs", "/dev/shm", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"tmpfs", "/tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", noexec, ""},
	}
	for _, m := range mounts {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", m.dir, err)
		}
		if err := mount(m.fs, m.dir, m.fs, m.flags, m.data); err != nil {
			return err
		}
	}
	if err := os.MkdirAll("/run/lock", 0o1777); err != nil {
		return err
	}
	// Kubelets and CSI drivers propagate mounts; systemd would have made the root shared.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	return nil
}

// linkModules lets modprobe, and the kernel through it, find the modules where Debian's package
// put them.
func linkModules() error {
	release, err := kernelRelease()
	if err != nil {
		return err
	}
	if err := os.MkdirAll("/lib/modules", 0o755); err != nil {
		return err
	}
	link := "/lib/modules/" + release
	if _, err := os.Lstat(link); err == nil {
		return nil
	}
	return os.Symlink("/usr/lib/uml/modules/"+release, link)
}

func mountHostDirs(mounts []wire.HostMount) error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.Guest, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", m.Guest, err)
		}
		var flags uintptr = unix.MS_NOSUID | unix.MS_NODEV
		if !m.Writable {
			flags |= unix.MS_RDONLY
		}
		if err := mount("none", m.Guest, "hostfs", flags, m.Host); err != nil {
			return fmt.Errorf("host directory %s: %w", m.Host, err)
		}
	}
	return nil
}

// configureNetwork sets the name, the addresses and the names of the other guests.
func configureNetwork(config *wire.Config) error {
	if err := unix.Sethostname([]byte(config.Hostname)); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	// A file of the overlay's upper layer, not the host's.
	if err := os.WriteFile("/etc/hosts", []byte(config.Hosts), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile("/etc/hostname", []byte(config.Hostname+"\n"), 0o644); err != nil {
		return err
	}
	if err := command("modprobe", "ipv6"); err != nil {
		return err
	}
	batch := []string{
		"link set lo up",
		"address add " + config.IPv4 + " dev vec0",
		// nodad: the address is ours, and a tentative one cannot be used at once.
		"address add " + config.IPv6 + " dev vec0 nodad",
		"link set vec0 up",
	}
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Env = commandEnv(nil)
	cmd.Stdin = strings.NewReader(strings.Join(batch, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, out)
	}
	return nil
}

// reapAndServe runs the agent proper as a child, because process 1 must reap every orphan and
// os/exec must not find its own children reaped. When the agent ends, so does the guest.
func reapAndServe() error {
	cmd := exec.Command("/proc/self/exe", "serve")
	cmd.Env = commandEnv(nil)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid == cmd.Process.Pid {
			fmt.Printf("lab agent: ended with status %d, so the guest ends\n", status.ExitStatus())
			return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		}
	}
}

func kernelRelease() (string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(uts.Release[:]), nil
}

func loadModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("load module: %w", err)
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return fmt.Errorf("load module %s: %w", file, err)
	}
	return nil
}

func mount(source, target, fs string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fs, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", fs, target, err)
	}
	return nil
}

// command runs a program and returns its output in the error.
func command(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Env = commandEnv(nil)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(append([]string{name}, args...), " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// commandEnv is the environment of every command in a guest; extra wins over the defaults.
func commandEnv(extra []string) []string {
	return append([]string{
		"PATH=" + path,
		"HOME=/root",
		"LANG=C.UTF-8",
		"TERM=dumb",
	}, extra...)
}
