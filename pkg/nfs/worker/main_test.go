package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	mountutils "k8s.io/mount-utils"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/admin"
)

// roleEnv makes the test binary another program: a worker, or a driver that is
// about to be killed.
const roleEnv = "WORKER_TEST_ROLE"

func TestMain(m *testing.M) {
	var err error
	switch role := os.Getenv(roleEnv); role {
	case "":
		os.Exit(m.Run())
	case "worker":
		err = Main(context.Background(), SocketFD, Backends{OpenStore: openFake, Mounter: fakeMounter{}})
	case "system":
		err = Main(context.Background(), SocketFD, System())
	case "drop":
		err = drop()
	case "parent":
		err = parent(os.Args[1])
	default:
		err = fmt.Errorf("unknown role %q", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func command(role string) func() *exec.Cmd {
	return func() *exec.Cmd {
		cmd := Self()
		cmd.Args = cmd.Args[:1]
		cmd.Env = append(cmd.Env, roleEnv+"="+role)
		return cmd
	}
}

// testOptions are short enough for tests and long enough for a busy machine.
func testOptions() Options {
	return Options{
		Command:        command("worker"),
		CallTimeout:    2 * time.Second,
		StartTimeout:   20 * time.Second,
		StopTimeout:    5 * time.Second,
		StatusInterval: 20 * time.Millisecond,
		MinBackoff:     300 * time.Millisecond,
		MaxBackoff:     time.Second,
	}
}

// newStorePool returns a pool that is closed at the end of the test, when
// nothing of it may be left.
func newStorePool(t *testing.T, o StoreOptions) *StorePool {
	t.Helper()
	o.DriverName = "test.csi"
	checkLeaks(t)
	p, err := NewStorePool(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closePool(t, p) })
	return p
}

func closePool(t *testing.T, p interface{ Close(context.Context) error }) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// checkLeaks fails the test if at its end goroutines, descriptors or children
// are left that were not there before.
func checkLeaks(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	// The poller of the runtime opens its descriptors once.
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
	fds := openFiles(t)
	t.Cleanup(func() {
		goleak.VerifyNone(t, before)
		if now := openFiles(t); len(now) > len(fds) {
			t.Errorf("descriptors leaked: before %v, now %v", fds, now)
		}
		var status unix.WaitStatus
		if pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
			t.Errorf("child processes are left: wait4 = %d, %v", pid, err)
		}
	})
}

func openFiles(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(target, "/proc/") && !strings.HasPrefix(target, "anon_inode:") {
			files = append(files, e.Name()+"="+target)
		}
	}
	return files
}

// waitFor waits until the condition holds; say describes what there is instead.
func waitFor(t *testing.T, what string, condition func() bool, say func() string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 20 s; %s", what, say())
		}
		<-ticker.C
	}
}

// export is one that the fake store serves from a directory of its own.
func export(t *testing.T) nfs.Export {
	t.Helper()
	return nfs.Export{Server: "fake", Share: t.TempDir()}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	// Renamed into place, so that nobody reads half of it.
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func makeFIFO(t *testing.T, path string) {
	t.Helper()
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
}

// waitOn blocks while the path is a FIFO, as work on a file does whose server is
// gone: in the kernel, where no context reaches. It leaves "<path>.waiting" first.
func waitOn(path string) {
	if info, err := os.Stat(path); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		return
	}
	_ = os.WriteFile(path+".waiting", nil, 0o600)
	if f, err := os.Open(path); err == nil {
		f.Close()
	}
}

// fakeStore is a store whose directory holds what it should do.
type fakeStore struct {
	dir string
	admin.Backend
}

// openFake opens a real store on a directory for the server "real", else a fake
// one. The FIFO "open" blocks it, the file "refuse" is the sentinel it fails with.
func openFake(ctx context.Context, c StoreConfig) (Backend, error) {
	if c.Export.Server == "real" {
		root, err := os.OpenRoot(c.Export.Share)
		if err != nil {
			return nil, err
		}
		var origin *os.Root
		if c.Origin.Share != "" {
			if origin, err = os.OpenRoot(c.Origin.Share); err != nil {
				return nil, err
			}
		}
		s, err := openStore(ctx, c, root, origin)
		return &exportStore{Store: s}, err
	}
	waitOn(filepath.Join(c.Export.Share, "open"))
	if name, err := os.ReadFile(filepath.Join(c.Export.Share, "refuse")); err == nil {
		return nil, fmt.Errorf("refused: %w", nfs.Sentinels()[string(name)])
	}
	return fakeStore{dir: c.Export.Share}, nil
}

func (s fakeStore) CreateVolume(_ context.Context, spec nfs.VolumeSpec) (nfs.Volume, error) {
	return nfs.Volume{ID: "x", Name: spec.Name, Dir: spec.Dir, CapacityBytes: spec.MinBytes, OnDelete: spec.OnDelete,
		Mode: spec.Mode, UID: spec.UID, GID: spec.GID, Claim: spec.Claim, Source: spec.Source, Created: time.Unix(1, 2).UTC()}, nil
}

// GetVolume returns the worker's pid as the name, after it has waited on the
// file that is called like the id. "crash" and "error:..." do what they say.
func (s fakeStore) GetVolume(_ context.Context, id string) (nfs.Volume, error) {
	if id == "crash" {
		os.Exit(7)
	}
	if name, ok := strings.CutPrefix(id, "error:"); ok {
		return nfs.Volume{}, fakeError(name)
	}
	waitOn(filepath.Join(s.dir, id))
	return nfs.Volume{ID: id, Name: strconv.Itoa(os.Getpid())}, nil
}

