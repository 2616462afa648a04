package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Options of a lab. The zero value is fine.
type Options struct {
	// Name is part of the names of directories and of the network namespace. Default "lab".
	Name string
	// LogDir gets one log a guest, and holds OutDir. Default: a new temporary directory.
	LogDir string
	// Log gets a line for everything that the lab does. Default: standard error.
	Log io.Writer
	// Tools are needed beyond the lab's own; Start installs what is missing.
	Tools []Tool
}

// Lab is a private network of guests.
type Lab struct {
	id     string // unique on this machine, also the network namespace's name
	dir    string // what Close removes: disks, state, sockets
	logDir string
	log    *logger
	agent  string // path of the agent's binary
	kernel string // path of the guests' kernel
	net    *network
	pulse  *pulse

	watchdog watchdog // of the guests that are started from now on

	mu     sync.Mutex
	guests map[string]*Guest
	closed bool
}

// Start makes a lab with no guests yet. It also removes what labs left behind whose process died.
func Start(ctx context.Context, o Options) (_ *Lab, err error) {
	if o.Name == "" {
		o.Name = "lab"
	}
	if err := validName(o.Name); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = os.Stderr
	}
	l := &Lab{log: &logger{w: o.Log}, guests: make(map[string]*Guest), watchdog: defaultWatchdog}
	if err := prepare(ctx, l.log, o.Tools); err != nil {
		return nil, err
	}
	removeLeftovers(ctx, l.log)
	if l.agent, err = buildAgent(ctx); err != nil {
		return nil, err
	}
	if l.kernel, err = guestKernel(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if l.id, l.dir, err = claim(o.Name); err != nil {
		return nil, err
	}
	if err := l.makeLogDir(o.LogDir); err != nil {
		return nil, err
	}
	if l.net, err = newNetwork(ctx, l.id); err != nil {
		return nil, err
	}
	if l.pulse, err = startPulse(l.net.path()); err != nil {
		return nil, err
	}
	l.log.printf("lab %s: network %s and %s; logs and results in %s", l.id, subnet4, subnet6, l.logDir)
	return l, nil
}

func (l *Lab) makeLogDir(dir string) error {
	var err error
	if dir == "" {
		dir, err = os.MkdirTemp("", "nfs-csi-lab-")
	} else {
		dir, err = filepath.Abs(dir)
	}
	if err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	l.logDir = dir
	if err := os.MkdirAll(l.OutDir(), 0o755); err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	return nil
}

// LogDir is the host directory with one log a guest. It stays after Close.
func (l *Lab) LogDir() string { return l.logDir }

// OutDir is the host directory that every guest sees, writable, at /out. It stays after Close.
func (l *Lab) OutDir() string { return filepath.Join(l.logDir, "out") }

// StateDir is a host directory, seen by every guest under the same path, for what must go with the
// lab: Close removes it, or the next lab if this one's process dies.
func (l *Lab) StateDir() string { return l.dir }

// Netns is the name of the lab's network namespace, as `ip netns exec` takes it. The lab's bridge
// in it has the addresses HostIPv4 and HostIPv6.
func (l *Lab) Netns() string { return l.net.name }

// HostIPv4 is the host's address in the lab's network namespace.
func (l *Lab) HostIPv4() string { return hostIPv4 }

// HostIPv6 is the host's address in the lab's network namespace.
func (l *Lab) HostIPv6() string { return hostIPv6 }

// Close ends every guest and removes the network, the disks and the guests' state. It can be
// called again, and while guests start.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	var guests []*Guest
	for _, g := range l.guests {
		guests = append(guests, g)
	}
	l.mu.Unlock()

	errs := make([]error, len(guests))
	var wg sync.WaitGroup
	for i, g := range guests {
		wg.Go(func() { errs[i] = g.close() })
	}
	wg.Wait()
	err := errors.Join(errs...)
	if l.pulse != nil {
		l.pulse.end()
	}
	if l.net != nil {
		// Not the caller's context: it may be what ended.
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		err = errors.Join(err, l.net.remove(ctx))
	}
	if l.dir != "" {
		if rerr := os.RemoveAll(l.dir); rerr != nil {
			err = errors.Join(err, fmt.Errorf("remove the lab's directory: %w", rerr))
		}
	}
	if l.id != "" {
		l.log.printf("lab %s: closed; logs and results in %s", l.id, l.logDir)
	}
	return err
}

// Guest returns the guest of that name, or nil.
func (l *Lab) Guest(name string) *Guest {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.guests[name]
}

// GuestPath returns where a guest sees a path of the host. It differs from the path only where
// the guest has file systems of its own.
func GuestPath(hostPath string) string {
	clean := filepath.Clean(hostPath)
	for _, own := range []string{"/tmp", "/run", "/var/run", "/dev", "/proc", "/sys", "/var/lib/nfs"} {
		if clean == own || len(clean) > len(own) && clean[:len(own)+1] == own+"/" {
			return "/host" + clean
		}
	}
	return clean
}

func validName(name string) error {
	if name == "" || len(name) > 32 {
		return fmt.Errorf("name %q: want 1 to 32 characters", name)
	}
	for i, c := range name {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' && i > 0 {
			continue
		}
		return fmt.Errorf("name %q: want lower-case letters, digits and inner hyphens", name)
	}
	return nil
}

// logger writes whole lines, one at a time.
type logger struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *logger) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.w, format+"\n", args...)
}
