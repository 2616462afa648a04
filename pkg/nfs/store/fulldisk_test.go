package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// The disk is full at any byte of a snapshot, a clone or a restore: that fails and says
// why, nothing that is not whole is shown, and it ends when there is space again.
func TestFullAnywhere(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a tmpfs takes root")
	}
	t.Parallel()
	const rounds = 5
	for kind, source := range map[string]nfs.Source{"snapshot": {}, "clone": {Volume: "src"}, "restore": {Snapshot: "old"}} {
		t.Run(kind, func(t *testing.T) {
			for range rounds {
				seed := rand.Uint64()
				t.Run(fmt.Sprint(seed), func(t *testing.T) {
					d := mountMemory(t, 64<<20)
					f := &fullDiskTest{d: d, random: rand.New(rand.NewPCG(seed, 1)), s: openStore(t, d, quickLease)}
					f.fill(t, source.Snapshot)
					if source.IsZero() {
						f.snapshot(t)
					} else {
						f.clone(t, cloneSpec("copy", "team/copy", source))
					}
					compareTrees(t, f.want, scan(t, d+"/src", nil), false)
					waitPurged(t, d)
					consistent(t, d)
				})
			}
		})
	}
}

// mountMemory mounts a file system of that many bytes for the length of the test.
func mountMemory(t *testing.T, size int) string {
	t.Helper()
	d := t.TempDir()
	if err := unix.Mount("store-test", d, "tmpfs", 0, fmt.Sprint("size=", size)); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(d, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return d
}

type fullDiskTest struct {
	d      string
	random *rand.Rand
	s      *Store
	want   map[string]node // what is in the volume "src"
	filler string
}

// fill makes the volume "src", its snapshot if that has a name, and leaves less space
// than a copy of it takes.
func (f *fullDiskTest) fill(t *testing.T, snap string) {
	t.Helper()
	create(t, f.s, volumeSpec("src", "src"))
	before := available(t, f.d)
	for n := range 40 {
		mustWrite(t, fmt.Sprintf("%s/src/d%d/%d", f.d, n%5, n), strings.Repeat("x", f.random.IntN(100_000)))
	}
	mustWrite(t, f.d+"/src/large", strings.Repeat("y", 1<<20))
	took := before - available(t, f.d)
	f.want = scan(t, f.d+"/src", nil)
	if snap != "" {
		snapshot(t, f.s, snap, "src")
	}
	left := f.random.Int64N(took - 4096)
	f.filler = f.d + "/filler"
	file, err := os.Create(f.filler)
	if err == nil {
		_, err = file.Write(make([]byte, available(t, f.d)-left))
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes are left, of %d that the copy takes", available(t, f.d), took)
}

func (f *fullDiskTest) snapshot(t *testing.T) {
	wantError(t, eventualError(t, f.s, "snap", "src"), nfs.ErrFull, "src")
	if v, err := f.s.GetSnapshot(t.Context(), "snap"); err == nil && v.Ready || exists(snapshotData(f.d, "snap")) {
		t.Errorf("the snapshot: %+v, %v", v, err)
	}
	removeAll(t, f.filler)
	waitFor(t, "the snapshot to be ready", func() (bool, string) {
		v, err := f.s.CreateSnapshot(t.Context(), "snap", "src")
		if err != nil && !errors.Is(err, nfs.ErrFull) && !errors.Is(err, nfs.ErrBusy) {
			t.Fatal(err)
		}
		return err == nil && v.Ready, fmt.Sprintf("%+v, %v", v, err)
	})
	compareTrees(t, f.want, scan(t, snapshotData(f.d, "snap"), nil), false)
}

func (f *fullDiskTest) clone(t *testing.T, spec nfs.VolumeSpec) {
	_, err := untilCreated(t, f.s, spec)
	wantError(t, err, nfs.ErrFull, spec.Dir)
	if _, err := f.s.GetVolume(t.Context(), "copy"); !errors.Is(err, nfs.ErrNotFound) || hasEntries(t, f.d+"/"+spec.Dir) {
		t.Errorf("the volume: %v; in its directory: %v", err, hasEntries(t, f.d+"/"+spec.Dir))
	}
	removeAll(t, f.filler)
	waitFor(t, "the volume to be made", func() (bool, string) {
		_, err := f.s.CreateVolume(t.Context(), spec)
		if err != nil && !errors.Is(err, nfs.ErrFull) && !errors.Is(err, nfs.ErrBusy) {
			t.Fatal(err)
		}
		return err == nil, fmt.Sprint(err)
	})
	compareTrees(t, f.want, scan(t, f.d+"/"+spec.Dir, nil), false)
}