// fakeError is the same in the test and in the worker.
func fakeError(name string) error {
	switch name {
	case "plain":
		return errors.New("nothing\xff known: 100% \"odd\"\nsecond line")
	case "canceled":
		return fmt.Errorf("stopped: %w", context.Canceled)
	case "deadline":
		return fmt.Errorf("late: %w", context.DeadlineExceeded)
	case "two":
		return fmt.Errorf("%w and %w", nfs.ErrUnavailable, nfs.ErrBusy)
	}
	return fmt.Errorf("volume \"a\xffb\" on srv:/data: %w: try something else", nfs.Sentinels()[name])
}

// fakeVolumes is how many volumes the fake store lists: more than two pages.
const fakeVolumes = 2*maxPage + 100

func (fakeStore) ListVolumes(_ context.Context, after string, limit int) ([]nfs.Volume, error) {
	var volumes []nfs.Volume
	for i := range fakeVolumes {
		id := fmt.Sprintf("v%05d", i)
		if id > after && len(volumes) < limit {
			// As long as can be, for the size of a page.
			volumes = append(volumes, nfs.Volume{ID: id, Name: strings.Repeat("n", 63), Dir: strings.Repeat("d/", 1499) + "dd"})
		}
	}
	return volumes, nil
}

// UpdateVolume returns a volume that has everything of the change.
func (fakeStore) UpdateVolume(_ context.Context, id string, c nfs.VolumeChange) (nfs.Volume, error) {
	v, err := c.Apply(nfs.Volume{ID: id})
	v.Name = fmt.Sprint(c.MinBytes, c.MaxBytes, c.OnDelete != nil, c.ArchiveRetention != nil, c.Mode != nil, c.UID != nil, c.GID != nil)
	return v, err
}

func (fakeStore) DeleteVolume(_ context.Context, id, dir string) error {
	return fmt.Errorf("%w: %s at %s", nfs.ErrForeign, id, dir)
}

// CreateSnapshot answers one that is of the volume and, if that has a longer name, ready.
func (fakeStore) CreateSnapshot(_ context.Context, name, volumeID string) (nfs.Snapshot, error) {
	return nfs.Snapshot{ID: nfs.RecordID(name), Name: name, Volume: volumeID, Created: time.Unix(3, 4).UTC(), SizeBytes: 1 << 40, Ready: len(volumeID) > len(name)}, nil
}

func (fakeStore) GetSnapshot(_ context.Context, id string) (nfs.Snapshot, error) {
	return nfs.Snapshot{}, fmt.Errorf("%w: %s", nfs.ErrNotFound, id)
}

func (fakeStore) ListSnapshots(_ context.Context, volumeID, after string, limit int) ([]nfs.Snapshot, error) {
	var snapshots []nfs.Snapshot
	for i := range fakeVolumes {
		if id := fmt.Sprintf("s%05d", i); id > after && len(snapshots) < limit {
			snapshots = append(snapshots, nfs.Snapshot{ID: id, Volume: volumeID, Created: time.Unix(3, 4).UTC()})
		}
	}
	return snapshots, nil
}

func (fakeStore) DeleteSnapshot(_ context.Context, id string) error {
	return fmt.Errorf("%w: %s", nfs.ErrBusy, id)
}

func (fakeStore) Usage(context.Context) (nfs.Usage, error) {
	return nfs.Usage{TotalBytes: 1, AvailableBytes: 2, UsedBytes: 3, TotalInodes: 4, AvailableInodes: 5, UsedInodes: 6}, nil
}

// Status has the numbers in the file "status".
func (s fakeStore) Status() Status {
	status := Status{TrashSettled: true}
	if text, err := os.ReadFile(filepath.Join(s.dir, "status")); err == nil {
		var expiry int64
		_, _ = fmt.Sscan(string(text), &status.TrashBacklog, &status.Purged, &expiry, &status.Copies, &status.CopiesFailed, &status.CopiedFiles, &status.CopiedBytes)
		if expiry > 0 {
			status.NextExpiry = time.Unix(0, expiry)
		}
		status.TrashSettled = status.TrashBacklog == 0 && status.Copies == 0
		status.TrashSettled = status.TrashBacklog == 0 && status.Copies == 0
	}
	return status
}

// fakeMounter waits on the file "<target>.fifo" and then writes what it was asked
// to the target, which is a file.
type fakeMounter struct{}

func (fakeMounter) Mount(_ context.Context, e nfs.Export, dir, target string, readOnly bool) error {
	waitOn(target + ".fifo")
	return os.WriteFile(target, fmt.Appendf(nil, "mount %s %s %v %v %d", e, dir, e.Options, readOnly, os.Getpid()), 0o600)
}

func (fakeMounter) Bind(_ context.Context, source, target string, readOnly bool) error {
	waitOn(target + ".fifo")
	return os.WriteFile(target, fmt.Appendf(nil, "bind %s %v %d", source, readOnly, os.Getpid()), 0o600)
}

// Usage answers the worker's pid as the total, and one more probe each time as
// the inodes: the file "<path>/probes" counts them.
func (fakeMounter) Usage(_ context.Context, path string) (nfs.Usage, error) {
	f, err := os.OpenFile(filepath.Join(path, "probes"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nfs.Usage{}, err
	}
	defer f.Close()
	if _, err := f.WriteString("x"); err != nil {
		return nfs.Usage{}, err
	}
	waitOn(filepath.Join(path, "fifo"))
	return nfs.Usage{TotalBytes: int64(os.Getpid())}, nil
}

// fakeHost has the mounts that it is given.
type fakeHost struct {
	mounts    []mountutils.MountInfo
	unmounted chan string
}

func (h *fakeHost) List() ([]mountutils.MountInfo, error) { return h.mounts, nil }

func (h *fakeHost) Unmount(_ context.Context, target string) error {
	h.unmounted <- target
	return nil
}
