package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain also is the process that TestLeftovers kills: a lab with one guest.
func TestMain(m *testing.M) {
	if os.Getenv("LAB_TEST_VICTIM") == "1" {
		if err := victim(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func victim() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	l, err := Start(ctx, Options{Name: "victim", LogDir: os.Getenv("LAB_TEST_LOGDIR")})
	if err != nil {
		return err
	}
	g, err := l.StartGuest(ctx, GuestSpec{Name: "guest"})
	if err != nil {
		return err
	}
	fmt.Println(l.id, g.vm.supervisor.Process.Pid, g.vm.kernelPID)
	<-ctx.Done()
	return l.Close()
}

func TestLeftovers(t *testing.T) {
	needLab(t)
	for _, test := range []struct {
		name string
		kill func(t *testing.T, lab, supervisor, kernel int)
	}{
		{"lab", func(t *testing.T, lab, _, kernel int) {
			kill(t, lab)
			waitGone(t, kernel) // by the supervisor
		}},
		{"supervisor", func(t *testing.T, lab, supervisor, kernel int) {
			kill(t, supervisor)
			waitGone(t, kernel) // by its parent death signal
			kill(t, lab)
		}},
		{"kernel", func(t *testing.T, lab, supervisor, kernel int) {
			kill(t, kernel)
			waitGone(t, kernel) // by its pid namespace
			waitGone(t, supervisor)
			kill(t, lab)
		}},
		{"frozen", func(t *testing.T, lab, supervisor, kernel int) {
			if err := syscall.Kill(supervisor, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			kill(t, lab) // and nobody ends the guest but the next lab
			if err := syscall.Kill(-kernel, 0); err != nil {
				t.Errorf("the guest has ended already: %v", err)
			}
			t.Cleanup(func() { kill(t, supervisor) })
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "LAB_TEST_VICTIM=1", "LAB_TEST_LOGDIR="+t.TempDir())
			cmd.Stderr = os.Stderr
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}()
			line, err := bufio.NewReader(stdout).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			var id string
			var supervisor, kernel int
			if _, err := fmt.Sscan(line, &id, &supervisor, &kernel); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			test.kill(t, cmd.Process.Pid, supervisor, kernel)
			_ = cmd.Wait()
			if _, err := os.Stat(filepath.Join(workRoot, id)); err != nil {
				t.Errorf("the killed lab left nothing: %v", err)
			}

			var log strings.Builder
			l, err := Start(t.Context(), Options{Name: "heir", LogDir: t.TempDir(), Log: &log})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if !strings.Contains(log.String(), id) {
				t.Errorf("the log does not name the lab %s:\n%s", id, log.String())
			}
			waitGone(t, kernel)
			for _, path := range []string{filepath.Join(workRoot, id), filepath.Join("/run/netns", id)} {
				if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s is still there: %v", path, err)
				}
			}
		})
	}
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatal(err)
	}
}

// waitGone waits for the end of a process and of its group.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !gone(pid) || !gone(-pid) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d or its group still runs", pid)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func gone(pid int) bool {
	if pid > 0 {
		if fields, err := statFields(pid); err == nil && fields[0] == "Z" {
			return true // its parent has not looked yet
		}
	}
	return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}
