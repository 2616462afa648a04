package store

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// TestCallsOnNFS bounds the calls to the server that a create and a delete cost.
// It runs where the temporary directory is on NFS: in the lab, with TMPDIR set.
func TestCallsOnNFS(t *testing.T) {
	dir := t.TempDir()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if st.Type != unix.NFS_SUPER_MAGIC {
		t.Skip("the temporary directory is not on NFS: run this in the lab, with TMPDIR on a mount")
	}
	s := openStore(t, dir)
	create(t, s, volumeSpec("warm", "warm"))
	remove(t, s, "warm")
	waitPurged(t, dir)
	for _, tt := range []struct {
		dir            string
		onDelete       nfs.OnDelete
		create, delete int // calls at most
	}{
		{"flat", nfs.Delete, 18, 10},
		{"a/b/nested", nfs.Delete, 36, 28},
		{"kept", nfs.Retain, 20, 16},
		{"filed", nfs.Archive, 26, 28},
	} {
		t.Run(strings.ReplaceAll(tt.dir, "/", ":"), func(t *testing.T) {
			spec := with(volumeSpec("pvc-"+tt.dir[:4], tt.dir), func(s *nfs.VolumeSpec) { s.OnDelete = tt.onDelete })
			id := nfs.RecordID(spec.Name)
			made, took := calls(t, func() { create(t, s, spec) })
			t.Logf("create: %d calls in %v: %s", sum(made), took, made)
			if sum(made) > tt.create {
				t.Errorf("create took %d calls, want %d at most", sum(made), tt.create)
			}
			for n := range 100 {
				mustWrite(t, fmt.Sprintf("%s/%s/%d", dir, tt.dir, n), "x")
			}
			// Without the purge, which works beside it.
			s.purge.stop()
			gone, took := calls(t, func() {
				if err := s.DeleteVolume(t.Context(), id, ""); err != nil {
					t.Fatal(err)
				}
			})
			startPurger(t.Context(), s)
			waitPurged(t, dir)
			t.Logf("delete: %d calls in %v: %s", sum(gone), took, gone)
			if sum(gone) > tt.delete {
				t.Errorf("delete took %d calls, want %d at most", sum(gone), tt.delete)
			}
		})
	}
}

// TestCallsOnNFSOfCopies bounds the calls to the server that a copy costs for each file.
func TestCallsOnNFSOfCopies(t *testing.T) {
	b := newCopyBed(t)
	if !isNFS(t, b.dir) {
		t.Skip("the temporary directory is not on NFS: run this in the lab, with TMPDIR on a mount")
	}
	const dirs, files = 3, 40
	var names []string
	for n := range dirs * files {
		names = append(names, fmt.Sprintf("%s/%d/%d", b.source(), n%dirs, n))
		mustWrite(t, names[n], "content")
	}
	// With a delegation, the client opens a file again without the server. For a while
	// after a file was written there is none.
	open := func(names ...string) int {
		opened, _ := calls(t, func() {
			for _, name := range names {
				f, err := os.Open(name)
				if err != nil {
					t.Fatal(err)
				}
				_ = f.Close()
			}
		})
		return opened["OPEN"] + opened["OPEN_NOATTR"]
	}
	probe := b.dir + "/probe"
	mustWrite(t, probe, "content")
	waitFor(t, "a delegation from the server", func() (bool, string) {
		n := open(probe, probe)
		return n < 2, fmt.Sprintf("%d opens for two", n)
	})
	made, took := calls(t, func() { b.copy(t, "id", copyOptions{}) })
	t.Logf("%d calls in %v: %s", sum(made), took, made)
	// Open, content, a look whether it changed, attributes, access list, times, closed;
	// and what there is once for the copy, and for each directory.
	if most := 9*dirs*files + 20*dirs + 60; sum(made) > most {
		t.Errorf("the copy took %d calls, want %d at most", sum(made), most)
	}
	if got := open(names...); got < len(names) {
		t.Errorf("%d of %d files were opened at the server: the copy has delegations of the others", got, len(names))
	}
}

type callCount map[string]int

func (c callCount) String() string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(c)) {
		out = append(out, fmt.Sprintf("%s %d", name, c[name]))
	}
	return strings.Join(out, ", ")
}

func sum(c callCount) (n int) {
	for _, v := range c {
		n += v
	}
	return n
}

// calls counts the operations per name that all NFS mounts of this process
// together have sent while f ran (see /proc/self/mountstats).
func calls(t testing.TB, f func()) (callCount, time.Duration) {
	t.Helper()
	before := mountStats(t)
	start := time.Now()
	f()
	took := time.Since(start)
	after := mountStats(t)
	for name, n := range before {
		if after[name] -= n; after[name] == 0 {
			delete(after, name)
		}
	}
	return after, took.Round(10 * time.Microsecond)
}

func mountStats(t testing.TB) callCount {
	t.Helper()
	f, err := os.Open("/proc/self/mountstats")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := callCount{}
	perOp := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		switch fields := strings.Fields(line); {
		case line == "per-op statistics":
			perOp = true
		case strings.HasPrefix(line, "device "):
			perOp = false
		case perOp && len(fields) > 1:
			if n, err := strconv.Atoi(fields[1]); err == nil && n > 0 {
				out[strings.TrimSuffix(fields[0], ":")] += n
			}
		}
	}
	if len(out) == 0 {
		t.Fatal("/proc/self/mountstats counts no NFS calls")
	}
	return out
}
