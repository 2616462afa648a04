package worker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func TestErrorsCrossTheWire(t *testing.T) {
	pool := newStorePool(t, StoreOptions{Options: testOptions()})
	s, err := pool.Open(t.Context(), export(t))
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"plain", "canceled", "deadline"}
	for name := range nfs.Sentinels() {
		names = append(names, name)
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			// A stale export is mounted anew for the next call.
			_, err := s.GetVolume(t.Context(), "error:"+name)
			want := fakeError(name)
			if err == nil || err.Error() != want.Error() {
				t.Fatalf("error is %q, want %q", err, want)
			}
			for other, sentinel := range nfs.Sentinels() {
				if got := errors.Is(err, sentinel); got != (other == name) {
					t.Errorf("errors.Is(err, %s) = %t", other, got)
				}
			}
			if got := errors.Is(err, context.Canceled); got != (name == "canceled") {
				t.Errorf("errors.Is(err, context.Canceled) = %t", got)
			}
			if got := errors.Is(err, context.DeadlineExceeded); got != (name == "deadline") {
				t.Errorf("errors.Is(err, context.DeadlineExceeded) = %t", got)
			}
		})
	}
	if name := sentinelName(fakeError("two")); name != "busy" {
		t.Errorf("of two sentinels the name is %q, want the first, busy", name)
	}
}

