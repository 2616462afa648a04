package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// cloneSpec is a volume that is a copy and keeps the owner and mode of that.
func cloneSpec(name, dir string, source nfs.Source) nfs.VolumeSpec {
	return with(volumeSpec(name, dir), func(v *nfs.VolumeSpec) { v.Source, v.Mode = source, 0 })
}

var (
	fromVolume   = nfs.Source{Volume: "src"}
	fromSnapshot = nfs.Source{Snapshot: "snap"}
)

// untilCreated repeats a create as long as the copy runs.
func untilCreated(t testing.TB, s *Store, spec nfs.VolumeSpec) (v nfs.Volume, err error) {
	t.Helper()
	waitFor(t, "the volume to be made", func() (bool, string) {
		v, err = s.CreateVolume(t.Context(), spec)
		return !errors.Is(err, nfs.ErrBusy), fmt.Sprint(err)
	})
	return v, err
}

func TestClone(t *testing.T) {
	t.Parallel()
	for _, source := range []nfs.Source{fromVolume, fromSnapshot} {
		for _, dir := range []string{"copy", "a/b/copy"} {
			t.Run(fmt.Sprintf("%s:%s", source, filepath.Base(filepath.Dir(dir))), func(t *testing.T) {
				t.Parallel()
				d := t.TempDir()
				s := openStore(t, d)
				want := sourceVolume(t, s, d)
				snapshot(t, s, "snap", "src")
				spec := cloneSpec("copy", dir, source)
				v, err := untilCreated(t, s, spec)
				if err != nil {
					t.Fatal(err)
				}
				if v.Dir != dir || !v.Source.Same(source) || v.CapacityBytes != spec.MinBytes {
					t.Errorf("the volume: %+v", v)
				}
				compareTrees(t, want, scan(t, filepath.Join(d, dir), nil), isNFS(t, d))
				consistent(t, d)
				again := create(t, openStore(t, d), spec)
				if !again.Created.Equal(v.Created) || !again.Source.Same(source) {
					t.Errorf("again: %+v, want %+v", again, v)
				}
				for what, change := range map[string]func(*nfs.VolumeSpec){
					"no source":    func(v *nfs.VolumeSpec) { v.Source = nfs.Source{} },
					"other source": func(v *nfs.VolumeSpec) { v.Source = nfs.Source{Volume: "elsewhere"} },
				} {
					_, err := s.CreateVolume(t.Context(), with(spec, change))
					wantError(t, err, nfs.ErrConflict, "it was made from", source.String())
					if t.Failed() {
						t.Fatal(what)
					}
				}
				// Neither needs the other any more.
				mustWrite(t, filepath.Join(d, dir, "file"), "written to the copy")
				compareTrees(t, want, scan(t, d+"/src", nil), isNFS(t, d))
				remove(t, s, "src")
				if err := s.DeleteSnapshot(t.Context(), "snap"); err != nil {
					t.Fatal(err)
				}
				waitPurged(t, d)
				if data, err := os.ReadFile(filepath.Join(d, dir, "file")); err != nil || string(data) != "written to the copy" {
					t.Errorf("the file: %q, %v", data, err)
				}
				remove(t, s, "copy")
				waitPurged(t, d)
				if left := leftovers(t, d); len(left) != 0 {
					t.Errorf("left: %v", left)
				}
			})
		}
	}
}

func TestCloneOwner(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("chown takes root")
	}
	d := t.TempDir()
	s := openStore(t, d)
	create(t, s, volumeSpec("src", "src"))
	if err := errors.Join(os.Chown(d+"/src", 11, 12), unix.Chmod(d+"/src", 0o3751)); err != nil {
		t.Fatal(err)
	}
	uid := uint32(77)
	for name, tt := range map[string]struct {
		change   func(*nfs.VolumeSpec)
		uid, gid uint32
		mode     uint32
	}{
		"kept":  {func(*nfs.VolumeSpec) {}, 11, 12, 0o3751},
		"owner": {func(v *nfs.VolumeSpec) { v.UID = &uid }, 77, 12, 0o3751},
		"mode":  {func(v *nfs.VolumeSpec) { v.Mode = 0o700 }, 11, 12, 0o700},
	} {
		spec := with(cloneSpec(name, name, fromVolume), tt.change)
		if _, err := untilCreated(t, s, spec); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(d+"/"+name, &st); err != nil || st.Uid != tt.uid || st.Gid != tt.gid || st.Mode&0o7777 != tt.mode {
			t.Errorf("%s: %d:%d %o, %v", name, st.Uid, st.Gid, st.Mode, err)
		}
		create(t, s, spec)
	}
}

