package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func ids(volumes []nfs.Volume) []string {
	var out []string
	for _, v := range volumes {
		out = append(out, v.ID)
	}
	return out
}

// pages lists all volumes in pages.
func pages(t testing.TB, s *Store, limit int) (out []string) {
	t.Helper()
	after := ""
	for {
		page, err := s.ListVolumes(t.Context(), after, limit)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) > limit {
			t.Fatalf("a page of %d, limit %d", len(page), limit)
		}
		out = append(out, ids(page)...)
		if len(page) < limit {
			return out
		}
		after = page[len(page)-1].ID
	}
}

func TestListVolumes(t *testing.T) {
	dir := t.TempDir()
	reads := 0
	s := openStore(t, dir, func(o *Options) {
		o.hook = func(ctx context.Context, op, p string) error {
			if op == "read" && ctx.Value(foregroundKey{}) != nil {
				reads++
			}
			return nil
		}
	})
	// File names "a.json" and "a-b.json" sort the other way round than the ids.
	var want []string
	for _, name := range []string{"a", "a-b", "a.b", "a0", "b", "c", "Not Plain"} {
		want = append(want, create(t, s, volumeSpec(name, name)).ID)
	}
	slices.Sort(want)
	create(t, openStore(t, dir, func(o *Options) { o.InstanceID = "two" }), volumeSpec("aa", "aa"))
	mustWrite(t, filepath.Join(dir, ownDir, "volumes/broken.json"), "{")
	mustWrite(t, filepath.Join(dir, ownDir, "volumes/stray"), "x")

	all, err := s.ListVolumes(t.Context(), "", 0)
	if diff := cmp.Diff(want, ids(all)); err != nil || diff != "" {
		t.Errorf("all: %v (-want +got):\n%s", err, diff)
	}
	if got := s.Backlog().SkippedRecords; got != 1 {
		t.Errorf("skipped records: %d", got)
	}
	for limit := 1; limit < 9; limit++ {
		if diff := cmp.Diff(want, pages(t, s, limit)); diff != "" {
			t.Errorf("pages of %d (-want +got):\n%s", limit, diff)
		}
	}
	page, err := s.ListVolumes(context.WithValue(t.Context(), foregroundKey{}, true), "b", 1)
	if err != nil || len(page) != 1 || page[0].ID != "c" || reads != 2 { // "broken" and "c"
		t.Errorf("page: %v, %v, %d records read", ids(page), err, reads)
	}
	if page, err := s.ListVolumes(t.Context(), "zzz", 5); err != nil || len(page) != 0 {
		t.Errorf("after the last: %v, %v", ids(page), err)
	}
	v, err := s.GetVolume(t.Context(), "a")
	if diff := cmp.Diff(all[0], v); err != nil || diff != "" {
		t.Errorf("listed and got differ: %v\n%s", err, diff)
	}
	_, err = s.GetVolume(t.Context(), "broken")
	wantError(t, err, nfs.ErrForeign, "broken.json")
	_, err = s.GetVolume(t.Context(), "aa")
	wantError(t, err, nfs.ErrForeign, `"two"`)
	_, err = s.GetVolume(t.Context(), "none")
	wantError(t, err, nfs.ErrNotFound)
	_, err = s.GetVolume(t.Context(), "../volumes/a")
	wantError(t, err, nfs.ErrInvalid)
}

// Volumes that are there all the time are in every listing, once, whatever else
// comes and goes.
func TestListWhileChanging(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	var stable []string
	for n := range 40 {
		stable = append(stable, create(t, s, volumeSpec(fmt.Sprintf("s%03d", n), fmt.Sprintf("s%03d", n))).ID)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				name := fmt.Sprintf("s%03d-%d", n%40, w)
				if _, err := s.CreateVolume(t.Context(), volumeSpec(name, name)); err != nil {
					t.Error(err)
				}
				if err := s.DeleteVolume(t.Context(), name, ""); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for limit := 1; limit < 15; limit++ {
		var got []string
		for _, id := range pages(t, s, limit) {
			if len(id) == 4 {
				got = append(got, id)
			}
		}
		if diff := cmp.Diff(stable, got); diff != "" {
			t.Errorf("pages of %d (-want +got):\n%s", limit, diff)
		}
	}
	close(stop)
	wg.Wait()
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	got, err := openStore(t, dir).Usage(t.Context())
	var st unix.Statfs_t
	if statErr := unix.Statfs(dir, &st); err != nil || statErr != nil {
		t.Fatal(err, statErr)
	}
	if want := int64(st.Blocks) * st.Frsize; got.TotalBytes != want || got.TotalBytes <= 0 {
		t.Errorf("total %d, want %d", got.TotalBytes, want)
	}
	if got.UsedBytes+got.AvailableBytes > got.TotalBytes || got.TotalInodes != int64(st.Files) {
		t.Errorf("%+v", got)
	}
}

func TestUsageOf(t *testing.T) {
	for name, tt := range map[string]struct {
		st   unix.Statfs_t
		want nfs.Usage
	}{
		"frsize counts, not bsize": {unix.Statfs_t{Bsize: 1 << 20, Frsize: 4096, Blocks: 10, Bfree: 6, Bavail: 5, Files: 9, Ffree: 4},
			nfs.Usage{TotalBytes: 40960, AvailableBytes: 20480, UsedBytes: 16384, TotalInodes: 9, AvailableInodes: 4, UsedInodes: 5}},
		"no frsize": {unix.Statfs_t{Bsize: 512, Blocks: 2, Bfree: 1, Bavail: 1}, nfs.Usage{TotalBytes: 1024, AvailableBytes: 512, UsedBytes: 512}},
		"no limit": {unix.Statfs_t{Frsize: 4096, Blocks: 1<<64 - 1, Bfree: 1<<64 - 1, Bavail: 1<<64 - 1, Files: 1<<64 - 1, Ffree: 1<<64 - 1},
			nfs.Usage{TotalBytes: 1<<63 - 1, AvailableBytes: 1<<63 - 1, TotalInodes: 1<<63 - 1, AvailableInodes: 1<<63 - 1}},
		"more free than there is": {unix.Statfs_t{Frsize: 1, Blocks: 1, Bfree: 2, Bavail: 2}, nfs.Usage{TotalBytes: 1, AvailableBytes: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, usageOf(tt.st)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestCanceled(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	create(t, s, volumeSpec("v", "v"))
	before := tree(t, dir, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, createErr := s.CreateVolume(ctx, volumeSpec("w", "w"))
	_, getErr := s.GetVolume(ctx, "v")
	_, listErr := s.ListVolumes(ctx, "", 0)
	_, usageErr := s.Usage(ctx)
	for name, err := range map[string]error{"create": createErr, "get": getErr, "list": listErr, "usage": usageErr, "delete": s.DeleteVolume(ctx, "v", "")} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if diff := cmp.Diff(before, tree(t, dir, nil)); diff != "" {
		t.Errorf("changed (-before +after):\n%s", diff)
	}
}
