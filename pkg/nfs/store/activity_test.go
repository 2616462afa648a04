package store

import (
	"slices"
	"sync/atomic"
	"testing"
)

func TestCrowd(t *testing.T) {
	t.Parallel()
	var c crowd
	var told []bool
	tell := func(running bool) { told = append(told, running) }
	first := c.begin(tell)
	second := c.begin(tell)
	first()
	third := c.begin(tell)
	third()
	if want := []bool{true}; !slices.Equal(told, want) {
		t.Errorf("told %v while copies run, want %v", told, want)
	}
	second()
	c.begin(tell)()
	if want := []bool{true, false, true, false}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}

// TestCopying is told of snapshots, and of nothing else.
func TestCopying(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	var begun, ended atomic.Int32
	s := openStore(t, d, func(o *Options) {
		o.Copying = func(running bool) {
			if running {
				begun.Add(1)
			} else {
				ended.Add(1)
			}
		}
	})
	sourceVolume(t, s, d)
	if begun.Load() != 0 {
		t.Errorf("told of %d copies when there was none", begun.Load())
	}
	snapshot(t, s, "snap", "src")
	if begun.Load() != 1 || ended.Load() != 1 {
		t.Errorf("told of %d that began and %d that ended, want one", begun.Load(), ended.Load())
	}
}
