package worker

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/admin"
)

// What an operator asks reaches the store in the worker and comes back whole.
func TestAdmin(t *testing.T) {
	pool := newStorePool(t, StoreOptions{Options: testOptions()})
	s, err := pool.Open(t.Context(), nfs.Export{Server: "real", Share: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	dir := s.export.Share
	v, err := s.CreateVolume(t.Context(), nfs.VolumeSpec{Name: "pvc-1", Dir: "a/b", MinBytes: 5, OnDelete: nfs.Delete, Mode: 0o2770, UID: new(uint32(0)), Claim: nfs.Claim{Namespace: "ns", Name: "n"}})
	if err != nil {
		t.Fatal(err)
	}
	items, err := admin.AllItems(t.Context(), s, nfs.ItemVolume)
	want := []nfs.Item{{Kind: nfs.ItemVolume, Key: "pvc-1", Path: "a/b", Volume: v, Driver: "test.csi", Since: v.Created}}
	if diff := cmp.Diff(want, items); err != nil || diff != "" {
		t.Errorf("%v; items (-want +got):\n%s", err, diff)
	}
	stray := filepath.Join(dir, "a", "odd \xff")
	if err := os.Mkdir(stray, 0o755); err != nil {
		t.Fatal(err)
	}
	state, err := s.RunTask(t.Context(), nfs.Task{Kind: nfs.TaskOrphans})
	if err != nil || !state.Done || len(state.Items) != 1 || state.Items[0].Path != "a/odd \xff" || state.Seen != 1 {
		t.Errorf("orphans: %+v, %v", state, err)
	}
	if _, err := s.RunTask(t.Context(), nfs.Task{Kind: nfs.TaskUsage, Item: nfs.ItemVolume, Key: "none"}); !errors.Is(err, nfs.ErrNotFound) {
		t.Errorf("usage of nothing: %v", err)
	}
	adopt := nfs.Task{Kind: nfs.TaskAdopt, Name: "new", Dir: "new", CapacityBytes: 7, OnDelete: nfs.Retain, Claim: nfs.Claim{Namespace: "x", Name: "y"}, Commit: true}
	if err := os.Mkdir(filepath.Join(dir, "new"), 0o755); err != nil {
		t.Fatal(err)
	}
	if state, err = s.RunTask(t.Context(), adopt); err != nil || len(state.Items) != 1 {
		t.Fatalf("adopt: %+v, %v", state, err)
	}
	if got, err := s.GetVolume(t.Context(), "new"); err != nil || !cmp.Equal(got, state.Items[0].Volume) {
		t.Errorf("adopted: %+v, %v; told: %+v", got, err, state.Items[0].Volume)
	}
	if err := s.DeleteVolume(t.Context(), "pvc-1", ""); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the trash to be empty", func() bool {
		trash, err := s.PurgeTrash(t.Context(), false)
		return err == nil && trash.Settled && trash.Removed == 1 && trash.Oldest.IsZero()
	}, func() string {
		trash, err := s.PurgeTrash(t.Context(), false)
		return cmp.Diff(nfs.TrashState{}, trash) + cmp.Diff(nil, err)
	})
}
