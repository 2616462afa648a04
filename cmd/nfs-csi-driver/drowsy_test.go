package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/worker"
)

// showSlack is beDrowsy in a process of its own, which prints its id and the
// slack of each of its threads.
func showSlack() error {
	fmt.Println(os.Getpid())
	beDrowsy()
	tasks, err := filepath.Glob("/proc/self/task/*")
	if err != nil {
		return err
	}
	for _, task := range tasks {
		ns, err := os.ReadFile("/proc/" + filepath.Base(task) + "/timerslack_ns")
		if err != nil {
			return err
		}
		fmt.Print(string(ns))
	}
	return nil
}

// TestBeDrowsy: the process executes itself once, with all its threads drowsy.
func TestBeDrowsy(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "show-slack")
	out, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && strings.Contains(string(exit.Stderr), unix.EPERM.Error()):
		t.Skip("needs CAP_SYS_NICE to look at other threads")
	case err != nil:
		t.Fatal(err)
	}
	lines := strings.Fields(string(out))
	pid, slack := fmt.Sprint(cmd.Process.Pid), fmt.Sprint(worker.TimerSlack.Nanoseconds())
	if len(lines) < 4 || lines[0] != pid || lines[1] != pid || lines[2] == pid {
		t.Fatalf("it printed %q, want its id %s twice and then the slack of its threads", lines, pid)
	}
	for _, ns := range lines[2:] {
		if ns != slack {
			t.Errorf("the slack of the threads is %s ns, want %s for each", lines[2:], slack)
			break
		}
	}
}