// withoutTrash leaves out what the purge may be removing.
func withoutTrash(left []string) []string {
	return slices.DeleteFunc(left, func(p string) bool {
		return strings.Contains(p, "/"+ownDir+"/trash/") || strings.HasPrefix(p, "trash/")
	})
}

func TestCloneRefused(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	s := openStore(t, d)
	create(t, s, volumeSpec("src", "src")) // of 1 GiB
	mustWrite(t, d+"/src/file", "0123456789")
	create(t, s, volumeSpec("v", "v"))
	snapshot(t, s, "snap", "src") // of 10 bytes
	mustMkdir(t, d+"/theirs")
	create(t, openStore(t, d, func(o *Options) { o.InstanceID = "two" }), volumeSpec("foreign", "foreign"))
	before := tree(t, d, ownOnly)
	left := withoutTrash(leftovers(t, d))
	for name, tt := range map[string]struct {
		spec nfs.VolumeSpec
		want error
		text string
	}{
		"no such volume":     {cloneSpec("c", "c", nfs.Source{Volume: "none"}), nfs.ErrNotFound, `no volume "none"`},
		"no such snapshot":   {cloneSpec("c", "c", nfs.Source{Snapshot: "none"}), nfs.ErrNotFound, `no snapshot "none"`},
		"foreign volume":     {cloneSpec("c", "c", nfs.Source{Volume: "foreign"}), nfs.ErrForeign, `instance "two"`},
		"no id":              {cloneSpec("c", "c", nfs.Source{Volume: "../x"}), nfs.ErrInvalid, ""},
		"two sources":        {cloneSpec("c", "c", nfs.Source{Volume: "src", Snapshot: "snap"}), nfs.ErrInvalid, "not both"},
		"archive too":        {with(cloneSpec("c", "c", fromVolume), func(v *nfs.VolumeSpec) { v.RestoreArchive = "v" }), nfs.ErrInvalid, "restoreArchive"},
		"smaller":            {with(cloneSpec("c", "c", fromVolume), func(v *nfs.VolumeSpec) { v.MinBytes = 1<<30 - 1 }), nfs.ErrOutOfRange, "1073741824"},
		"limited":            {with(cloneSpec("c", "c", fromVolume), func(v *nfs.VolumeSpec) { v.MinBytes, v.MaxBytes = 0, 1<<30-1 }), nfs.ErrOutOfRange, "limit"},
		"smaller than files": {with(cloneSpec("c", "c", fromSnapshot), func(v *nfs.VolumeSpec) { v.MinBytes = 9 }), nfs.ErrOutOfRange, "10 bytes"},
		"directory is there": {cloneSpec("c", "theirs", fromVolume), nfs.ErrForeign, "no record"},
		"taken directory":    {cloneSpec("c", "v", fromVolume), nfs.ErrConflict, `"v"`},
		"inside its source":  {cloneSpec("c", "src/c", fromVolume), nfs.ErrConflict, "inside another"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.CreateVolume(t.Context(), tt.spec)
			wantError(t, err, tt.want, tt.text)
			if now := tree(t, d, ownOnly); fmt.Sprint(now) != fmt.Sprint(before) {
				t.Errorf("on the share: %v, before %v", now, before)
			}
			if now := withoutTrash(leftovers(t, d)); fmt.Sprint(now) != fmt.Sprint(left) {
				t.Errorf("of the store's own: %v, before %v", now, left)
			}
		})
	}
	v, err := untilCreated(t, s, with(cloneSpec("c", "c", fromVolume), func(v *nfs.VolumeSpec) { v.MinBytes = 0 }))
	if err != nil || v.CapacityBytes != 1<<30 {
		t.Errorf("without a capacity: %+v, %v", v, err)
	}
}

// A create says how far the copy is, and a later one goes on with it.
func TestCloneUnderWay(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	want := sourceVolume(t, openStore(t, d), d)
	s, reached, goOn := blockedStore(t, d)
	spec := cloneSpec("copy", "copy", fromVolume)
	for range 2 {
		_, err := s.CreateVolume(t.Context(), spec)
		wantError(t, err, nfs.ErrBusy, "copied", `volume "src"`)
	}
	<-reached
	if exists(d + "/copy") {
		t.Error("the directory is there before it is whole")
	}
	_, err := s.CreateVolume(t.Context(), volumeSpec("other", "copy"))
	wantError(t, err, nfs.ErrConflict, `"copy"`)
	_, err = s.CreateVolume(t.Context(), with(spec, func(v *nfs.VolumeSpec) { v.Source.Volume = "other" }))
	wantError(t, err, nfs.ErrConflict, `from volume "src"`)
	wantError(t, s.DeleteVolume(t.Context(), "src", ""), nfs.ErrBusy, `clone "copy"`)
	close(goOn)
	if _, err := untilCreated(t, s, spec); err != nil {
		t.Fatal(err)
	}
	compareTrees(t, want, scan(t, d+"/copy", nil), isNFS(t, d))
	consistent(t, d)
}

