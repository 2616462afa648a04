package store

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func adopting(name, dir string) nfs.Task {
	return nfs.Task{Kind: nfs.TaskAdopt, Name: name, Dir: dir, CapacityBytes: 1 << 30, OnDelete: nfs.Delete, Commit: true}
}

func dryRun(t nfs.Task) nfs.Task {
	t.Commit = false
	return t
}

func TestAdopt(t *testing.T) {
	for _, fresh := range []bool{true, false} {
		t.Run(fmt.Sprintf("fresh=%t", fresh), func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir)
			if !fresh {
				create(t, s, volumeSpec("other", "team/other"))
			}
			mustWrite(t, dir+"/team/data/file", "precious")
			if err := os.Chmod(dir+"/team/data", 0o2770|fs.ModeSetgid); err != nil {
				t.Fatal(err)
			}
			before := tree(t, dir, nil)
			task := adopting("data", "team/data")
			task.Claim = nfs.Claim{Namespace: "ns", Name: "pvc"}
			dry, err := runTask(t, s, dryRun(task))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, tree(t, dir, nil)); diff != "" {
				t.Errorf("the dry run has changed something (-before +after):\n%s", diff)
			}
			var made nfs.Item
			for range 2 {
				state, err := runTask(t, s, task)
				if err != nil || len(state.Items) != 1 {
					t.Fatalf("%+v, %v", state, err)
				}
				if made.Key != "" && !cmp.Equal(made, state.Items[0]) {
					t.Errorf("adopted again: %+v, before: %+v", state.Items[0], made)
				}
				made = state.Items[0]
			}
			want := dry.Items[0]
			want.Volume.Created, want.Since = made.Volume.Created, made.Since
			if diff := cmp.Diff(want, made); diff != "" {
				t.Errorf("dry run and the real one differ (-dry +real):\n%s", diff)
			}
			if v, err := s.GetVolume(t.Context(), "data"); err != nil || !cmp.Equal(v, made.Volume) || v.Mode != 0o770|fs.ModeSetgid {
				t.Errorf("get: %+v, %v; adopted: %+v", v, err, made.Volume)
			}
			skip := func(p string) bool { return p == ownDir }
			if diff := cmp.Diff(without(before, ownDir), tree(t, dir, skip)); diff != "" {
				t.Errorf("the directory has changed (-before +after):\n%s", diff)
			}
			consistent(t, dir)
			// From now on it is a volume like any other.
			remove(t, s, "data")
			waitPurged(t, dir)
			if exists(dir + "/team/data") {
				t.Error("it is still there")
			}
			consistent(t, dir)
		})
	}
}

func without(lines []string, prefix string) (out []string) {
	for _, l := range lines {
		if !strings.HasPrefix(l, prefix) {
			out = append(out, l)
		}
	}
	return out
}

func TestAdoptRefuses(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	create(t, s, volumeSpec("v", "team/v"))
	create(t, openStore(t, dir, func(o *Options) { o.InstanceID = "two" }), volumeSpec("theirs", "theirs"))
	create(t, s, with(volumeSpec("old", "keep/old"), func(v *nfs.VolumeSpec) { v.OnDelete = nfs.Archive }))
	remove(t, s, "old")
	for _, d := range []string{"free", "team/v/sub", "making/deep/x", "top/sub"} {
		mustMkdir(t, dir+"/"+d)
	}
	mustWrite(t, dir+"/file", "x")
	mustSymlink(t, "free", dir+"/link")
	mustSymlink(t, "a-1", filepath.Join(dir, ownDir, "dirs", claimName("making/deep/x")))
	before := tree(t, dir, func(p string) bool { return strings.HasPrefix(p, ownDir+"/trash") })
	for _, tt := range []struct {
		task nfs.Task
		err  error
		says string
	}{
		{adopting("n", "nowhere"), nfs.ErrNotFound, "no such directory"},
		{adopting("n", "no/where"), nfs.ErrNotFound, "no such directory"},
		{adopting("n", "file"), nfs.ErrForeign, "a file or a symbolic link"},
		{adopting("n", "link"), nfs.ErrForeign, "a file or a symbolic link"},
		{adopting("n", "link/x"), nfs.ErrForeign, "symbolic link"},
		{adopting("n", ".nfs-csi"), nfs.ErrInvalid, "reserved"},
		{adopting("n", ""), nfs.ErrInvalid, "empty"},
		{adopting("n", "../x"), nfs.ErrInvalid, "not a directory name"},
		{adopting("", "free"), nfs.ErrInvalid, "name"},
		{adopting("v", "free"), nfs.ErrConflict, `taken by the volume in directory "team/v"`},
		{adopting("n", "team/v"), nfs.ErrConflict, `belongs to the volume with id "v"`},
		{adopting("v", "team/v"), nil, ""},
		{withTask(adopting("v", "team/v"), func(t *nfs.Task) { t.OnDelete = nfs.Retain }), nfs.ErrConflict, "onDelete"},
		{adopting("n", "theirs"), nfs.ErrConflict, "theirs"},
		{adopting("theirs", "theirs"), nfs.ErrForeign, `instance "two"`},
		{adopting("n", "team/v/sub"), nfs.ErrConflict, "inside another"},
		{adopting("n", "team"), nfs.ErrConflict, `the volume "team/v" of "v" lies in it`},
		{adopting("n", "keep"), nfs.ErrConflict, "lies in it"},
		{adopting("n", "making"), nfs.ErrBusy, `"making/deep/x" in it is being made`},
		{adopting("n", "making/deep/x"), nfs.ErrConflict, "creation has not finished"},
	} {
		for _, task := range []nfs.Task{dryRun(tt.task), tt.task} {
			t.Run(fmt.Sprintf("%s as %s commit=%t", strings.ReplaceAll(task.Dir, "/", ":"), task.Name, task.Commit), func(t *testing.T) {
				_, err := runTask(t, s, task)
				wantError(t, err, tt.err, tt.says)
			})
		}
	}
	if diff := cmp.Diff(before, tree(t, dir, func(p string) bool { return strings.HasPrefix(p, ownDir+"/trash") })); diff != "" {
		t.Errorf("a refused adoption has left something (-before +after):\n%s", diff)
	}
}

