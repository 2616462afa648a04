package worker

import (
	"github.com/prometheus/client_golang/prometheus"
)

// counters are what a keeper counts for its metrics.
type counters struct {
	starts, kills, crashes int64
	// purged and skipped sum up the former workers.
	purged, skipped int64
	// status is the last that was heard, of a worker that may have ended.
	status Status
}

// begin takes the first status of a new worker, which counts from 0.
func (c *counters) begin(s Status) {
	c.purged += c.status.Purged
	c.skipped += c.status.SkippedRecords
	c.status = s
}

type descriptions struct {
	running, starts, kills, crashes, breaker, backlog, failing, purged, skipped *prometheus.Desc
}

// describe makes the descriptions; label "export" is the server of a mount
// worker, which serves all exports of that.
func describe() descriptions {
	worker := []string{"kind", "export"}
	trash := []string{"export"}
	return descriptions{
		running: prometheus.NewDesc("nfs_csi_worker_running", "Worker processes that exist, the spare one and those that the kernel does not let go included.", []string{"kind"}, nil),
		starts:  prometheus.NewDesc("nfs_csi_worker_starts_total", "Workers started for the export.", worker, nil),
		kills:   prometheus.NewDesc("nfs_csi_worker_kills_total", "Workers killed because a call got no answer in time.", worker, nil),
		crashes: prometheus.NewDesc("nfs_csi_worker_crashes_total", "Workers that ended by themselves.", worker, nil),
		breaker: prometheus.NewDesc("nfs_csi_worker_breaker_open", "1 while calls are refused, or tried one at a time, after a failure.", worker, nil),
		backlog: prometheus.NewDesc("nfs_csi_trash_backlog", "Deleted volumes that wait in the export's trash, as last seen.", trash, nil),
		failing: prometheus.NewDesc("nfs_csi_trash_failing", "Those of the backlog that could not be removed so far.", trash, nil),
		skipped: prometheus.NewDesc("nfs_csi_store_skipped_records_total", "Times that a listing left out a record that cannot be read.", trash, nil),
		purged:  prometheus.NewDesc("nfs_csi_trash_purged_total", "Files and directories unlinked from the export's trash.", trash, nil),
	}
}

// Describe implements prometheus.Collector.
func (p *pool) Describe(ch chan<- *prometheus.Desc) {
	d := describe()
	for _, desc := range []*prometheus.Desc{d.running, d.starts, d.kills, d.crashes, d.breaker} {
		ch <- desc
	}
	if p.kind == kindStore {
		for _, desc := range []*prometheus.Desc{d.backlog, d.failing, d.purged, d.skipped} {
			ch <- desc
		}
	}
}

// Collect implements prometheus.Collector. It reads memory only.
func (p *pool) Collect(ch chan<- prometheus.Metric) {
	d := describe()
	p.mu.Lock()
	running := len(p.processes)
	p.mu.Unlock()
	ch <- prometheus.MustNewConstMetric(d.running, prometheus.GaugeValue, float64(running), p.kind)
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
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value, p.kind, k.label)
		}
		if p.kind == kindStore {
			ch <- prometheus.MustNewConstMetric(d.backlog, prometheus.GaugeValue, float64(c.status.TrashBacklog), k.label)
			ch <- prometheus.MustNewConstMetric(d.failing, prometheus.GaugeValue, float64(c.status.TrashFailing), k.label)
			ch <- prometheus.MustNewConstMetric(d.purged, prometheus.CounterValue, float64(c.purged+c.status.Purged), k.label)
			ch <- prometheus.MustNewConstMetric(d.skipped, prometheus.CounterValue, float64(c.skipped+c.status.SkippedRecords), k.label)
		}
	}
}
