package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/test/lab/internal/wire"
)

// runMark begins the line that separates the runs of a guest in its log.
const runMark = "---- "

// bootTimeout bounds a start when the caller's context does not. A start takes three seconds.
const bootTimeout = 90 * time.Second

var errAlreadyRuns = errors.New("it runs already")

// GuestSpec describes a guest.
type GuestSpec struct {
	Name     string // its host name, which every guest of the lab can resolve
	MemoryMB int    // default 1024; used on the host only as far as the guest uses it
	Disks    []DiskSpec
	// HostMounts shows more host directories in the guest.
	HostMounts []HostMount
	// KernelArgs are added to the kernel's command line.
	KernelArgs []string

	serves bool // and mounts nothing of other machines
}

// HostMount shows a host directory in a guest.
type HostMount struct {
	Host     string
	Guest    string
	Writable bool
}

// Guest is one machine of the lab. Its name, addresses and disks stay the same over restarts.
type Guest struct {
	lab   *Lab
	name  string
	index int

	bootMu sync.Mutex // one start at a time

	mu     sync.Mutex // guards what follows
	spec   GuestSpec
	vm     *vm // the running instance, or the last one
	hosts  string
	frozen bool
	closed bool
}

// StartGuest starts a guest and returns when it takes commands. Guests can be started in
// parallel. The name of a guest that does not run any more starts that one again.
func (l *Lab) StartGuest(ctx context.Context, spec GuestSpec) (*Guest, error) {
	if err := validName(spec.Name); err != nil {
		return nil, fmt.Errorf("start guest: %w", err)
	}
	if len(spec.Disks) > maxDisks {
		return nil, fmt.Errorf("start guest %s: it can have %d disks at most", spec.Name, maxDisks)
	}
	g, err := l.addGuest(spec)
	if err != nil {
		return nil, err
	}
	if err := g.boot(ctx); err != nil {
		return nil, err
	}
	return g, nil
}

// addGuest gives a name its addresses, for as long as the lab lives.
func (l *Lab) addGuest(spec GuestSpec) (*Guest, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("start guest %s: the lab is closed", spec.Name)
	}
	g := l.guests[spec.Name]
	if g == nil {
		g = &Guest{lab: l, name: spec.Name, index: len(l.guests)}
		l.guests[spec.Name] = g
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.vm.running() {
		return nil, fmt.Errorf("start guest %s: %w", spec.Name, errAlreadyRuns)
	}
	g.spec = spec
	return g, nil
}

// Restart kills the guest if it runs and starts it again: same name, addresses and disks, and
// everything else as at the first start.
func (g *Guest) Restart(ctx context.Context) error {
	if err := g.Kill(); err != nil {
		return err
	}
	return g.boot(ctx)
}

func (g *Guest) boot(ctx context.Context) error {
	g.bootMu.Lock()
	defer g.bootMu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	began := time.Now()
	if err := g.tryBoot(ctx); err != nil {
		if errors.Is(err, errAlreadyRuns) {
			return fmt.Errorf("start guest %s: %w", g.name, err) // and leave it alone
		}
		err = fmt.Errorf("start guest %s: %w", g.name, err)
		if tail := g.logTail(20); tail != "" {
			err = fmt.Errorf("%w\nthe end of %s:\n%s", err, g.logPath(), tail)
		}
		return errors.Join(err, g.Kill())
	}
	g.lab.log.printf("guest %s: up after %v, %s and %s", g.name,
		time.Since(began).Round(time.Millisecond), g.IPv4(), g.IPv6())
	return g.lab.syncHosts(ctx)
}

