package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// orphansOf returns what is found, as "<kind> <path>: <problem>".
func orphansOf(t *testing.T, s *Store) (found []string) {
	t.Helper()
	state, err := runTask(t, s, nfs.Task{Kind: nfs.TaskOrphans})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range state.Items {
		found = append(found, fmt.Sprintf("%s %s: %s", i.Kind, i.Path, i.Problem))
	}
	return found
}

// Each orphan is found, and nothing else; and what its message says mends it.
func TestOrphanClaims(t *testing.T) {
	type export struct {
		dir, group, key string // of the volume "one", which shares "team/data" with "two"
	}
	claim := filepath.Join(ownDir, "dirs", claimName("team/data"))
	for name, tt := range map[string]struct {
		spoil func(t *testing.T, e export)
		want  []string // begin and parts of what is found
		mend  func(t *testing.T, e export)
	}{
		"nothing is wrong": {spoil: func(*testing.T, export) {}},
		"no claim": {
			spoil: func(t *testing.T, e export) { removeAll(t, filepath.Join(e.dir, claim)) },
			want: []string{
				"record .nfs-csi/volumes/one.json: the claim of the directory \"team/data\" is missing: make the symbolic link " + claim,
				"record .nfs-csi/volumes/two.json: the claim of the directory \"team/data\" is missing",
			},
			mend: func(t *testing.T, e export) { mustSymlink(t, sharedClaim+e.group, filepath.Join(e.dir, claim)) },
		},
		"the claim of another volume": {
			spoil: func(t *testing.T, e export) {
				p := filepath.Join(e.dir, ownDir, "dirs", claimName("alone"))
				removeAll(t, p)
				mustSymlink(t, "other-1", p)
			},
			want: []string{`record .nfs-csi/volumes/alone.json: the directory "alone" is claimed by "other-1"`},
		},
		"a file instead of a claim": {
			spoil: func(t *testing.T, e export) {
				p := filepath.Join(e.dir, ownDir, "dirs", claimName("alone"))
				removeAll(t, p)
				mustWrite(t, p, "")
			},
			want: []string{`record .nfs-csi/volumes/alone.json: the claim of the directory "alone" is no symbolic link: replace .nfs-csi/dirs/` + claimName("alone") + ` by one with the text "alone-`},
		},
		"a file instead of a shared claim": {
			spoil: func(t *testing.T, e export) {
				removeAll(t, filepath.Join(e.dir, claim))
				mustWrite(t, filepath.Join(e.dir, claim), "")
			},
			want: []string{
				`record .nfs-csi/volumes/one.json: the claim of the directory "team/data" is no symbolic link: replace ` + claim,
				`record .nfs-csi/volumes/two.json: the claim of the directory "team/data" is no symbolic link`,
			},
		},
		"a file instead of the claim of a directory without a record": {
			spoil: func(t *testing.T, e export) {
				mustMkdir(t, e.dir+"/lost")
				mustWrite(t, filepath.Join(e.dir, ownDir, "dirs", claimName("lost")), "")
			},
			want: []string{
				"claim .nfs-csi/dirs/" + claimName("lost") + ": it is no symbolic link",
				"directory lost: no record tells of it",
			},
		},
		"a file among the claims": {
			spoil: func(t *testing.T, e export) { mustWrite(t, filepath.Join(e.dir, ownDir, "dirs/note"), "") },
			want:  []string{"claim .nfs-csi/dirs/note: it is no symbolic link, so it was not put there by this driver: remove it"},
			mend:  func(t *testing.T, e export) { removeAll(t, filepath.Join(e.dir, ownDir, "dirs/note")) },
		},
		"no reference": {
			spoil: func(t *testing.T, e export) { removeAll(t, filepath.Join(e.dir, sharedDir, e.group, e.key)) },
			want:  []string{`record .nfs-csi/volumes/one.json: nothing keeps the shared directory "team/data" for the volume: make the symbolic link .nfs-csi/shared/GROUP/KEY with the text "team/data"`},
			mend: func(t *testing.T, e export) {
				mustSymlink(t, "team/data", filepath.Join(e.dir, sharedDir, e.group, e.key))
			},
		},
		"no group": {
			spoil: func(t *testing.T, e export) { removeAll(t, filepath.Join(e.dir, sharedDir, e.group)) },
			want: []string{
				"record .nfs-csi/volumes/one.json: nothing keeps the shared directory",
				"record .nfs-csi/volumes/two.json: nothing keeps the shared directory",
			},
		},
		"no records": {
			spoil: func(t *testing.T, e export) {
				removeAll(t, filepath.Join(e.dir, ownDir, "volumes/one.json"))
				removeAll(t, filepath.Join(e.dir, ownDir, "volumes/two.json"))
			},
			want: []string{
				"claim " + claim + ": it keeps a directory for volumes that share it, none of which has a record",
				"claim .nfs-csi/shared/GROUP/KEY: it keeps a shared directory for the volume \"one\", which is gone: remove it",
				"claim .nfs-csi/shared/GROUP/two-",
				"directory team: no record tells of it",
			},
		},
		"a reference too many": {
			spoil: func(t *testing.T, e export) {
				mustSymlink(t, "team/data", filepath.Join(e.dir, sharedDir, e.group, "gone-7"))
			},
			want: []string{`claim .nfs-csi/shared/GROUP/gone-7: it keeps a shared directory for the volume "gone", which is gone: remove it`},
			mend: func(t *testing.T, e export) { removeAll(t, filepath.Join(e.dir, sharedDir, e.group, "gone-7")) },
		},
		"a create that shares has been killed": {
			spoil: func(t *testing.T, e export) {
				mustSymlink(t, "team/data", filepath.Join(e.dir, sharedDir, e.group, "late-7"+newSuffix))
			},
		},
		"the first create that shares has been killed": {
			spoil: func(t *testing.T, e export) {
				group := newGroup("new")
				mustMkdir(t, filepath.Join(e.dir, sharedDir, group))
				mustSymlink(t, "new", filepath.Join(e.dir, sharedDir, group, "late-7"+newSuffix))
				mustSymlink(t, sharedClaim+group, filepath.Join(e.dir, ownDir, "dirs", claimName("new")))
			},
			want: []string{"claim .nfs-csi/dirs/" + claimName("new") + ": it keeps a directory for volumes that share it, none of which has a record"},
		},
		"a group that nothing leads to": {
			spoil: func(t *testing.T, e export) { mustMkdir(t, filepath.Join(e.dir, sharedDir, newGroup("new"))) },
			want:  []string{"claim .nfs-csi/shared/" + claimName("new")},
		},
		"changes": {
			spoil: func(t *testing.T, e export) {
				mustWrite(t, filepath.Join(e.dir, ownDir, "changes/gone-7/1.json"), "{}")
			},
			want: []string{`record .nfs-csi/changes/gone-7: it holds changes of the volume "gone", which is gone, so nobody reads them: remove it`},
			mend: func(t *testing.T, e export) { removeAll(t, filepath.Join(e.dir, ownDir, "changes/gone-7")) },
		},
		"changes of an earlier volume": {
			spoil: func(t *testing.T, e export) {
				mustWrite(t, filepath.Join(e.dir, ownDir, "changes/alone-7/1.json"), "{}")
			},
			want: []string{"record .nfs-csi/changes/alone-7: "},
		},
		"an archive that is being taken back": {
			spoil: func(t *testing.T, e export) {
				names := archiveFiles(t, e.dir)
				if err := os.Rename(names[0], strings.TrimSuffix(names[0], recordSuffix)+reservedBy+"taker-7"+recordSuffix); err != nil {
					t.Fatal(err)
				}
				mustSymlink(t, "taker-7", filepath.Join(e.dir, ownDir, "dirs", claimName("taker")))
			},
			want: []string{"record .nfs-csi/archive/kept-"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := openStore(t, dir, passive)
			share := func(s *nfs.VolumeSpec) { s.Shared = true }
			one := create(t, s, with(volumeSpec("one", "team/data"), share))
			create(t, s, with(volumeSpec("two", "team/data"), share))
			create(t, s, volumeSpec("alone", "alone"))
			update(t, s, "alone", nfs.VolumeChange{MinBytes: 2 << 30})
			archive(t, openStore(t, dir), dir, with(volumeSpec("kept", "kept"), func(s *nfs.VolumeSpec) { s.OnDelete = nfs.Archive }))
			waitPurged(t, dir)
			text, err := os.Readlink(filepath.Join(dir, claim))
			group, ok := groupOf(text)
			if err != nil || !ok {
				t.Fatal(text, err)
			}
			e := export{dir, group, volumeKey("one", one.Created)}
			tt.spoil(t, e)
			before := tree(t, dir, nil)
			got := orphansOf(t, s)
			for n, want := range tt.want {
				want = strings.NewReplacer("GROUP", e.group, "KEY", e.key).Replace(want)
				if n < len(got) && !strings.HasPrefix(got[n], want) {
					t.Errorf("got  %s\nwant %s", got[n], want)
				}
			}
			if len(got) != len(tt.want) {
				t.Errorf("found %d:\n%s", len(got), strings.Join(got, "\n"))
			}
			if diff := cmp.Diff(before, tree(t, dir, nil)); diff != "" {
				t.Errorf("looking has changed something (-before +after):\n%s", diff)
			}
			if tt.mend == nil {
				return
			}
			tt.mend(t, e)
			if got := orphansOf(t, s); len(got) > 0 {
				t.Errorf("found when it was mended:\n%s", strings.Join(got, "\n"))
			}
			consistent(t, dir)
		})
	}
}

