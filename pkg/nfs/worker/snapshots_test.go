package worker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
