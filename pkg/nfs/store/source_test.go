package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

var (
	elsewhere         = nfs.Export{Server: "other", Share: "/data"}
	volumeElsewhere   = nfs.Source{Export: elsewhere, Volume: "src"}
	snapshotElsewhere = nfs.Source{Export: elsewhere, Snapshot: "snap"}
)

// copyingFrom lets a store make volumes from what is in dir. An error is one of the
// test: nothing may be written there.
func copyingFrom(t testing.TB, dir string) func(*Options) {
	at := openStore(t, dir, func(o *Options) { o.Passive = true })
	return func(o *Options) { o.Origin = Origin{Export: elsewhere, Store: at} }
}

func TestCloneAcross(t *testing.T) {
	t.Parallel()
	for _, source := range []nfs.Source{volumeElsewhere, snapshotElsewhere} {
		t.Run(source.String(), func(t *testing.T) {
			t.Parallel()
			there, d := t.TempDir(), t.TempDir()
			theirs := openStore(t, there)
			sourceVolume(t, theirs, there)
			snapshot(t, theirs, "snap", "src")
			waitPurged(t, there)
			before := tree(t, there, nil)
			want := scan(t, there+"/src", nil) // once more: to look has set times of access
			if source.Snapshot != "" {
				want = scan(t, snapshotData(there, "snap"), nil)
			}
			s := openStore(t, d, copyingFrom(t, there))
			spec := cloneSpec("copy", "a/copy", source)
			v, err := untilCreated(t, s, spec)
			if err != nil {
				t.Fatal(err)
			}
			if !v.Source.Same(source) || v.CapacityBytes != spec.MinBytes {
				t.Errorf("the volume: %+v", v)
			}
			compareTrees(t, want, scan(t, d+"/a/copy", nil), isNFS(t, d))
			consistent(t, d)
			if after := tree(t, there, nil); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("the source's export changed: %v\nbefore: %v", after, before)
			}
			// What is there, a store has that cannot reach the source.
			if again := create(t, openStore(t, d), spec); !again.Created.Equal(v.Created) {
				t.Errorf("again: %+v, want %+v", again, v)
			}
			_, err = s.CreateVolume(t.Context(), with(spec, func(v *nfs.VolumeSpec) { v.Source.Export = nfs.Export{} }))
			wantError(t, err, nfs.ErrConflict, "it was made from", source.String())
			remove(t, s, "copy")
			waitPurged(t, d)
			if left := leftovers(t, d); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestCloneAcrossRefused(t *testing.T) {
	t.Parallel()
	there, d := t.TempDir(), t.TempDir()
	theirs := openStore(t, there)
	sourceVolume(t, theirs, there)
	blocked, reached, goOn := blockedStore(t, there)
	defer close(goOn)
	if _, err := blocked.CreateSnapshot(t.Context(), "unready", "src"); err != nil {
		t.Fatal(err)
	}
	<-reached
	create(t, openStore(t, there, func(o *Options) { o.InstanceID = "two" }), volumeSpec("foreign", "foreign"))
	mustMkdir(t, there+"/src/inside")
	from, empty, at := copyingFrom(t, there), copyingFrom(t, t.TempDir()), func(volume string) nfs.Source {
		return nfs.Source{Export: elsewhere, Volume: volume}
	}
	for name, tt := range map[string]struct {
		dir    string
		origin func(*Options)
		source nfs.Source
		want   error
		text   string
	}{
		"not reached":     {d, func(*Options) {}, volumeElsewhere, nfs.ErrUnavailable, `volume "src" on other:/data cannot be reached`},
		"another export":  {d, from, nfs.Source{Export: nfs.Export{Server: "third", Share: "/data"}, Volume: "src"}, nfs.ErrUnavailable, "third:/data"},
		"no volume":       {d, from, at("none"), nfs.ErrNotFound, `no volume "none" on other:/data`},
		"only here":       {d, from, at("here"), nfs.ErrNotFound, `no volume "here" on other:/data`},
		"no snapshot":     {d, from, nfs.Source{Export: elsewhere, Snapshot: "none"}, nfs.ErrNotFound, `no snapshot "none"`},
		"unready":         {d, from, nfs.Source{Export: elsewhere, Snapshot: "unready"}, nfs.ErrBusy, `"unready" is not ready`},
		"another cluster": {d, from, at("foreign"), nfs.ErrForeign, `instance "two"`},
		"nothing there":   {d, empty, volumeElsewhere, nfs.ErrNotFound, `no volume "src" on other:/data`},
		"into itself":     {there + "/src/inside", from, volumeElsewhere, nfs.ErrInvalid, "within its source"},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, tt.dir, tt.origin)
			if tt.dir == d {
				create(t, s, volumeSpec("here", "here"))
			}
			_, err := s.CreateVolume(t.Context(), cloneSpec("copy", "copy", tt.source))
			wantError(t, err, tt.want, tt.text)
			if exists(tt.dir + "/copy") {
				t.Error("there is a directory")
			}
		})
	}
}

