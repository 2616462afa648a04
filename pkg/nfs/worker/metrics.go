package worker

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// counters are what a keeper counts for its metrics.
type counters struct {
	starts, kills, crashes int64
	// The rest sums up the former workers.
	purged, skipped, expired               int64
	copiesFailed, copiedFiles, copiedBytes int64
	// status is the last that was heard, of a worker that may have ended.
	status Status
}

// begin takes the first status of a new worker, which counts from 0.
func (c *counters) begin(s Status) {
	c.purged += c.status.Purged
	c.skipped += c.status.SkippedRecords
	c.expired += c.status.ArchivesExpired
	c.copiesFailed += c.status.CopiesFailed
	c.copiedFiles += c.status.CopiedFiles
	c.copiedBytes += c.status.CopiedBytes
	c.status = s
}

// ageSeconds is how long ago the time was; 0 for none.
func ageSeconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return max(0, time.Since(t).Seconds())
}

type descriptions struct {
	running, starts, kills, crashes, breaker, backlog, failing, purged, skipped, archives, expired *prometheus.Desc

	oldest                                         *prometheus.Desc
	copies, copiesFailed, copiedFiles, copiedBytes *prometheus.Desc
}

// describe makes the descriptions for a kind of pool. The label "export" of
// mount workers is their server, since one serves all exports of that, and that of
// workers that copy to an export from another "<export> from <export>".
func describe(kind string) descriptions {
	worker := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("nfs_csi_worker_"+name, help, labels, prometheus.Labels{"kind": kind})
	}
	store := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("nfs_csi_"+name, help, []string{"export"}, nil)
	}
	return descriptions{
		running:  worker("running", "Worker processes that exist, the spare one and those that the kernel does not let go included."),
		starts:   worker("starts_total", "Workers started for the export.", "export"),
		kills:    worker("kills_total", "Workers killed because a call got no answer in time.", "export"),
		crashes:  worker("crashes_total", "Workers that ended by themselves.", "export"),
		breaker:  worker("breaker_open", "1 while calls are refused, or tried one at a time, after a failure.", "export"),
		backlog:  store("trash_backlog", "Deleted volumes that wait in the export's trash, as last seen."),
		failing:  store("trash_failing", "Those of the backlog that could not be removed so far."),
		purged:   store("trash_purged_total", "Files and directories unlinked from the export's trash."),
		skipped:  store("store_skipped_records_total", "Times that a listing left out a record that cannot be read."),
		archives: store("archives", "Archived volumes on the export, as last seen."),
		expired:  store("archives_expired_total", "Archived volumes that went to the trash when their retention had ended."),

		oldest:       store("trash_oldest_age_seconds", "How long ago the first of the backlog was deleted; 0 without any."),
		copies:       store("copies", "Snapshots and clones that are being copied on the export, or wait for it, as last seen."),
		copiesFailed: store("copies_failed_total", "Snapshots and clones given up until they are asked for again, such as on a full disk."),
		copiedFiles:  store("copied_files_total", "Files copied for snapshots and clones."),
		copiedBytes:  store("copied_bytes_total", "Bytes of the files copied for snapshots and clones, whoever moved them."),
	}
}

// Describe implements prometheus.Collector.
func (p *pool) Describe(ch chan<- *prometheus.Desc) {
	d := describe(p.kind)
	for _, desc := range []*prometheus.Desc{d.running, d.starts, d.kills, d.crashes, d.breaker} {
		ch <- desc
	}
	if p.kind == kindStore {
		for _, desc := range []*prometheus.Desc{
			d.backlog, d.failing, d.oldest, d.purged, d.skipped, d.archives, d.expired,
			d.copies, d.copiesFailed, d.copiedFiles, d.copiedBytes,
		} {
			ch <- desc
		}
	}
}

// Collect implements prometheus.Collector. It reads memory only.
func (p *pool) Collect(ch chan<- prometheus.Metric) {
	d := describe(p.kind)
	p.mu.Lock()
	running := len(p.processes)
	p.mu.Unlock()
	ch <- prometheus.MustNewConstMetric(d.running, prometheus.GaugeValue, float64(running))
	for _, k := range p.all() {
		k.mu.Lock()
		c, open := k.counters, 0.0
		if k.failures > 0 {
			open = 1
		}
		k.mu.Unlock()
		for _, m := range []struct {
			desc  *prometheus.Desc
			kind  prometheus.ValueType
			value float64
		}{
			{d.starts, prometheus.CounterValue, float64(c.starts)},
			{d.kills, prometheus.CounterValue, float64(c.kills)},
			{d.crashes, prometheus.CounterValue, float64(c.crashes)},
			{d.breaker, prometheus.GaugeValue, open},
		} {
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value, k.label)
		}
		if k.isStore() {
			ch <- prometheus.MustNewConstMetric(d.backlog, prometheus.GaugeValue, float64(c.status.TrashBacklog), k.label)
			ch <- prometheus.MustNewConstMetric(d.failing, prometheus.GaugeValue, float64(c.status.TrashFailing), k.label)
			ch <- prometheus.MustNewConstMetric(d.oldest, prometheus.GaugeValue, ageSeconds(c.status.TrashOldest), k.label)
			ch <- prometheus.MustNewConstMetric(d.purged, prometheus.CounterValue, float64(c.purged+c.status.Purged), k.label)
			ch <- prometheus.MustNewConstMetric(d.skipped, prometheus.CounterValue, float64(c.skipped+c.status.SkippedRecords), k.label)
			ch <- prometheus.MustNewConstMetric(d.archives, prometheus.GaugeValue, float64(c.status.Archives), k.label)
			ch <- prometheus.MustNewConstMetric(d.expired, prometheus.CounterValue, float64(c.expired+c.status.ArchivesExpired), k.label)
		}
		if p.kind == kindStore {
			ch <- prometheus.MustNewConstMetric(d.copies, prometheus.GaugeValue, float64(c.status.Copies), k.label)
			ch <- prometheus.MustNewConstMetric(d.copiesFailed, prometheus.CounterValue, float64(c.copiesFailed+c.status.CopiesFailed), k.label)
			ch <- prometheus.MustNewConstMetric(d.copiedFiles, prometheus.CounterValue, float64(c.copiedFiles+c.status.CopiedFiles), k.label)
			ch <- prometheus.MustNewConstMetric(d.copiedBytes, prometheus.CounterValue, float64(c.copiedBytes+c.status.CopiedBytes), k.label)
		}
	}
}
