package mount

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const namespaceEnv = "MOUNT_TEST_NAMESPACE"

// TestMain runs the tests in a mount namespace of their own where that is
// allowed, so that nothing they mount is seen outside, or stays.
func TestMain(m *testing.M) {
	// The lab needs the machine's own mount namespace.
	if os.Getenv(namespaceEnv) == "" && os.Geteuid() == 0 && os.Getenv("LAB") != "1" {
		code, err := runInNamespace()
		if err == nil {
			os.Exit(code)
		}
		fmt.Fprintf(os.Stderr, "tests that mount are skipped: %v\n", err)
	}
	if os.Getenv(namespaceEnv) != "" && os.Geteuid() == 0 {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			fmt.Fprintf(os.Stderr, "cannot make the mount namespace private: %v\n", err)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m)
}

func runInNamespace() (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), namespaceEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// ways are the two ways to mount, each of which must do the same.
func ways() map[string]*Mounter {
	return map[string]*Mounter{"mount API": New(Options{}), "mount(2)": New(Options{Legacy: true})}
}

// needNamespace skips a test that mounts, and returns a tmpfs of its own.
func needNamespace(t *testing.T) string {
	t.Helper()
	if os.Getenv(namespaceEnv) == "" || os.Geteuid() != 0 {
		t.Skip("mounts: needs root with CAP_SYS_ADMIN")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func mkdirs(t *testing.T, parts ...string) string {
	t.Helper()
	dir := filepath.Join(parts...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// eventually waits for the condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Errorf("not within 20 s: %s", what)
			return
		}
	}
}
