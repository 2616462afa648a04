package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// bareDir is where the export is mounted for the bare operations.
const bareDir = "/mnt/bare"

// bareMount asks the kernel, with nothing around it, for the mount that the
// driver makes too.
func (b *bench) bareMount(share, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	options := fmt.Sprintf("vers=4.2,addr=%s,clientaddr=%s", b.server, b.client)
	return unix.Mount(b.server+":"+share, dir, "nfs4", 0, options)
}

// bareWork returns the p50s, in milliseconds, of what a create and a delete
// cannot do without: a small file written, fsynced and renamed, and a mkdir;
// and one rename and one unlink.
func bareWork(dir string) (create, remove float64, err error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, 0, err
	}
	content := []byte(strings.Repeat("x", 512))
	var creates, removes []time.Duration
	for i := range serial {
		temporary, final := filepath.Join(dir, "tmp"), filepath.Join(dir, "record-"+strconv.Itoa(i))
		volume, trash := filepath.Join(dir, "volume-"+strconv.Itoa(i)), filepath.Join(dir, "trash-"+strconv.Itoa(i))
		began := time.Now()
		if err := writeSynced(temporary, content); err != nil {
			return 0, 0, err
		}
		if err := os.Rename(temporary, final); err != nil {
			return 0, 0, err
		}
		if err := os.Mkdir(volume, 0o755); err != nil {
			return 0, 0, err
		}
		creates = append(creates, time.Since(began))
		began = time.Now()
		if err := os.Rename(volume, trash); err != nil {
			return 0, 0, err
		}
		if err := unix.Unlink(final); err != nil {
			return 0, 0, err
		}
		removes = append(removes, time.Since(began))
	}
	return p50(creates), p50(removes), os.RemoveAll(dir)
}

func writeSynced(name string, content []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.Sync()
}

// bareBind returns the p50, in milliseconds, of a bind mount and its unmount.
func bareBind() (float64, error) {
	const target = "/mnt/bare-bind"
	if err := os.MkdirAll(target, 0o755); err != nil {
		return 0, err
	}
	var samples []time.Duration
	for range serial {
		began := time.Now()
		if err := unix.Mount(bareDir, target, "", unix.MS_BIND, ""); err != nil {
			return 0, err
		}
		if err := unix.Unmount(target, 0); err != nil {
			return 0, err
		}
		samples = append(samples, time.Since(began))
	}
	return p50(samples), nil
}

// residentBytes is the resident memory of a process.
func residentBytes(pid int) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(data))
	if len(fields) < 2 {
		return 0, fmt.Errorf("statm of %d reads %q", pid, data)
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize()), err
}

// workerBytes is the resident memory of the largest worker.
func workerBytes(p *process) (most int64, err error) {
	workers, err := children(p.command.Process.Pid)
	if err != nil {
		return 0, err
	}
	for _, w := range workers {
		m, err := residentBytes(w)
		if err != nil {
			return 0, err
		}
		most = max(most, m)
	}
	return most, nil
}

// waitForChild returns when a child of the process has slept for a while: it
// has started and waits for work.
func waitForChild(ctx context.Context, pid int) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for asleep := 0; asleep < 10; asleep++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		pids, err := children(pid)
		if err != nil {
			asleep = 0
			continue
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pids[0]))
		if err != nil || !strings.Contains(string(status), "\nState:\tS") {
			asleep = 0
		}
	}
	return nil
}

// children are the processes that a process started.
func children(pid int) ([]int, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, t := range tasks {
		data, err := os.ReadFile(t)
		if err != nil {
			return nil, err
		}
		for _, f := range strings.Fields(string(data)) {
			child, err := strconv.Atoi(f)
			if err != nil {
				return nil, err
			}
			pids = append(pids, child)
		}
	}
	if len(pids) == 0 {
		return nil, fmt.Errorf("process %d has no children; its workers are expected", pid)
	}
	return pids, nil
}