// A delete that was killed anywhere leaves no orphans: the trash knows of it.
func TestOrphansOfKilledDeletes(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{true, false} {
		t.Run(fmt.Sprintf("shared:%v", shared), func(t *testing.T) {
			eachOperation(t, func(t *testing.T, n int) bool {
				d := memDir(t)
				s := openStore(t, d, passive)
				create(t, s, with(volumeSpec("v", "team/v"), func(s *nfs.VolumeSpec) { s.Shared = shared }))
				update(t, s, "v", nfs.VolumeChange{MinBytes: 2 << 30})
				died := dieAt(t, d, n, func(ctx context.Context, s *Store) {
					if err := s.DeleteVolume(ctx, "v", ""); err != nil {
						t.Error(err)
					}
				}, passive)
				if got := orphansOf(t, s); len(got) > 0 {
					t.Errorf("found:\n%s", strings.Join(got, "\n"))
				}
				return died
			})
		})
	}
}

// What the store has for volumes that share a directory, or for an archive, is not
// adopted.
func TestAdoptRefusesShared(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	create(t, s, with(volumeSpec("one", "team/data"), func(s *nfs.VolumeSpec) { s.Shared = true }))
	archive(t, s, dir, with(volumeSpec("kept", "keep/kept"), func(s *nfs.VolumeSpec) { s.OnDelete = nfs.Archive }))
	waitPurged(t, dir)
	// A create that takes the archive back has reserved it, and one that shares has
	// begun: both were killed then.
	file := archiveFiles(t, dir)[0]
	if err := unix.Rename(file, strings.TrimSuffix(file, recordSuffix)+reservedBy+"taker-7"+recordSuffix); err != nil {
		t.Fatal(err)
	}
	mustSymlink(t, "taker-7", filepath.Join(dir, ownDir, "dirs", claimName("taker")))
	mustMkdir(t, dir+"/taker/sub")
	group := newGroup("begun/x")
	mustMkdir(t, filepath.Join(dir, sharedDir, group))
	mustSymlink(t, sharedClaim+group, filepath.Join(dir, ownDir, "dirs", claimName("begun/x")))
	mustMkdir(t, dir+"/begun/x/sub")
	mustMkdir(t, dir+"/team/data/sub")
	archived, err := filepath.Glob(dir + "/keep/archived-*")
	if err != nil || len(archived) != 1 {
		t.Fatal(archived, err)
	}
	mustMkdir(t, archived[0]+"/sub")
	at, _ := filepath.Rel(dir, archived[0])
	before := tree(t, dir, ignoreTimesOf)
	for _, tt := range []struct {
		dir string
		err error
	}{
		{"team/data", nfs.ErrConflict}, {"team/data/sub", nfs.ErrConflict}, {"team", nfs.ErrConflict},
		{"keep", nfs.ErrConflict}, {at, nfs.ErrInvalid}, {at + "/sub", nfs.ErrInvalid},
		{"taker", nfs.ErrConflict}, {"taker/sub", nfs.ErrConflict},
		{"begun", nfs.ErrBusy}, {"begun/x", nfs.ErrConflict}, {"begun/x/sub", nfs.ErrConflict},
	} {
		for _, task := range []nfs.Task{dryRun(adopting("n", tt.dir)), adopting("n", tt.dir)} {
			if _, err := runTask(t, s, task); !errors.Is(err, tt.err) {
				t.Errorf("%s, commit=%v: %v, want %v", tt.dir, task.Commit, err, tt.err)
			}
		}
	}
	if diff := cmp.Diff(before, tree(t, dir, ignoreTimesOf)); diff != "" {
		t.Errorf("changed (-before +after):\n%s", diff)
	}
}
