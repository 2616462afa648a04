package worker

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// TestConfine looks at every thread of a process that has dropped its
// capabilities. Threads are a matter of the build without cgo, which is how the
// driver is shipped, so that is how this test builds itself.
func TestConfine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: another user has no capabilities to drop")
	}
	binary := t.TempDir() + "/worker.test"
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build without cgo: %v\n%s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), binary)
	cmd.Env = append(os.Environ(), roleEnv+"=drop")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, FSETID 4.
	want := "CapInh:0000000000000000 CapPrm:000000000000001b CapEff:000000000000001b CapBnd:0000000000000000 CapAmb:0000000000000000 NoNewPrivs:1"
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) < 3 {
		t.Errorf("the process had %d threads, too few to show anything", len(lines))
	}
	for _, line := range lines {
		if line != want {
			t.Errorf("a thread has\n%s, want\n%s", line, want)
		}
	}
}

func TestStoreMountOptions(t *testing.T) {
	for _, tc := range []struct{ options, want []string }{
		{nil, []string{"lookupcache=positive"}},
		{[]string{"vers=4.1"}, []string{"vers=4.1", "lookupcache=positive"}},
		{[]string{"lookupcache=none", "vers=3"}, []string{"lookupcache=none", "vers=3"}},
	} {
		given := nfs.Export{Server: "srv", Share: "/data", Options: slices.Clip(slices.Clone(tc.options))}
		if got := storeMount(given); !slices.Equal(got.Options, tc.want) || !slices.Equal(given.Options, tc.options) {
			t.Errorf("storeMount(%v) = %v, want %v; the argument is now %v", tc.options, got.Options, tc.want, given.Options)
		}
	}
}

// drop confines this process, drops the capabilities it need not have and prints what its threads have.
func drop() error {
	// Threads that exist already are the ones easily forgotten.
	var pipes [4]int
	for i := 0; i < len(pipes); i += 2 {
		if err := unix.Pipe(pipes[i : i+2]); err != nil {
			return err
		}
		started := make(chan struct{})
		go func() {
			close(started)
			_, _ = unix.Read(pipes[i], make([]byte, 1))
		}()
		<-started
	}
	if err := errors.Join(confine(), dropCapabilities()); err != nil {
		return err
	}
	return printThreads("/proc/self")
}

func printThreads(process string) error {
	tasks, err := os.ReadDir(process + "/task")
	if err != nil {
		return err
	}
	for _, task := range tasks {
		status, err := os.ReadFile(process + "/task/" + task.Name() + "/status")
		if err != nil {
			return err
		}
		if _, err := os.Stdout.WriteString(capabilities(string(status)) + "\n"); err != nil {
			return err
		}
	}
	return nil
}

// capabilities returns the lines about capabilities in a /proc/<pid>/status.
func capabilities(status string) string {
	var fields []string
	for line := range strings.Lines(status) {
		if name, value, _ := strings.Cut(line, ":"); strings.HasPrefix(name, "Cap") || name == "NoNewPrivs" {
			fields = append(fields, name+":"+strings.TrimSpace(value))
		}
	}
	return strings.Join(fields, " ")
}
