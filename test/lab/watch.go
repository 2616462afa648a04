package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/test/lab/internal/wire"
)

// errHung is why commands fail whose guest was reset because it stood still.
var errHung = errors.New("the guest stood still and was ended")

// watchdog says when a guest is taken for one that stands still, in looks of an interval. Time
// would not do: the whole machine may have slept.
type watchdog struct {
	interval time.Duration
	kick     int           // looks without an answer until it gets a signal
	reset    int           // looks without an answer until it is ended
	death    time.Duration // how long a process may take to end that was killed
	undead   int           // looks, with an answer, until a server is ended in which one has not
}

// defaultWatchdog is patient with a guest that shares two processors with a cluster.
var defaultWatchdog = watchdog{interval: 5 * time.Second, kick: 4, reset: 18, death: 5 * time.Second, undead: 7}

// watch does what a machine's watchdog does. User Mode Linux has been seen to stand still for
// good, on rare occasions, and without a watchdog all commands for that guest then take all the time that
// they have. What can be known of the reason goes to the guest's log, and to the commands' errors.
func (v *vm) watch(ctx context.Context) {
	tick := time.NewTicker(v.watchdog.interval)
	defer tick.Stop()
	silent := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !v.ready() {
			continue
		}
		if v.resetting.Load() {
			return
		}
		if v.heard.Swap(false) || v.frozen.Load() {
			if silent >= v.watchdog.kick {
				v.printf("guest %s: answers again", v.name)
			}
			silent = 0
		} else {
			silent++
		}
		v.out.Put(&wire.Frame{Kind: wire.Ping})
		waited := time.Duration(silent) * v.watchdog.interval
		switch silent {
		case v.watchdog.kick:
			report := v.diagnose("sysrq 5")
			err := v.order("kick")
			v.printf("guest %s: no answer for %v; it was sent a signal (error: %v)\n%s", v.name, waited, err, report)
		case v.watchdog.reset:
			v.reset(fmt.Sprintf("no answer for %v", waited))
			return
		}
	}
}

// hungVariable names the file in which whoever runs the tests finds that a guest was reset.
const hungVariable = "LAB_HUNG"

// reset ends a guest that stands still, once.
func (v *vm) reset(reason string) {
	if !v.resetting.CompareAndSwap(false, true) {
		return
	}
	report := reason + "\n" + v.diagnose("sysrq t")
	v.printf("guest %s: %v: %s", v.name, errHung, report)
	if path := os.Getenv(hungVariable); path != "" {
		if err := appendTo(path, fmt.Sprintf("guest %s: %v: %s\n", v.name, errHung, report)); err != nil {
			v.printf("guest %s: %v", v.name, err)
		}
	}
	v.end(fmt.Errorf("%w: %s", errHung, report))
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// end kills the guest; its commands fail for that cause.
func (v *vm) end(cause error) {
	v.mu.Lock()
	if v.cause == nil {
		v.cause = cause
	}
	v.mu.Unlock()
	v.control.Close() // the supervisor takes the end of file for the command to kill
}

// why says why commands end without an exit code.
func (v *vm) why() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.cause != nil {
		return v.cause
	}
	return errGone
}

// hangs handles a command that was killed and has not ended. In a guest that waits for no other
// machine, that is its kernel's fault.
func (v *vm) hangs(p *Process) error {
	still := func() error { return fmt.Errorf("killed, but it has not ended: %s", v.blocked()) }
	if !v.alone || p.builtin { // nothing kills a function of the agent's
		return still()
	}
	tick := time.NewTicker(v.watchdog.interval)
	defer tick.Stop()
	// Answers, not time: as long as there are none, it is watch that decides.
	for pongs, looks := v.pongs.Load(), 0; looks < v.watchdog.undead; {
		select {
		case <-p.done:
			return errors.New("killed, and slow to end")
		case <-tick.C:
		}
		if v.frozen.Load() {
			return still()
		}
		if n := v.pongs.Load(); n > pongs {
			pongs = n
			looks++
		}
	}
	v.reset(fmt.Sprintf("%q was killed and has not ended", p.args))
	select {
	case <-v.gone:
	case <-time.After(30 * time.Second):
	}
	return v.why()
}

// maxReport bounds what an error says of a guest that stands still; its log has all.
const maxReport = 6 << 10

// diagnose says what the guest's kernel does, and writes that and more to the guest's log. The
// last command is for it alone: what a guest that goes on needs, or one that does not has left to say.
func (v *vm) diagnose(last string) string {
	state := fmt.Sprintf("its kernel's process: %s\n", processState(v.kernelPID))
	report, whole := state, state
	// 9 shows all, 5 is what the guest was started with.
	for _, command := range []string{"sysrq 9", "sysrq w", "sysrq m", "sysrq q", last} {
		answer, err := v.console(command)
		whole += answer
		if err != nil {
			report += fmt.Sprintf("its kernel does not answer to %q: %v\n", command, err)
			break
		}
		if command == "sysrq w" {
			report += "its kernel answers; " + answer
		}
	}
	if err := appendTo(v.log, whole); err != nil {
		report += err.Error() + "\n"
	}
	return report[:min(len(report), maxReport)]
}

