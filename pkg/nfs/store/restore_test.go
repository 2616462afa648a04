package store

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func TestRestoreTask(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	archived := func(spec *nfs.VolumeSpec) { spec.OnDelete, spec.ArchiveRetention = nfs.Archive, time.Hour }
	restoring := func(key, name string) nfs.Task {
		return nfs.Task{Kind: nfs.TaskRestore, Key: key, Name: name, Commit: true}
	}
	for _, task := range []nfs.Task{restoring("v", "w"), dryRun(restoring("v", "w"))} {
		_, err := runTask(t, s, task)
		wantError(t, err, nfs.ErrNotFound)
	}
	create(t, s, with(volumeSpec("v", "team/v"), archived))
	mustWrite(t, dir+"/team/v/file", "precious")
	remove(t, s, "v")
	create(t, s, volumeSpec("taken", "taken"))
	before := tree(t, dir, nil)

	task := restoring("v", "w")
	dry, err := runTask(t, s, dryRun(task))
	if err != nil || len(dry.Items) != 1 {
		t.Fatalf("%+v, %v", dry, err)
	}
	for key, tt := range map[string]struct {
		task nfs.Task
		err  error
		says string
	}{
		"no such archive":  {restoring("none", "w"), nfs.ErrNotFound, `archive "none"`},
		"name taken":       {restoring("v", "taken"), nfs.ErrConflict, `directory "taken"`},
		"directory there":  {withTask(task, func(t *nfs.Task) { t.Dir = "taken" }), nfs.ErrForeign, "exists"},
		"bad directory":    {withTask(task, func(t *nfs.Task) { t.Dir = "../x" }), nfs.ErrInvalid, "not a directory name"},
		"another instance": {restoring("v", "x"), nfs.ErrForeign, `instance "one"`},
	} {
		t.Run(key, func(t *testing.T) {
			store := s
			if key == "another instance" {
				store = openStore(t, dir, func(o *Options) { o.InstanceID = "two" })
			}
			if key == "directory there" { // is a volume's
				tt.err = nfs.ErrConflict
				_, err := runTask(t, store, dryRun(tt.task))
				wantError(t, err, nfs.ErrForeign, tt.says)
				tt.says = "belongs to"
			}
			_, err := runTask(t, store, tt.task)
			wantError(t, err, tt.err, tt.says)
		})
	}
	if diff := cmp.Diff(before, tree(t, dir, nil)); diff != "" {
		t.Errorf("what was refused, or only tried, has changed something (-before +after):\n%s", diff)
	}

	var done nfs.TaskState
	for range 2 {
		if done, err = runTask(t, s, task); err != nil || len(done.Items) != 1 {
			t.Fatalf("%+v, %v", done, err)
		}
	}
	want := dry.Items[0]
	want.Since, want.Volume.Created = done.Items[0].Since, done.Items[0].Volume.Created
	if diff := cmp.Diff(want, done.Items[0]); diff != "" {
		t.Errorf("dry run and the real one differ (-dry +real):\n%s", diff)
	}
	v := done.Items[0].Volume
	if v.Name != "w" || v.Dir != "team/v" || v.CapacityBytes != 1<<30 || v.OnDelete != nfs.Archive || v.ArchiveRetention != time.Hour || !exists(dir+"/team/v/file") {
		t.Errorf("restored: %+v", v)
	}
	if got, err := s.GetVolume(t.Context(), "w"); err != nil || !cmp.Equal(got, v) {
		t.Errorf("%+v, %v; told %+v", got, err, v)
	}
	if got := listItems(t, s, nfs.ItemArchive); len(got) > 0 {
		t.Errorf("archives: %+v", got)
	}
	consistent(t, dir)

	// Two archives of one name are told apart by their ids.
	for range 2 {
		create(t, s, with(volumeSpec("twice", "twice"), archived))
		remove(t, s, "twice")
	}
	_, err = runTask(t, s, dryRun(restoring("twice", "x")))
	wantError(t, err, nfs.ErrInvalid, "archived 2 times")
	key := listItems(t, s, nfs.ItemArchive)[1].Key
	done, err = runTask(t, s, restoring(key, "x"))
	if err != nil || done.Items[0].Volume.RestoredArchive != key {
		t.Errorf("%+v, %v", done, err)
	}
}