func withTask(task nfs.Task, change func(*nfs.Task)) nfs.Task {
	change(&task)
	return task
}

// Whatever another process does between two operations of an adoption, or an adoption
// between two operations of a create, no volume comes to lie in another, and each that
// was promised has claim, record and directory.
func TestAdoptRaces(t *testing.T) {
	adopt := func(name, dir string) func(*testing.T, *Store) error {
		return func(t *testing.T, s *Store) error {
			_, err := runTask(t, s, adopting(name, dir))
			return err
		}
	}
	create := func(name, dir string) func(*testing.T, *Store) error {
		return func(t *testing.T, s *Store) error {
			_, err := s.CreateVolume(t.Context(), volumeSpec(name, dir))
			return err
		}
	}
	remove := func(t *testing.T, s *Store) error { return s.DeleteVolume(t.Context(), "v", "") }
	for name, tt := range map[string]struct {
		first, second func(*testing.T, *Store) error
	}{
		"a create inside":           {adopt("v", "team/data"), create("w", "team/data/sub/w")},
		"of what a create is in":    {create("w", "team/data/sub/w"), adopt("v", "team/data")},
		"another above":             {adopt("v", "team/data"), adopt("w", "team")},
		"the same":                  {adopt("v", "team/data"), adopt("v", "team/data")},
		"another name":              {adopt("v", "team/data"), adopt("w", "team/data")},
		"a create of it":            {adopt("v", "team/data"), create("v", "team/data")},
		"the name in a create":      {create("v", "team/data"), adopt("v", "team/data")},
		"a delete of it":            {adopt("v", "team/data"), remove},
		"a create of the same name": {adopt("v", "team/data"), create("v", "elsewhere")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for at := 0; ; at++ {
				dir := t.TempDir()
				mustWrite(t, dir+"/team/data/file", "precious")
				second := openStore(t, dir, passive)
				var ops, limit atomic.Int64
				limit.Store(1 << 30)
				var once sync.Once
				var secondErr error
				did := false
				first := openStore(t, dir, passive, func(o *Options) {
					o.hook = func(context.Context, string, string) error {
						if ops.Add(1) > limit.Load() {
							once.Do(func() { did, secondErr = true, tt.second(t, second) })
						}
						return nil
					}
				})
				limit.Store(ops.Load() + int64(at))
				firstErr := tt.first(t, first)
				if !did {
					if at < 15 {
						t.Errorf("there were only %d operations", at)
					}
					return
				}
				checkAdopted(t, dir, second, fmt.Sprintf("before operation %d: %v; %v", at, firstErr, secondErr))
			}
		})
	}
}

// checkAdopted checks what is on the export after a race: every record has its
// directory and claim, and none lies in another.
func checkAdopted(t *testing.T, dir string, s *Store, what string) {
	t.Helper()
	if !exists(dir+"/team/data/file") && len(listItems(t, s, nfs.ItemTrash)) == 0 {
		t.Errorf("%s: the data is gone", what)
	}
	volumes := listItems(t, s, nfs.ItemVolume)
	for _, v := range volumes {
		if v.Problem != "" || !exists(filepath.Join(dir, v.Path)) {
			t.Errorf("%s: %+v has no directory or cannot be read", what, v)
		}
		if text, err := os.Readlink(filepath.Join(dir, ownDir, "dirs", claimName(v.Path))); err != nil || text != volumeKey(v.Key, v.Since) {
			t.Errorf("%s: the claim of %s is %q, %v", what, v.Key, text, err)
		}
		for _, o := range volumes {
			if strings.HasPrefix(o.Path, v.Path+"/") {
				t.Errorf("%s: %s lies in %s", what, o.Path, v.Path)
			}
		}
	}
	claims, err := os.ReadDir(filepath.Join(dir, ownDir, "dirs"))
	if err != nil || len(claims) > len(volumes) && !strings.Contains(what, "operation in progress") && len(listItems(t, s, nfs.ItemTrash)) == 0 {
		t.Errorf("%s: %d claims of %d volumes, %v", what, len(claims), len(volumes), err)
	}
}
