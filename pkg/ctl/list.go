package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/admin"
)

// Command is one run of ctl.
type Command struct {
	Options
	// Output is "table", "wide" or "json".
	Output string
	Stdout io.Writer
	Stderr io.Writer
}

// Outputs are the values of Command.Output.
func Outputs() []string { return []string{"table", "wide", "json"} }

// each calls f with every export to work on. An export that fails does not keep the
// others from being worked on.
func (c Command) each(ctx context.Context, f func(target) error) (err error) {
	targets, end, err := connect(ctx, c.Options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	if len(targets) == 0 {
		return errors.New("this controller knows no export yet: name it in the chart's exports, or make a StorageClass of it")
	}
	var failed []error
	for _, t := range targets {
		if err := f(t); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			failed = append(failed, t.errOf(err))
		}
	}
	return errors.Join(failed...)
}

// List shows all items of the kind; with usage, what each takes on the disk.
func (c Command) List(ctx context.Context, kind nfs.ItemKind, usage bool) error {
	if err := checkRoot(c.Options); err != nil {
		return err
	}
	c.Store.Passive = true
	var rows []row
	err := c.each(ctx, func(t target) error {
		items, err := admin.AllItems(ctx, t, kind)
		if err != nil {
			return err
		}
		var here []row
		for _, i := range items {
			here = append(here, newRow(t, i))
		}
		if usage {
			err = c.measure(ctx, t, here)
		}
		rows = append(rows, here...)
		return err
	})
	return errors.Join(c.print(kind, rows, usage), err)
}

// print writes the rows; what could be had is shown even if something failed.
func (c Command) print(kind nfs.ItemKind, rows []row, usage bool) error {
	sortRows(rows)
	if c.Output == "json" {
		if rows == nil {
			rows = []row{}
		}
		return writeJSON(c.Stdout, rows)
	}
	if len(rows) == 0 {
		_, err := fmt.Fprintln(c.Stderr, "Nothing found.")
		return err
	}
	several := false
	for _, r := range rows {
		several = several || r.Export != rows[0].Export
	}
	return writeRows(c.Stdout, columnsOf(kind, time.Now(), several || c.Output == "wide", usage), rows, c.Output == "wide")
}

// measure fills in what the items take on the disk, one after the other.
func (c Command) measure(ctx context.Context, t target, rows []row) error {
	p := newProgress(c.Stderr)
	defer p.end()
	for i := range rows {
		r := &rows[i]
		if r.item.Path == "" {
			continue
		}
		state, err := runTask(ctx, t, nfs.Task{Kind: nfs.TaskUsage, Item: r.item.Kind, Key: r.item.Key}, func(s nfs.TaskState) {
			p.show(i, len(rows), "%s: measuring %s %d of %d: %s files, %s", t.name, r.Kind, i+1, len(rows), count(s.Seen), size(s.Bytes))
		})
		if errors.Is(err, nfs.ErrNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("measure the %s %q: %w", r.Kind, r.item.Path, plain(err))
		}
		r.UsedBytes, r.UsedFiles, r.UnreadableDirectories = new(state.Bytes), new(state.Seen), state.Denied
		if state.Denied > 0 && r.Problem == "" {
			r.Problem = fmt.Sprintf("%d directories could not be read and are not counted", state.Denied)
		}
	}
	return nil
}

// runTask repeats the task until it is done.
func runTask(ctx context.Context, t target, task nfs.Task, tell func(nfs.TaskState)) (nfs.TaskState, error) {
	for {
		state, err := t.RunTask(ctx, task)
		if err != nil || state.Done {
			return state, err
		}
		tell(state)
	}
}

// Orphans shows what does not belong together on the exports.
func (c Command) Orphans(ctx context.Context) error {
	if err := checkRoot(c.Options); err != nil {
		return err
	}
	c.Store.Passive = true
	var rows []row
	err := c.each(ctx, func(t target) error {
		p := newProgress(c.Stderr)
		defer p.end()
		state, err := runTask(ctx, t, nfs.Task{Kind: nfs.TaskOrphans}, func(s nfs.TaskState) {
			p.show(0, 0, "%s: %s records looked at", t.name, count(s.Seen))
		})
		if err != nil {
			return err
		}
		for _, i := range state.Items {
			rows = append(rows, newRow(t, i))
		}
		if state.More > 0 {
			return fmt.Errorf("%s more are not shown: deal with these first, and look again", count(state.More))
		}
		return nil
	})
	return errors.Join(c.print(nfs.ItemDirectory, rows, false), err)
}