func (g *Guest) tryBoot(ctx context.Context) error {
	if err := g.lab.net.addPort(ctx, g.tap()); err != nil {
		return err
	}
	g.mu.Lock()
	spec := g.spec
	g.mu.Unlock()
	var disks []string
	for i, d := range spec.Disks {
		path := g.diskPath(i)
		if err := makeDisk(ctx, path, d); err != nil {
			return err
		}
		disks = append(disks, path)
	}
	hosts := g.lab.hostsFile()
	config := wire.Config{
		Hostname: g.name,
		IPv4:     g.IPv4() + "/24",
		IPv6:     g.IPv6() + "/64",
		Hosts:    hosts,
		Mounts:   []wire.HostMount{{Host: g.lab.OutDir(), Guest: "/out", Writable: true}},
	}
	writable := []string{memoryDir, g.lab.dir, g.lab.OutDir()}
	for _, m := range spec.HostMounts {
		if m.Writable {
			writable = append(writable, m.Host)
		}
		config.Mounts = append(config.Mounts, wire.HostMount(m))
	}
	configPath := filepath.Join(g.lab.dir, g.name+".config")
	if err := writeJSON(configPath, config); err != nil {
		return err
	}
	memory := spec.MemoryMB
	if memory == 0 {
		memory = 1024
	}
	args := append(diskArgs(disks),
		fmt.Sprintf("mem=%dM", memory),
		"umid="+g.name,
		"uml_dir="+g.lab.dir,
		fmt.Sprintf("vec0:transport=tap,ifname=%s,depth=128,gro=1,mac=%s", g.tap(), g.mac()),
		wire.ConfigVariable+"="+configPath,
	)
	args = append(args, spec.KernelArgs...)

	// Close must find either no instance ever, or this one.
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return errors.New("the lab is closed")
	}
	if g.vm.running() {
		g.mu.Unlock()
		return errAlreadyRuns
	}
	// What the last run left there would look like a kernel that runs: each is process 1 of its own.
	console := filepath.Join(g.lab.dir, g.name)
	if err := os.RemoveAll(console); err != nil {
		g.mu.Unlock()
		return fmt.Errorf("remove the last run's console: %w", err)
	}
	v, err := startVM(vmOptions{
		name: g.name, agent: g.lab.agent, kernel: g.lab.kernel, netns: g.lab.net.path(), log: g.logPath(), args: args,
		writable: writable, cpu: g.index % runtime.NumCPU(),
		console: filepath.Join(console, "mconsole"), watchdog: g.lab.watchdog, alone: spec.serves, printf: g.lab.log.printf,
	})
	if err == nil {
		g.vm, g.hosts, g.frozen = v, hosts, false
	}
	g.mu.Unlock()
	if err != nil {
		return err
	}
	if err := g.rememberProcesses(v); err != nil {
		return err
	}
	return v.waitReady(ctx)
}

// Name is the guest's host name.
func (g *Guest) Name() string { return g.name }

// IPv4 is the guest's IPv4 address.
func (g *Guest) IPv4() string { return guestIPv4(g.index) }

// IPv6 is the guest's IPv6 address.
func (g *Guest) IPv6() string { return guestIPv6(g.index) }

// Running says whether the guest runs; a frozen one does.
func (g *Guest) Running() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.vm.running()
}

func (g *Guest) tap() string { return fmt.Sprintf("tap%d", g.index) }

func (g *Guest) mac() string { return fmt.Sprintf("02:00:00:00:97:%02x", 0x10+g.index) }

func (g *Guest) logPath() string { return filepath.Join(g.lab.logDir, g.name+".log") }

// logTail returns the last lines of the guest's console.
func (g *Guest) logTail(n int) string {
	data, err := os.ReadFile(g.logPath())
	if err != nil {
		return ""
	}
	console := strings.ReplaceAll(string(data), "\r", "")
	// Not what earlier runs wrote.
	return lastLines(console[max(0, strings.LastIndex(console, runMark)):], n)
}

// instance returns the running instance for a command.
func (g *Guest) instance() (*vm, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.vm.running() {
		return nil, fmt.Errorf("guest %s does not run", g.name)
	}
	return g.vm, nil
}

// hostsFile is /etc/hosts for all guests.
func (l *Lab) hostsFile() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost\n")
	fmt.Fprintf(&b, "%s host\n%s host\n", hostIPv4, hostIPv6)
	for _, name := range slices.Sorted(maps.Keys(l.guests)) {
		g := l.guests[name]
		fmt.Fprintf(&b, "%s %s\n%s %s\n", g.IPv4(), name, g.IPv6(), name)
	}
	return b.String()
}

// syncHosts tells the guests that run about those that came later.
func (l *Lab) syncHosts(ctx context.Context) error {
	hosts := l.hostsFile()
	l.mu.Lock()
	var guests []*Guest
	for _, g := range l.guests {
		guests = append(guests, g)
	}
	l.mu.Unlock()
	for _, g := range guests {
		g.mu.Lock()
		stale := g.hosts != hosts && !g.frozen && g.vm.ready()
		g.mu.Unlock()
		if !stale {
			continue
		}
		if err := g.builtin(ctx, wire.BuiltinWriteFile, strings.NewReader(hosts), nil, "/etc/hosts", "0644"); err != nil {
			if !g.Running() {
				continue // ended meanwhile; it gets the names at its next start
			}
			return fmt.Errorf("tell guest %s the names: %w", g.name, err)
		}
		g.mu.Lock()
		g.hosts = hosts
		g.mu.Unlock()
	}
	return nil
}