// A copy that a store ends with is continued by one that reaches the source. Others
// leave it alone, unless its volume is deleted or nobody works on it for a day.
func TestCloneAcrossLeft(t *testing.T) {
	t.Parallel()
	there := t.TempDir()
	theirs := openStore(t, there)
	want := sourceVolume(t, theirs, there)
	spec := cloneSpec("copy", "copy", volumeElsewhere)
	begun := func(t *testing.T) (d, job string) {
		d = t.TempDir()
		s, reached, goOn := blockedStore(t, d, copyingFrom(t, there))
		defer close(goOn)
		_, err := s.CreateVolume(t.Context(), spec)
		wantError(t, err, nfs.ErrBusy, "copied", "other:/data")
		<-reached
		s.jobs.stop()
		return d, filepath.Join(d, ownDir, "work", jobName(cloneJob, "copy"))
	}
	t.Run("continued", func(t *testing.T) {
		t.Parallel()
		d, _ := begun(t)
		if _, err := untilCreated(t, openStore(t, d, copyingFrom(t, there)), spec); err != nil {
			t.Fatal(err)
		}
		compareTrees(t, want, scan(t, d+"/copy", nil), isNFS(t, d))
	})
	t.Run("left alone", func(t *testing.T) {
		t.Parallel()
		d, job := begun(t)
		s := openStore(t, d)
		if err := s.scanJobs(t.Context()); err != nil || !exists(job) || s.Backlog().Jobs != 0 {
			t.Errorf("the job is there: %v, jobs: %d, %v", exists(job), s.Backlog().Jobs, err)
		}
		_, err := s.CreateVolume(t.Context(), spec)
		wantError(t, err, nfs.ErrUnavailable, "cannot be reached")
		if !exists(job) {
			t.Error("the job is gone")
		}
	})
	t.Run("abandoned", func(t *testing.T) {
		t.Parallel()
		d, job := begun(t)
		long := time.Now().Add(-cloneAge - time.Minute)
		if err := os.Chtimes(job, long, long); err != nil {
			t.Fatal(err)
		}
		s := openStore(t, d)
		if err := s.scanJobs(t.Context()); err != nil || exists(job) {
			t.Errorf("the job is there: %v, %v", exists(job), err)
		}
	})
	t.Run("deleted", func(t *testing.T) {
		t.Parallel()
		d, _ := begun(t)
		s := openStore(t, d)
		remove(t, s, "copy")
		waitPurged(t, d)
		if left := leftovers(t, d); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
	})
	t.Run("source deleted", func(t *testing.T) {
		t.Parallel()
		there, d := t.TempDir(), t.TempDir()
		theirs := openStore(t, there)
		sourceVolume(t, theirs, there)
		s, reached, goOn := blockedStore(t, d, copyingFrom(t, there))
		_, err := s.CreateVolume(t.Context(), spec)
		wantError(t, err, nfs.ErrBusy)
		<-reached
		remove(t, theirs, "src")
		close(goOn)
		waitFor(t, "the copy to fail", func() (bool, string) {
			_, err = s.CreateVolume(t.Context(), spec)
			return !errors.Is(err, nfs.ErrBusy), fmt.Sprint(err)
		})
		wantError(t, err, nfs.ErrNotFound, `"src"`)
	})
}

// Ids are unique on an export only: the copy of a volume elsewhere does not keep
// the one here from being deleted.
func TestCloneAcrossSameID(t *testing.T) {
	t.Parallel()
	there, d := t.TempDir(), t.TempDir()
	sourceVolume(t, openStore(t, there), there)
	s, reached, goOn := blockedStore(t, d, copyingFrom(t, there))
	defer close(goOn)
	create(t, s, volumeSpec("src", "src"))
	_, err := s.CreateVolume(t.Context(), cloneSpec("copy", "copy", volumeElsewhere))
	wantError(t, err, nfs.ErrBusy)
	<-reached
	remove(t, s, "src")
}
