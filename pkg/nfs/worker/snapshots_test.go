package worker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func TestSnapshotsCrossTheWire(t *testing.T) {
	pool := newStorePool(t, StoreOptions{Options: testOptions()})
	s, err := pool.Open(t.Context(), export(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, volume := range []string{"v", "a-longer-name"} {
		want, _ := fakeStore{}.CreateSnapshot(t.Context(), "S #1", volume)
		got, err := s.CreateSnapshot(t.Context(), "S #1", volume)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("create: %v (-want +got):\n%s", err, diff)
		}
	}
	if _, err := s.GetSnapshot(t.Context(), "the-id"); !errors.Is(err, nfs.ErrNotFound) || !strings.Contains(err.Error(), "the-id") {
		t.Errorf("get: %v", err)
	}
	if err := s.DeleteSnapshot(t.Context(), "the-id"); !errors.Is(err, nfs.ErrBusy) || !strings.Contains(err.Error(), "the-id") {
		t.Errorf("delete: %v", err)
	}
	for _, tc := range []struct {
		after       string
		limit, want int
		first       string
	}{
		{"", 0, fakeVolumes, "s00000"},
		{"s00009", maxPage + 1, maxPage + 1, "s00010"},
		{"z", 0, 0, ""},
	} {
		got, err := s.ListSnapshots(t.Context(), "v", tc.after, tc.limit)
		if err != nil || len(got) != tc.want || len(got) > 0 && (got[0].ID != tc.first || got[0].Volume != "v" || got[0].Created != time.Unix(3, 4).UTC()) {
			t.Errorf("list after %q, limit %d: %d, %v; want %d", tc.after, tc.limit, len(got), err, tc.want)
		}
	}
}

func TestRealSnapshotInWorker(t *testing.T) {
	pool := newStorePool(t, StoreOptions{Options: testOptions(), InstanceID: "cluster"})
	dir := t.TempDir()
	s, err := pool.Open(t.Context(), nfs.Export{Server: "real", Share: dir})
	if err != nil {
		t.Fatal(err)
	}
	spec := nfs.VolumeSpec{Name: "v", Dir: "v", OnDelete: nfs.Delete, Mode: 0o755}
	if _, err := s.CreateVolume(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "v/file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	var snapshot nfs.Snapshot
	waitFor(t, "the snapshot to be ready", func() bool {
		snapshot, err = s.CreateSnapshot(t.Context(), "s", "v")
		return err == nil && snapshot.Ready
	}, func() string { return fmt.Sprintf("%+v, %v", snapshot, err) })
	if snapshot.SizeBytes != 7 {
		t.Errorf("the snapshot: %+v", snapshot)
	}
	waitFor(t, "the volume to be restored", func() bool {
		_, err = s.CreateVolume(t.Context(), nfs.VolumeSpec{Name: "r", Dir: "r", OnDelete: nfs.Delete, Source: nfs.Source{Snapshot: "s"}})
		return err == nil
	}, func() string { return fmt.Sprint(err) })
	if data, err := os.ReadFile(filepath.Join(dir, "r/file")); err != nil || string(data) != "content" {
		t.Errorf("the restored file: %q, %v", data, err)
	}
}

// A copy from another export has a worker of its own, as long as it is of use.
func TestRealCopyAcrossExports(t *testing.T) {
	options := testOptions()
	options.IdleTimeout = 300 * time.Millisecond
	pool := newStorePool(t, StoreOptions{Options: options})
	from, to := nfs.Export{Server: "real", Share: t.TempDir()}, nfs.Export{Server: "real", Share: t.TempDir(), Options: []string{"vers=4.1"}}
	source, err := pool.Open(t.Context(), from)
	if err != nil {
		t.Fatal(err)
	}
	target, err := pool.Open(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := source.CreateVolume(t.Context(), nfs.VolumeSpec{Name: "v", Dir: "v", OnDelete: nfs.Delete, Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(from.Share, "v/file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := nfs.VolumeSpec{Name: "c", Dir: "c", OnDelete: nfs.Delete, Source: nfs.Source{Export: from, Volume: "v"}}
	var made nfs.Volume
	waitFor(t, "the volume to be copied", func() bool {
		made, err = target.CreateVolume(t.Context(), spec)
		return err == nil
	}, func() string { return fmt.Sprint(err) })
	if data, err := os.ReadFile(filepath.Join(to.Share, "c/file")); err != nil || string(data) != "content" {
		t.Errorf("the copied file: %q, %v", data, err)
	}
	if got := pool.Exports(); len(got) != 2 || slices.ContainsFunc(got, func(e nfs.Export) bool { return !e.Equal(from) && !e.Equal(to) }) {
		t.Errorf("the exports: %v", got)
	}
	label := to.Key() + " from " + from.String()
	rows := func() (rows []string) {
		for _, line := range metricsOf(t, pool) {
			if strings.Contains(line, "export="+label) {
				rows = append(rows, line)
			}
		}
		return rows
	}
	for _, want := range []string{"nfs_csi_copied_files_total", "nfs_csi_worker_starts_total"} {
		waitFor(t, "the metric "+want, func() bool {
			return slices.ContainsFunc(rows(), func(row string) bool { return strings.HasPrefix(row, want) && strings.HasSuffix(row, " 1") })
		}, func() string { return fmt.Sprint(rows()) })
	}
	if slices.ContainsFunc(rows(), func(row string) bool { return strings.HasPrefix(row, "nfs_csi_trash") }) {
		t.Errorf("the trash is counted twice: %v", rows())
	}
	waitFor(t, "the worker of the copy to go", func() bool { return len(pool.all()) == 2 && len(rows()) == 0 }, func() string { return fmt.Sprint(rows()) })

	// What is there needs no source.
	if err := os.RemoveAll(from.Share); err != nil {
		t.Fatal(err)
	}
	if again, err := target.CreateVolume(t.Context(), spec); err != nil || !again.Created.Equal(made.Created) {
		t.Errorf("again: %+v, %v; want %+v", again, err, made)
	}
	spec.Name, spec.Dir = "d", "d"
	if _, err := target.CreateVolume(t.Context(), spec); err == nil || !strings.Contains(err.Error(), from.Share) {
		t.Errorf("without the source's export: %v", err)
	}
}
