package ctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc/status"

	"github.com/nfs-csi/nfs-csi-driver/pkg/driver"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// Adopt gives the directory a record, or with a dry run says what that would be, and
// writes the PersistentVolume to use it with.
func (c Command) Adopt(ctx context.Context, task nfs.Task) error {
	task.Kind = nfs.TaskAdopt
	return c.mend(ctx, task, fmt.Sprintf("the directory %q", task.Dir))
}

// Restore takes an archive back into service, as Adopt does a directory.
func (c Command) Restore(ctx context.Context, task nfs.Task) error {
	task.Kind = nfs.TaskRestore
	return c.mend(ctx, task, fmt.Sprintf("the archive %q", task.Key))
}

// mend makes a volume of what there is.
func (c Command) mend(ctx context.Context, task nfs.Task, what string) error {
	if c.Path != "" && c.Export == "" {
		return usageError{errors.New("--path needs --export server:/share as well: the volume's handle holds it")}
	}
	if nfs.RecordID(task.Name) != task.Name {
		return usageError{fmt.Errorf("--name %q is no name for a PersistentVolume: lower-case letters, digits, - and ., 63 at most", task.Name)}
	}
	c.Store.Passive = true
	targets, end, err := connect(ctx, c.Options)
	if err != nil {
		return err
	}
	defer func() { _ = end() }()
	if len(targets) != 1 {
		names := ""
		for _, t := range targets {
			names += "\n  --export " + fmt.Sprintf("%q", t.name)
		}
		return usageError{fmt.Errorf("name one of the %d exports:%s", len(targets), names)}
	}
	t := targets[0]
	p := newProgress(c.Stderr)
	defer p.end()
	state, err := runTask(ctx, t, task, func(s nfs.TaskState) {
		p.show(0, 0, "%s: looking at %s: %s seen", t.name, what, count(s.Seen))
	})
	p.end()
	if err != nil {
		return t.errOf(err)
	}
	if len(state.Items) != 1 {
		return t.errOf(fmt.Errorf("the store answered with %d volumes", len(state.Items)))
	}
	return c.writeVolume(t, state.Items[0], task.Commit, what)
}

// writeVolume says that something is a volume now, or can be, and writes its
// PersistentVolume.
func (c Command) writeVolume(t target, volume nfs.Item, committed bool, what string) error {
	manifest := driver.PersistentVolume(t.driver, t.export, volume.Volume)
	if c.Output == "json" {
		return writeJSON(c.Stdout, struct {
			row
			DryRun           bool           `json:"dryRun"`
			PersistentVolume map[string]any `json:"persistentVolume"`
		}{newRow(t, volume), !committed, manifest})
	}
	said := fmt.Sprintf("%s: %s is the volume %q now. The PersistentVolume to use it with:", t.name, what, volume.Volume.Name)
	if !committed {
		said = fmt.Sprintf("%s: %s can become the volume %q in directory %q. Nothing was changed; --yes does it. Its PersistentVolume would be:",
			t.name, what, volume.Volume.Name, volume.Volume.Dir)
	}
	if _, err := fmt.Fprintln(c.Stderr, said); err != nil {
		return err
	}
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	if err := e.Encode(manifest); err != nil {
		return err
	}
	_, err := c.Stdout.Write(out.Bytes())
	return err
}

const (
	purgeTick = time.Second
	// purgeStuck is how long nothing may have moved, while all that is left is
	// failing, before purge gives up.
	purgeStuck = 10 * time.Second
)

// trashRow is an export in the JSON of purge.
type trashRow struct {
	Export  string    `json:"export"`
	Entries int       `json:"entries"`
	Failing int       `json:"failing"`
	Empty   bool      `json:"empty"`
	Removed uint64    `json:"removedFiles"`
	Oldest  time.Time `json:"oldest,omitzero"`
	oldest  string
}

// Purge has the trash emptied and follows that to its end; without wait, it only
// says how things are. It fails when something cannot be removed.
func (c Command) Purge(ctx context.Context, wait bool) error {
	if err := checkRoot(c.Options); err != nil {
		return err
	}
	var rows []trashRow
	err := c.each(ctx, func(t target) error {
		state, removed, err := c.purge(ctx, t, wait)
		if err != nil {
			return err
		}
		rows = append(rows, trashRow{Export: t.name, Entries: state.Entries, Failing: state.Failing, Empty: state.Settled,
			Removed: removed, Oldest: state.Oldest, oldest: age(time.Now(), state.Oldest)})
		if wait && !state.Settled {
			return fmt.Errorf("%d of the deleted volumes could not be removed: `ctl trash` says why", state.Failing)
		}
		return nil
	})
	if c.Output == "json" {
		if rows == nil {
			rows = []trashRow{}
		}
		return errors.Join(writeJSON(c.Stdout, rows), err)
	}
	var cells [][]string
	for _, r := range rows {
		cells = append(cells, []string{text(r.Export), count(int64(r.Entries)), count(int64(r.Failing)), r.oldest, count(int64(r.Removed))})
	}
	if len(cells) > 0 {
		err = errors.Join(writeTable(c.Stdout, []string{"EXPORT", "WAITING", "FAILING", "OLDEST", "REMOVED"}, cells), err)
	}
	return err
}

// purge returns the last state, and how many files were removed meanwhile; without
// wait, how many since the store was opened.
func (c Command) purge(ctx context.Context, t target, wait bool) (nfs.TrashState, uint64, error) {
	began := time.Now()
	first, err := t.PurgeTrash(ctx, true)
	if err != nil || !wait {
		return first, first.Removed, err
	}
	p := newProgress(c.Stderr)
	defer p.end()
	tick := time.NewTicker(purgeTick)
	defer tick.Stop()
	last, moved, most := first, began, first.Entries
	for !last.Settled {
		select {
		case <-ctx.Done():
			return last, 0, ctx.Err()
		case <-tick.C:
		}
		state, err := t.PurgeTrash(ctx, false)
		if err != nil {
			return last, 0, err
		}
		now := time.Now()
		if state.Removed != last.Removed || state.Entries != last.Entries {
			moved = now
		}
		speed := float64(state.Removed-last.Removed) / purgeTick.Seconds()
		last, most = state, max(most, state.Entries)
		p.show(most-state.Entries, most, "%s: %s deleted volumes left, %d failing, oldest %s; %s files removed, %.0f/s",
			t.name, count(int64(state.Entries)), state.Failing, age(now, state.Oldest), count(int64(state.Removed-first.Removed)), speed)
		if state.Entries > 0 && state.Entries == state.Failing && now.Sub(moved) > purgeStuck {
			break
		}
	}
	return last, last.Removed - first.Removed, nil
}

// plain takes away what gRPC adds to a message.
func plain(err error) error {
	if s, ok := status.FromError(err); ok {
		return errors.New(s.Message())
	}
	return err
}
