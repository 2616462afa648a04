package store

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// TestMillionFiles: the purge of a million files, half of them in one directory, takes
// no more memory than an idle worker may. `make bench` runs it, without the race
// detector, which would count as memory; it takes about a minute and 1 GiB of disk.
func TestMillionFiles(t *testing.T) {
	if os.Getenv("BENCH") == "" {
		t.Skip("takes a minute: BENCH=1 go test -run TestMillionFiles ./pkg/nfs/store")
	}
	const (
		flat, dirs, each = 500_000, 500, 1000
		limit            = 24 << 10 // KiB
	)
	dir := t.TempDir()
	top := trashEntry(t, dir, "v")
	began := time.Now()
	var group errgroup.Group
	group.Go(func() error { return fill(top+"/flat", flat) })
	group.Go(func() error {
		for d := range dirs {
			if err := fill(fmt.Sprintf("%s/%d", top, d), each); err != nil {
				return err
			}
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	made := time.Since(began)
	text, err := json.Marshal(job{Dir: dir, WaitPurged: true})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), jobEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	began = time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	peak, err := watchPeak(cmd.Process.Pid, ended)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d files: made in %s, purged in %s with %d KiB at most", flat+dirs*each, made.Round(time.Second), time.Since(began).Round(time.Second), peak)
	if peak > limit {
		t.Errorf("it took %d KiB, the bound is %d", peak, limit)
	}
}

// watchPeak returns the most memory that a process has had, in KiB, when it ends: its
// VmHWM of proc_pid_status(5) begins anew with the program, as ru_maxrss of
// getrusage(2) does not.
func watchPeak(pid int, ended <-chan error) (peak int, err error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			return peak, err
		case <-tick.C:
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue // it has just ended
		}
		if _, rest, ok := strings.Cut(string(status), "VmHWM:"); ok { // not in a zombie's
			if _, err := fmt.Sscan(rest, &peak); err != nil {
				return 0, fmt.Errorf("VmHWM: %w", err)
			}
		}
	}
}

// fill makes a directory of empty files.
func fill(dir string, files int) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	for i := range files {
		if err := unix.Mknodat(int(d.Fd()), fmt.Sprint(i), unix.S_IFREG|0o600, 0); err != nil {
			return err
		}
	}
	return nil
}