// blocked says which of the guest's processes cannot be killed.
func (v *vm) blocked() string {
	if v.frozen.Load() {
		return "it is frozen"
	}
	if _, err := v.console("sysrq 9"); err != nil {
		return fmt.Sprintf("its kernel does not answer: %v", err)
	}
	answer, err := v.console("sysrq w")
	if err != nil {
		return fmt.Sprintf("its kernel does not answer: %v", err)
	}
	if _, err := v.console("sysrq 5"); err != nil {
		return fmt.Sprintf("its kernel does not answer: %v", err)
	}
	return answer[:min(len(answer), maxReport)]
}

// processState is what the host knows of a process in one line.
func processState(pid int) string {
	dir := fmt.Sprintf("/proc/%d/", pid)
	var parts []string
	if stat, err := os.ReadFile(dir + "stat"); err != nil {
		parts = append(parts, err.Error())
	} else if _, rest, ok := strings.Cut(string(stat), ") "); ok {
		// proc(5): state is the third field, utime and stime the 14th and 15th.
		if f := strings.Fields(rest); len(f) > 12 {
			parts = append(parts, fmt.Sprintf("state %s, user %s, system %s", f[0], f[11], f[12]))
		}
	}
	for _, file := range []string{"wchan", "syscall"} {
		if text, err := os.ReadFile(dir + file); err == nil {
			parts = append(parts, file+" "+strings.TrimSpace(string(text)))
		}
	}
	if status, err := os.ReadFile(dir + "status"); err == nil {
		for line := range strings.Lines(string(status)) {
			for _, name := range []string{"SigPnd", "ShdPnd", "SigBlk"} {
				if strings.HasPrefix(line, name) {
					parts = append(parts, strings.Join(strings.Fields(line), " "))
				}
			}
		}
	}
	return strings.Join(parts, ", ")
}

// consoleTimeout bounds one piece of an answer of a guest's kernel.
const consoleTimeout = 2 * time.Second

// console gives the guest's kernel a command of its management console, which works as
// long as that kernel takes interrupts: arch/um/drivers/mconsole.h.
func (v *vm) console(command string) (answer string, err error) {
	const (
		magic   = 0xcafebabe
		version = 2
		maxData = 512
	)
	v.consoleMu.Lock()
	defer v.consoleMu.Unlock()
	dir := filepath.Dir(v.consolePath)
	own := filepath.Join(dir, "client")
	conn, err := v.consoleSocket(own)
	if err != nil {
		return "", fmt.Errorf("console: %w", err)
	}
	defer os.Remove(own)
	defer conn.Close()
	request := binary.NativeEndian.AppendUint32(nil, magic)
	request = binary.NativeEndian.AppendUint32(request, version)
	request = binary.NativeEndian.AppendUint32(request, uint32(len(command)))
	request = append(request, command...)
	request = append(request, make([]byte, maxData-len(command))...)
	// A socket whose queue is full is that of a kernel that takes no interrupts.
	if err := conn.SetDeadline(time.Now().Add(consoleTimeout)); err != nil {
		return "", fmt.Errorf("console: %w", err)
	}
	if _, err := conn.WriteToUnix(request, &net.UnixAddr{Name: v.consolePath, Net: "unixgram"}); err != nil {
		return "", fmt.Errorf("console: %w", err)
	}
	var all bytes.Buffer
	for {
		if err := conn.SetDeadline(time.Now().Add(consoleTimeout)); err != nil {
			return all.String(), fmt.Errorf("console: %w", err)
		}
		// An error number, whether more follows, a length, data.
		reply := make([]byte, 12+maxData)
		n, err := conn.Read(reply)
		if errors.Is(err, os.ErrDeadlineExceeded) && all.Len() > 0 {
			// The kernel does not wait for room in the queue, so of a very long answer the end may be lost.
			return all.String() + "... (the rest is lost)\n", nil
		}
		if err != nil {
			return all.String(), fmt.Errorf("console: %w", err)
		}
		if n < 12 {
			return all.String(), fmt.Errorf("console: an answer of %d bytes", n)
		}
		all.Write(bytes.TrimRight(reply[12:n], "\x00"))
		if binary.NativeEndian.Uint32(reply) != 0 {
			return all.String(), fmt.Errorf("console: %s: refused", command)
		}
		if binary.NativeEndian.Uint32(reply[4:]) == 0 {
			return all.String(), nil
		}
	}
}

// consoleSocket makes a socket whose queue has room for the many lines of an answer: how much,
// is a setting of its network namespace, and that of the lab is nobody else's.
func (v *vm) consoleSocket(path string) (*net.UnixConn, error) {
	type made struct {
		fd  int
		err error
	}
	result := make(chan made, 1)
	OnThread(func() {
		fd, err := func() (int, error) {
			ns, err := os.Open(v.netns)
			if err != nil {
				return 0, err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return 0, fmt.Errorf("enter the lab's network namespace: %w", err)
			}
			if err := os.WriteFile("/proc/sys/net/unix/max_dgram_qlen", []byte("10000"), 0); err != nil {
				return 0, err
			}
			return unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		}()
		result <- made{fd, err}
	})
	m := <-result
	if m.err != nil {
		return nil, m.err
	}
	f := os.NewFile(uintptr(m.fd), path)
	defer f.Close() // FileConn makes its own descriptor
	if err := unix.Bind(m.fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, fmt.Errorf("bind %s: %w", path, err)
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}
