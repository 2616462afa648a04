package worker

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func TestMetrics(t *testing.T) {
	pool := newStorePool(t, StoreOptions{Options: testOptions()})
	mounts, _ := newMountPool(t, testOptions())
	e := export(t)
	e.Options = []string{"vers=4.1"}
	writeFile(t, filepath.Join(e.Share, "status"), "3 7 0 2 1 40 5000")
	s, _ := open(t, pool, e)
	wantUnavailable(t, "crash", get(t.Context(), s, "crash")(), "exit status 7")
	if err := mounts.Mount(t.Context(), nfs.Export{Server: "srv", Share: "/data"}, "", filepath.Join(e.Share, "target"), false); err != nil {
		t.Fatal(err)
	}

	got := metricsOf(t, pool, mounts)
	store, mount := " export=fake:"+e.Share+" vers=4.1", " export=srv"
	want := []string{
		"nfs_csi_archives" + store + " 0",
		"nfs_csi_archives_expired_total" + store + " 0",
		"nfs_csi_copies" + store + " 2",
		"nfs_csi_copies_failed_total" + store + " 1",
		"nfs_csi_copied_files_total" + store + " 40",
		"nfs_csi_copied_bytes_total" + store + " 5000",
		"nfs_csi_store_skipped_records_total" + store + " 0",
		"nfs_csi_trash_backlog" + store + " 3",
		"nfs_csi_trash_failing" + store + " 0",
		"nfs_csi_trash_oldest_age_seconds" + store + " 0",
		"nfs_csi_trash_purged_total" + store + " 7",
		"nfs_csi_worker_breaker_open" + store + " kind=store 1",
		"nfs_csi_worker_breaker_open" + mount + " kind=mount 0",
		"nfs_csi_worker_crashes_total" + store + " kind=store 1",
		"nfs_csi_worker_crashes_total" + mount + " kind=mount 0",
		"nfs_csi_worker_kills_total" + store + " kind=store 0",
		"nfs_csi_worker_kills_total" + mount + " kind=mount 0",
		"nfs_csi_worker_running kind=mount 1",
		"nfs_csi_worker_running kind=store 0",
		"nfs_csi_worker_starts_total" + store + " kind=store 1",
		"nfs_csi_worker_starts_total" + mount + " kind=mount 1",
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

// metricsOf returns the metrics as "name label=value ... value".
func metricsOf(t *testing.T, collectors ...prometheus.Collector) (lines []string) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	for _, c := range collectors {
		if err := registry.Register(c); err != nil {
			t.Fatal(err)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			line := f.GetName()
			for _, l := range m.GetLabel() {
				line += fmt.Sprintf(" %s=%s", l.GetName(), l.GetValue())
			}
			lines = append(lines, fmt.Sprintf("%s %g", line, m.GetCounter().GetValue()+m.GetGauge().GetValue()))
		}
	}
	return lines
}
