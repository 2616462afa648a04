package worker

import (
	"runtime"
	"runtime/debug"
	"testing"
)

// TestWhileCopying is not parallel: it changes the process, as a worker's is.
func TestWhileCopying(t *testing.T) {
	procs, memory := runtime.GOMAXPROCS(0), debug.SetMemoryLimit(-1)
	t.Cleanup(func() {
		runtime.GOMAXPROCS(procs)
		debug.SetMemoryLimit(memory)
	})
	for _, tt := range []struct {
		copies bool
		procs  int
	}{{true, copyProcs}, {false, 1}, {true, copyProcs}} {
		whileCopying(tt.copies)
		if got := runtime.GOMAXPROCS(0); got != tt.procs {
			t.Errorf("copies run: %v: %d threads may run at once, want %d", tt.copies, got, tt.procs)
		}
		if got := debug.SetMemoryLimit(-1); got != copyMemory {
			t.Errorf("copies run: %v: the memory is limited to %d bytes, want %d", tt.copies, got, copyMemory)
		}
	}
}
