package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"time"
)

// whilePurging compares the work on an export whose trash is being emptied of many
// files, to which the driver gives way, with the bare operations. bareCreate and
// bareDelete were measured while nothing was purged.
func (b *bench) whilePurging(ctx context.Context, bareCreate, bareDelete float64) error {
	before, err := b.awaitPurge(ctx)
	if err != nil {
		return err
	}
	create, err := b.series(serial, func(i int) error { return b.controller.create(ctx, fmt.Sprintf("bench-purging-%d", i)) })
	if err != nil {
		return err
	}
	remove, err := b.series(serial, func(i int) error { return b.controller.delete(ctx, fmt.Sprintf("bench-purging-%d", i)) })
	if err != nil {
		return err
	}
	most, err := workerBytes(b.controller)
	if err != nil {
		return err
	}
	after, err := b.trash(ctx)
	if err != nil {
		return err
	}
	if after.Entries == 0 || after.Purged <= before.Purged {
		return fmt.Errorf("nothing was purged meanwhile: the trash had %+v, then %+v", before, after)
	}
	fmt.Printf("  %d files were unlinked meanwhile\n", after.Purged-before.Purged)
	b.row("CreateVolume p50 during a purge", "ms", bareCreate, create, 4*bareCreate, "<= 4x write+fsync+rename and mkdir")
	b.row("DeleteVolume p50 during a purge", "ms", bareDelete, remove, 4*bareDelete, "<= 4x rename and unlink")
	b.row("resident memory of the worker in a purge", "MiB", 0, float64(most)/(1<<20), 24, "<= 24 MiB")
	return nil
}

// trashState is what ctl says of the export's trash.
type trashState struct {
	Entries int   `json:"entries"`
	Purged  int64 `json:"removedFiles"`
}

// awaitPurge waits until files are being unlinked: the deletes come to their end first,
// and then the volumes that were empty.
func (b *bench) awaitPurge(ctx context.Context) (trashState, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		state, err := b.trash(ctx)
		if err != nil || state.Purged > serial+crowd+1 {
			return state, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return state, fmt.Errorf("no files are unlinked: %+v: %w", state, ctx.Err())
		}
	}
}

func (b *bench) trash(ctx context.Context) (state trashState, err error) {
	var stdout, stderr bytes.Buffer
	command := exec.CommandContext(ctx, b.binary, "ctl", "purge", "--no-wait", "-o", "json", "--socket", adminSocket)
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return state, fmt.Errorf("ctl purge: %w: %s", err, stderr.String())
	}
	var exports []json.RawMessage
	if err := json.Unmarshal(stdout.Bytes(), &exports); err != nil || len(exports) != 1 {
		return state, fmt.Errorf("ctl purge: %w: %s", err, stdout.String())
	}
	err = json.Unmarshal(exports[0], &state)
	return state, err
}
