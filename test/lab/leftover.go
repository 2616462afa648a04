package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

// leftoverTimeout bounds the removal of leftovers, so that what one lab left cannot stop all others.
const leftoverTimeout = 30 * time.Second

// RemoveLeftovers ends and removes the labs whose process is gone, as Start does, and says on log
// what it removes.
func RemoveLeftovers(ctx context.Context, log io.Writer) { removeLeftovers(ctx, &logger{w: log}) }

// removeLeftovers ends and removes the labs whose owner is gone. What cannot be removed is logged:
// it is in no other lab's way.
func removeLeftovers(ctx context.Context, log *logger) {
	ctx, cancel := context.WithTimeout(ctx, leftoverTimeout)
	defer cancel()
	entries, err := os.ReadDir(workRoot)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err != nil {
		log.printf("cannot look for leftovers: %v", err)
		return
	}
	// Labs that start at the same moment must not clean the same place.
	unlock, err := LockFile(ctx, filepath.Join(workRoot, ".lock"))
	if err != nil {
		log.printf("cannot look for leftovers: %v", err)
		return
	}
	defer unlock()
	for _, e := range entries {
		dir := filepath.Join(workRoot, e.Name())
		if !e.IsDir() || ownerLives(dir) {
			continue
		}
		log.printf("removing what lab %s left", e.Name())
		if err := removeLeftover(ctx, e.Name(), dir); err != nil {
			log.printf("leftover lab %s: %v", e.Name(), err)
		}
	}
}

func removeLeftover(ctx context.Context, id, dir string) error {
	if err := endLeftoverGuests(ctx, dir); err != nil {
		return err
	}
	if err := (&network{name: id}).remove(ctx); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// LockFile waits for the lock on a file, which a process that dies gives up.
// flock(2) itself cannot be told to stop waiting.
func LockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
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

// lives says whether the process runs: neither has it ended, nor is it another with its pid.
func (o owner) lives() bool {
	fields, err := statFields(o.PID)
	if err != nil || fields[0] == "Z" || fields[0] == "X" {
		return false
	}
	start, err := strconv.ParseUint(fields[statStart], 10, 64)
	return err == nil && start == o.Start
}

// endLeftoverGuests ends guests whose supervisor did not do it, because it was killed too.
func endLeftoverGuests(ctx context.Context, dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.pid"))
	if err != nil {
		return err
	}
	for _, f := range files {
		var p guestProcesses
		if err := readJSON(f, &p); err != nil {
			continue // the guest had not started
		}
		if err := endGuest(ctx, p.Kernel); err != nil {
			return err
		}
		if p.Supervisor.lives() {
			if err := unix.Kill(p.Supervisor.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d: %w", p.Supervisor.PID, err)
			}
		}
	}
	return nil
}

// guestProcesses are remembered for the next lab, should this one and the supervisor both be
// killed.
type guestProcesses struct{ Supervisor, Kernel owner }

func (g *Guest) rememberProcesses(v *vm) error {
	var p guestProcesses
	for pid, o := range map[int]*owner{v.supervisor.Process.Pid: &p.Supervisor, v.kernelPID: &p.Kernel} {
		start, err := processStart(pid)
		if err != nil {
			return err
		}
		*o = owner{PID: pid, Start: start}
	}
	return writeJSON(filepath.Join(g.lab.dir, g.name+".pid"), p)
}

// endGuest kills the processes of a guest, which are the process group of its kernel: with one
// signal, see contain in the agent. The kernel is process 1 of the guest's pid namespace, so it is
// the last of them to end.
func endGuest(ctx context.Context, kernel owner) error {
	for {
		if !kernel.lives() {
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

// statStart is the index of the start time in statFields.
const statStart = 19

// processStart returns when a process started, in clock ticks since boot.
func processStart(pid int) (uint64, error) {
	fields, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(fields[statStart], 10, 64)
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
