package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// workRoot holds a directory for every lab. It is short, because the guests' kernels make sockets
// in it, and on disk, because the guests' disks are in it.
const workRoot = "/var/tmp/nfs-csi-lab"

// owner says which process a lab belongs to. A process is known by its pid and start time
// together, since pids come again.
type owner struct {
	PID   int
	Start uint64
}

// claim makes the directory of a new lab and marks it as this process's.
func claim(name string) (id, dir string, err error) {
	if err := os.MkdirAll(workRoot, 0o755); err != nil {
		return "", "", fmt.Errorf("make the labs' directory: %w", err)
	}
	me := owner{PID: os.Getpid()}
	if me.Start, err = processStart(me.PID); err != nil {
		return "", "", err
	}
	// A process may have several labs.
	for i := 1; ; i++ {
		id = fmt.Sprintf("%s-%d-%d", name, me.PID, i)
		dir = filepath.Join(workRoot, id)
		err := os.Mkdir(dir, 0o700)
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrExist) {
			return "", "", fmt.Errorf("make the lab's directory: %w", err)
		}
	}
	if err := writeJSON(filepath.Join(dir, "owner"), me); err != nil {
		return id, dir, err
	}
	return id, dir, nil
}

// removeLeftovers ends and removes the labs whose owner is gone.
func removeLeftovers(ctx context.Context, log *logger) error {
	entries, err := os.ReadDir(workRoot)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for leftovers: %w", err)
	}
	// Labs that start at the same moment must not clean the same place.
	lock, err := os.OpenFile(filepath.Join(workRoot, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("look for leftovers: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("look for leftovers: %w", err)
	}
	for _, e := range entries {
		dir := filepath.Join(workRoot, e.Name())
		if !e.IsDir() || ownerLives(dir) {
			continue
		}
		log.printf("removing what lab %s left", e.Name())
		if err := endLeftoverGuests(ctx, dir); err != nil {
			return fmt.Errorf("leftover lab %s: %w", e.Name(), err)
		}
		n := &network{name: e.Name()}
		if err := n.remove(ctx); err != nil {
			return fmt.Errorf("leftover lab %s: %w", e.Name(), err)
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("leftover lab %s: %w", e.Name(), err)
		}
	}
	return nil
}

func ownerLives(dir string) bool {
	var o owner
	if err := readJSON(filepath.Join(dir, "owner"), &o); err != nil {
		// A lab that is just being claimed has no owner yet.
		info, serr := os.Stat(dir)
		return serr == nil && time.Since(info.ModTime()) < time.Minute
	}
	return o.lives()
}

func (o owner) lives() bool {
	start, err := processStart(o.PID)
	return err == nil && start == o.Start
}

// endLeftoverGuests ends guests whose supervisor did not do it, because it was killed too.
func endLeftoverGuests(ctx context.Context, dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.pid"))
	if err != nil {
		return err
	}
	for _, f := range files {
		var kernel owner
		if err := readJSON(f, &kernel); err != nil {
			continue // the guest had not started
		}
		if err := endGuest(ctx, kernel); err != nil {
			return err
		}
	}
	return nil
}

// endGuest kills the processes of a guest, which are the process group of its kernel: with one
// signal, see contain in the agent. If another process has the kernel's pid now, they are gone.
func endGuest(ctx context.Context, kernel owner) error {
	for {
		if start, err := processStart(kernel.PID); err == nil && start != kernel.Start {
			return nil
		}
		err := unix.Kill(-kernel.PID, unix.SIGKILL)
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("kill process group %d: %w", kernel.PID, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("process group %d does not end: %w", kernel.PID, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// processStart returns when a process started, in clock ticks since boot.
func processStart(pid int) (uint64, error) {
	fields, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// statFields returns the fields of /proc/PID/stat from the third (the state) on.
func statFields(pid int) ([]string, error) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return nil, fmt.Errorf("look at process %d: %w", pid, err)
	}
	// The second is the program's name in parentheses, which may hold anything.
	s := string(data)
	fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(fields) < 20 {
		return nil, fmt.Errorf("look at process %d: short stat %q", pid, s)
	}
	return fields, nil
}

func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}