// A volume that is still being copied can be deleted.
func TestCloneDeleted(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	sourceVolume(t, openStore(t, d), d)
	before := leftovers(t, d)
	s, reached, goOn := blockedStore(t, d)
	defer close(goOn)
	spec := cloneSpec("copy", "a/copy", fromVolume)
	_, err := s.CreateVolume(t.Context(), spec)
	wantError(t, err, nfs.ErrBusy)
	<-reached
	remove(t, s, "copy")
	waitPurged(t, d)
	if left := leftovers(t, d); fmt.Sprint(left) != fmt.Sprint(before) || exists(d+"/a") {
		t.Errorf("left: %v, before %v; the parent: %v", left, before, exists(d+"/a"))
	}
}

// What nobody asks for any more is removed after a day; what became a volume, at once.
func TestCloneAbandoned(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	s := openStore(t, d, quickLease)
	sourceVolume(t, s, d)
	before := leftovers(t, d)
	job := filepath.Join(d, ownDir, "work", jobName(cloneJob, "copy"))
	spec := cloneSpec("copy", "copy", fromVolume)
	for n := 1; ; n++ {
		died := dieAt(t, d, n, func(ctx context.Context, s *Store) { _, _ = s.CreateVolume(ctx, spec) })
		waitFor(t, "the copy to be complete", func() (bool, string) {
			if err := s.scanJobs(t.Context()); err != nil {
				t.Fatal(err)
			}
			return !exists(job) || exists(filepath.Join(job, completeName)), fmt.Sprint(leftovers(t, d))
		})
		if !died {
			break
		}
		if exists(job) {
			c := completion{}
			readJSON(t, filepath.Join(job, completeName), &c)
			c.Manifest.Finished = c.Manifest.Finished.Add(-cloneAge - time.Minute)
			writeJSON(t, filepath.Join(job, completeName), c)
		}
		waitFor(t, "the job to go", func() (bool, string) {
			err := s.scanJobs(t.Context())
			return !exists(job), fmt.Sprint(leftovers(t, d), err)
		})
		s.purge.wakeUp() // for what the dead store has in its slot
		waitPurged(t, d)
		_, err := s.GetVolume(t.Context(), "copy")
		if made := err == nil; made {
			remove(t, s, "copy")
			waitPurged(t, d)
		}
		after := leftovers(t, d)
		t.Logf("%d: made: %v, left: %v", n, err == nil, after)
		if exists(d+"/copy") || len(after) > len(before)+2 {
			t.Errorf("%d: left %v, before %v, the directory: %v", n, after, before, exists(d+"/copy"))
		}
		for _, name := range after { // for the next round
			if filepath.Dir(name) == "work" || name == "dirs/"+claimName("copy") {
				if err := os.RemoveAll(filepath.Join(d, ownDir, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if t.Failed() {
			return
		}
	}
}

// Of many that make one clone at once, in several processes, all get the same.
func TestCloneOneWinner(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	stores := []*Store{openStore(t, d, quickLease), openStore(t, d, quickLease), openStore(t, d, quickLease)}
	want := sourceVolume(t, stores[0], d)
	for round := range 10 {
		spec := cloneSpec(fmt.Sprintf("copy%d", round), fmt.Sprintf("x/copy%d", round), fromVolume)
		start := make(chan struct{})
		var mu sync.Mutex
		created := map[time.Time]bool{}
		var wg sync.WaitGroup
		for n := range 6 {
			wg.Go(func() {
				<-start
				v, err := untilMade(t, stores[n%3], spec)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
				}
				created[v.Created] = true
			})
		}
		close(start)
		wg.Wait()
		if len(created) != 1 {
			t.Errorf("round %d: made at %v", round, created)
		}
		compareTrees(t, want, scan(t, filepath.Join(d, spec.Dir), nil), isNFS(t, d))
		consistent(t, d)
	}
}

func readJSON(t testing.TB, p string, into any) {
	t.Helper()
	data, err := os.ReadFile(p)
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func writeJSON(t testing.TB, p string, v any) {
	t.Helper()
	data, err := json.Marshal(v)
	if err == nil {
		err = os.WriteFile(p, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