func TestValuesCrossTheWire(t *testing.T) {
	pool := newStorePool(t, StoreOptions{Options: testOptions()})
	s, err := pool.Open(t.Context(), export(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, spec := range []nfs.VolumeSpec{
		{},
		{Name: "n %#", Dir: "a/ü", MinBytes: 1 << 40, MaxBytes: 2, OnDelete: nfs.Archive, Mode: 0o777 | os.ModeSetgid | os.ModeSticky | os.ModeSetuid,
			UID: new(uint32(0)), GID: new(uint32(1<<32 - 2)), Claim: nfs.Claim{Namespace: "ns", Name: "pvc"}},
		{Name: "clone", Source: nfs.Source{Volume: "v"}},
		{Name: "restore", Source: nfs.Source{Snapshot: "s", Export: nfs.Export{Server: "other", Share: "/data", Options: []string{"soft"}}}},
	} {
		want, _ := fakeStore{}.CreateVolume(t.Context(), spec)
		got, err := s.CreateVolume(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("volume (-want +got):\n%s", diff)
		}
	}
	usage, err := s.Usage(t.Context())
	if diff := cmp.Diff(nfs.Usage{TotalBytes: 1, AvailableBytes: 2, UsedBytes: 3, TotalInodes: 4, AvailableInodes: 5, UsedInodes: 6}, usage); diff != "" || err != nil {
		t.Errorf("usage: %v (-want +got):\n%s", err, diff)
	}
	for want, change := range map[string]nfs.VolumeChange{
		"0 0 false false false false false": {},
		"3 7 true true true true true": {
			MinBytes: 3, MaxBytes: 7, OnDelete: new(nfs.Archive), ArchiveRetention: new(time.Hour), Mode: new(fs.ModeSetgid | 0o770), UID: new(uint32(0)), GID: new(uint32(4711)),
		},
	} {
		updated, err := s.UpdateVolume(t.Context(), "the-id", change)
		wanted, _ := change.Apply(nfs.Volume{ID: "the-id", Name: want})
		if diff := cmp.Diff(wanted, updated); err != nil || diff != "" {
			t.Errorf("UpdateVolume: %v (-want +got):\n%s", err, diff)
		}
	}
	if err := s.DeleteVolume(t.Context(), "the-id", "the-dir"); !errors.Is(err, nfs.ErrForeign) || !strings.Contains(err.Error(), "the-id at the-dir") {
		t.Errorf("delete: %v", err)
	}
	for _, tc := range []struct {
		after       string
		limit, want int
		first       string
	}{
		{"", 0, fakeVolumes, "v00000"},
		{"", 1, 1, "v00000"},
		{"", maxPage, maxPage, "v00000"},
		{"v00009", maxPage + 1, maxPage + 1, "v00010"},
		{"v00099", 2 * maxPage, 2 * maxPage, "v00100"},
		{"v00099", 0, fakeVolumes - 100, "v00100"},
		{"z", 0, 0, ""},
	} {
		volumes, err := s.ListVolumes(t.Context(), tc.after, tc.limit)
		if err != nil || len(volumes) != tc.want {
			t.Errorf("list after %q, limit %d: %d volumes, %v; want %d", tc.after, tc.limit, len(volumes), err, tc.want)
			continue
		}
		for i, v := range volumes {
			var first int
			_, _ = fmt.Sscanf(tc.first, "v%d", &first)
			if want := fmt.Sprintf("v%05d", first+i); v.ID != want {
				t.Errorf("list after %q, limit %d: volume %d is %s, want %s", tc.after, tc.limit, i, v.ID, want)
				break
			}
		}
	}
}

func TestRealStoreInWorker(t *testing.T) {
	pool := newStorePool(t, StoreOptions{Options: testOptions(), InstanceID: "cluster"})
	dir := t.TempDir()
	e := nfs.Export{Server: "real", Share: dir}
	s, err := pool.Open(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	spec := nfs.VolumeSpec{Name: "pvc-1", Dir: "team/pvc-1", MinBytes: 1000, OnDelete: nfs.Delete, Mode: nfs.DefaultMode}
	v, err := s.CreateVolume(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "team/pvc-1")); err != nil || !info.IsDir() {
		t.Errorf("directory of the volume: %v, %v", info, err)
	}
	got, err := s.GetVolume(t.Context(), v.ID)
	if diff := cmp.Diff(v, got); diff != "" || err != nil {
		t.Errorf("get after create: %v (-want +got):\n%s", err, diff)
	}
	spec.MinBytes = 2000
	if _, err := s.CreateVolume(t.Context(), spec); !errors.Is(err, nfs.ErrConflict) {
		t.Errorf("create with another size: %v, want ErrConflict", err)
	}
	volumes, err := s.ListVolumes(t.Context(), "", 0)
	if diff := cmp.Diff([]nfs.Volume{v}, volumes); diff != "" || err != nil {
		t.Errorf("list: %v (-want +got):\n%s", err, diff)
	}
	if err := s.DeleteVolume(t.Context(), v.ID, ""); err != nil {
		t.Error(err)
	}
	if _, err := s.GetVolume(t.Context(), v.ID); !errors.Is(err, nfs.ErrNotFound) {
		t.Errorf("get after delete: %v, want ErrNotFound", err)
	}
	if diff := cmp.Diff([]nfs.Export{e}, pool.Exports()); diff != "" {
		t.Errorf("exports (-want +got):\n%s", diff)
	}
}

// parent is a driver with one worker in which a call hangs; it says the pid of
// the worker when that is so.
func parent(dir string) error {
	ctx := context.Background()
	pool, err := NewStorePool(ctx, StoreOptions{Options: Options{Command: command("worker")}, DriverName: "test"})
	if err != nil {
		return err
	}
	s, err := pool.Open(ctx, nfs.Export{Server: "fake", Share: dir})
	if err != nil {
		return err
	}
	v, err := s.GetVolume(ctx, "pid")
	if err != nil {
		return err
	}
	fmt.Println(v.Name)
	_, err = s.GetVolume(ctx, "hang")
	return err
}

func TestWorkerEndsWithItsParent(t *testing.T) {
	checkLeaks(t)
	dir := t.TempDir()
	makeFIFO(t, filepath.Join(dir, "hang"))
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", dir)
	cmd.Env = append(os.Environ(), roleEnv+"=parent")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	pid, numErr := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || numErr != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		t.Fatalf("the parent said %q: %v, %v\n%s", line, err, numErr, stderr.String())
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	waitFor(t, "the worker hangs in a call", func() bool {
		_, err := os.Stat(filepath.Join(dir, "hang.waiting"))
		return err == nil
	}, stderr.String)

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// A process descriptor is readable once the process has ended (pidfd_open(2)).
	waitFor(t, "the worker ends after its parent was killed", func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n == 1
	}, func() string {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		return fmt.Sprintf("the worker %d still runs", pid)
	})
	// It had the parent's standard error, so Wait has waited for it too.
	_ = cmd.Wait()
}

func TestMainWithoutSocket(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	// Main owns the descriptor and closes it.
	fd, err := unix.Dup(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	err = Main(t.Context(), fd, Backends{})
	if err == nil || !strings.Contains(err.Error(), "the driver itself starts its workers") {
		t.Errorf("Main on a plain file: %v", err)
	}
}

func TestCloseWithHangingCall(t *testing.T) {
	e := export(t)
	makeFIFO(t, filepath.Join(e.Share, "hang"))
	options := testOptions()
	options.CallTimeout = time.Hour
	pool := newStorePool(t, StoreOptions{Options: options})
	s, err := pool.Open(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := s.GetVolume(context.Background(), "hang")
		done <- err
	}()
	waitFor(t, "the call hangs", func() bool { return exists(e, "hang.waiting") }, func() string { return "" })
	closePool(t, pool)
	if err := <-done; !errors.Is(err, nfs.ErrUnavailable) || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("the hanging call: %v, want ErrUnavailable because of the stop", err)
	}
	if _, err := s.GetVolume(t.Context(), "late"); !errors.Is(err, nfs.ErrUnavailable) {
		t.Errorf("a call after Close: %v, want ErrUnavailable", err)
	}
	if _, err := pool.Open(t.Context(), export(t)); !errors.Is(err, nfs.ErrUnavailable) {
		t.Errorf("an Open after Close: %v, want ErrUnavailable", err)
	}
}

func exists(e nfs.Export, name string) bool {
	_, err := os.Stat(filepath.Join(e.Share, name))
	return err == nil
}

// A worker sleeps as late as it may, and this process as it did before.
func TestStartDrowsy(t *testing.T) {
	const file = "/proc/self/timerslack_ns"
	slack := func(start func(*exec.Cmd) error) string {
		var out strings.Builder
		cmd := exec.CommandContext(t.Context(), "cat", file)
		cmd.Stdout = &out
		if err := start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out.String())
	}
	before := slack((*exec.Cmd).Start)
	if got, want := slack(startDrowsy), fmt.Sprint(TimerSlack.Nanoseconds()); got != want {
		t.Errorf("the slack is %s ns, want %s", got, want)
	}
	if after := slack((*exec.Cmd).Start); after != before {
		t.Errorf("the slack of other children is %s ns, and was %s", after, before)
	}
}

func TestStatusConversion(t *testing.T) {
	for _, want := range []Status{{}, {
		TrashBacklog: 1, TrashFailing: 2, TrashSettled: true, Purged: 3, SkippedRecords: 4,
		Archives: 5, ArchivesExpired: 6, NextExpiry: time.Unix(7, 8).UTC(), Quota: true,
	}} {
		if diff := cmp.Diff(want, statusFromPB(statusToPB(want))); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}
