package store

import (
	"context"
	"path"
	"strings"
	"time"

	"k8s.io/klog/v2"
)

// cloneAge is how long a clone waits, complete or given up, for the call that makes
// it a volume or tries again.
const cloneAge = 24 * time.Hour

// scanJobs starts the jobs that are unfinished, and removes what nobody wants.
func (s *Store) scanJobs(ctx context.Context) error {
	l, err := s.layout(ctx)
	if err != nil || l == nil {
		return err
	}
	defer func() { s.reopenAfter(l, err) }()
	if err := l.work.refresh(ctx); err != nil {
		return err
	}
	var names []string
	err = l.work.list(ctx, func(some []string) error {
		for _, name := range some {
			if _, _, ok := parseJobName(name); ok || strings.HasPrefix(name, newJobPrefix) {
				names = append(names, name)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := s.scanJob(ctx, l, name); err != nil {
			if ctx.Err() != nil {
				return err
			}
			klog.FromContext(ctx).Info("A snapshot or clone that is unfinished is left alone for now", "job", path.Join(l.work.path, name), "err", err)
		}
	}
	return nil
}

func (s *Store) scanJob(ctx context.Context, l *layout, name string) error {
	kind, id, ok := parseJobName(name)
	if !ok {
		st, err := l.work.lstat(ctx, name)
		if err == nil && time.Since(time.Unix(st.mtime.Unix())) > workAge {
			err = s.toTrash(ctx, l, l.work, name, "new")
		}
		return ignoreAbsent(err)
	}
	job, err := s.findJob(ctx, l, kind, id)
	if err != nil || job == nil {
		return err
	}
	defer job.close()
	if s.opts.checkJobOwner(job.record) != nil {
		return nil
	}
	ended, err := job.ended(ctx)
	switch {
	case err != nil:
		return err
	case kind == cloneJob && !ended.IsZero() && s.jobs.of(job.record) == nil:
		made, err := l.recordForSure(ctx, id)
		if err == nil && (made != nil || time.Since(ended) > cloneAge) {
			err = s.discardClone(ctx, l, job)
		}
		return err
	case !ended.IsZero():
		return nil // It waits to be asked for.
	case s.reaches(job.record.Source.source()) != nil:
		// It is for a store that does, which renews its lease here.
		at, err := job.fresh(ctx)
		if err == nil && time.Since(time.Unix(at.mtime.Unix())) > cloneAge {
			err = s.discardClone(ctx, l, job)
		}
		return err
	}
	_, err = s.jobs.start(ctx, l, job)
	return err
}
