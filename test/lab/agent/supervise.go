//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Descriptors that the lab hands to the supervisor.
const (
	fdControl = 3 + iota // socket: commands one a line, answers one a line
	fdNetNS              // the lab's network namespace
	fdSerial             // the guest's end of the serial line; 3 in the guest's kernel
)

// supervise starts a guest's kernel and stays until all its processes are gone. It is a process
// of its own because a library in a test binary cannot see to it that nothing survives a SIGKILL
// of that binary: here the control socket's end of file does.
//
// The arguments are those of contain.
func supervise(args []string) error {
	// The network namespace and the parent death signal belong to a thread.
	runtime.LockOSThread()
	if err := unix.Setns(fdNetNS, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the lab's network namespace: %w", err)
	}
	// The kernel aborts when it panics; a dump of the guest's memory helps nobody.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("limit core size: %w", err)
	}
	control := os.NewFile(fdControl, "control")
	serial := os.NewFile(fdSerial, "serial")
	cmd := exec.Command("/proc/self/exe", append([]string{"contain"}, args...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{serial}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Pdeathsig:  syscall.SIGKILL,
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the guest's kernel: %w", err)
	}
	serial.Close()
	s := &supervisor{session: cmd.Process.Pid}
	fmt.Fprintf(control, "pid %d\n", s.session)
	go s.obey(control)
	// The kernel is process 1 of its namespace: when it has ended, so have all the others.
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("the guest's kernel: %w", err)
	}
	return nil
}

type supervisor struct {
	session int // the guest's session and process group, and the pid of its kernel
}

// obey carries out the lab's commands; the end of the lab is the command to kill.
func (s *supervisor) obey(control *os.File) {
	lines := bufio.NewScanner(control)
	for lines.Scan() {
		var err error
		switch lines.Text() {
		case "freeze":
			err = s.freeze()
		case "thaw":
			err = s.thaw()
		case "kick":
			err = s.kick()
		default:
			err = fmt.Errorf("unknown command %q", lines.Text())
		}
		if err != nil {
			fmt.Fprintf(control, "error %v\n", err)
		} else {
			fmt.Fprintln(control, "ok")
		}
	}
	// All at once, not the kernel first: see contain.
	_ = unix.Kill(-s.session, unix.SIGKILL)
}

// freeze stops the guest and returns when it stands still. A process that is traced belongs to
// the guest's programs: stopping it would look to the guest's kernel like an event inside, and it
// gets no further than its next system call without the kernel anyhow.
func (s *supervisor) freeze() error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		procs, err := s.processes()
		if err != nil {
			return err
		}
		running := 0
		for _, p := range procs {
			if p.state == 'T' || p.traced {
				continue
			}
			running++
			if err := unix.Kill(p.pid, unix.SIGSTOP); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("stop process %d: %w", p.pid, err)
			}
		}
		if running == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes of the guest do not stop", running)
		}
		time.Sleep(time.Millisecond)
	}
}

func (s *supervisor) thaw() error {
	procs, err := s.processes()
	if err != nil {
		return err
	}
	for _, p := range procs {
		if p.traced {
			continue
		}
		if err := unix.Kill(p.pid, unix.SIGCONT); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("continue process %d: %w", p.pid, err)
		}
	}
	return nil
}

// kick sends the guest's kernel the signals that are its interrupts, of devices and of the timer, in
// case it has missed one. One too many is no harm.
func (s *supervisor) kick() error {
	return errors.Join(unix.Kill(s.session, unix.SIGIO), unix.Kill(s.session, unix.SIGALRM))
}

type process struct {
	pid    int
	state  byte
	traced bool
}

// processes lists the guest's processes by their session, which none of them can leave.
func (s *supervisor) processes() ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var procs []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if sid, err := unix.Getsid(pid); err != nil || sid != s.session {
			continue
		}
		status, err := os.ReadFile("/proc/" + e.Name() + "/status")
		if err != nil {
			continue // it has just ended
		}
		p := process{pid: pid}
		for line := range strings.Lines(string(status)) {
			if rest, ok := strings.CutPrefix(line, "State:"); ok {
				p.state = strings.TrimSpace(rest)[0]
			}
			if rest, ok := strings.CutPrefix(line, "TracerPid:"); ok {
				p.traced = strings.TrimSpace(rest) != "0"
			}
		}
		if p.state != 'Z' {
			procs = append(procs, p)
		}
	}
	return procs, nil
}
