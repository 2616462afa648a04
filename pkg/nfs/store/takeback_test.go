package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// back is a volume made from an archive.
func back(name, dir, archive string) nfs.VolumeSpec {
	return with(volumeSpec(name, dir), func(s *nfs.VolumeSpec) { s.RestoreArchive, s.Mode = archive, 0 })
}

// withArchive is a new export with an archive of the volume "old" and a neighbour.
func withArchive(t testing.TB) (dir string, a nfs.Item) {
	t.Helper()
	dir = memDir(t)
	s := openStore(t, dir)
	create(t, s, volumeSpec("neighbour", "ns/neighbour"))
	archive(t, s, dir, archivedSpec("old", "ns/old", time.Hour))
	waitPurged(t, dir)
	return dir, onlyArchive(t, s)
}

func onlyArchive(t testing.TB, s *Store) nfs.Item {
	t.Helper()
	list := listItems(t, s, nfs.ItemArchive)
	if len(list) != 1 {
		t.Fatalf("archives: %+v", list)
	}
	return list[0]
}

// checkWhole checks that the archive's data is in one place: the volume's if there is
// one of that name, else the archive's.
func checkWhole(t testing.TB, s *Store, dir string, a nfs.Item, names ...string) {
	t.Helper()
	var volumes []nfs.Volume
	for _, name := range names {
		v, err := s.GetVolume(t.Context(), name)
		if err == nil {
			volumes = append(volumes, v)
		} else if !errors.Is(err, nfs.ErrNotFound) {
			t.Error(err)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*/*/sub/file"))
	if err != nil {
		t.Fatal(err)
	}
	records := archiveFiles(t, dir)
	want, wantRecords := filepath.Join(dir, a.Path), 1
	if len(volumes) == 1 {
		want, wantRecords = filepath.Join(dir, volumes[0].Dir), 0
	}
	if len(volumes) > 1 || len(files) != 1 || files[0] != want+"/sub/file" || len(records) != wantRecords {
		t.Fatalf("volumes %+v, the data %v, archives %v", volumes, files, records)
	}
	consistent(t, dir)
}

func TestTakeBack(t *testing.T) {
	for _, by := range []string{"id", "name"} {
		t.Run(by, func(t *testing.T) {
			dir, a := withArchive(t)
			if err := os.Chmod(filepath.Join(dir, a.Path), 0o701); err != nil {
				t.Fatal(err)
			}
			s := openStore(t, dir)
			spec := back("new", "team/new", map[string]string{"id": a.Key, "name": "old"}[by])
			v := create(t, s, spec)
			if v.RestoredArchive != a.Key || v.RestoredName != "old" || v.Dir != "team/new" || v.CapacityBytes != spec.MinBytes {
				t.Errorf("made: %+v", v)
			}
			checkWhole(t, s, dir, a, "new")
			if st, err := os.Stat(dir + "/team/new"); err != nil || st.Mode().Perm() != 0o701 {
				t.Errorf("the mode: %v, %v", st, err)
			}
			if again := create(t, openStore(t, dir), spec); !again.Created.Equal(v.Created) {
				t.Errorf("again: %+v", again)
			}
			other := map[string]string{"id": "old", "name": a.Key}[by]
			if again := create(t, s, back("new", "team/new", other)); !again.Created.Equal(v.Created) {
				t.Errorf("named otherwise: %+v", again)
			}
			_, err := s.CreateVolume(t.Context(), with(spec, func(s *nfs.VolumeSpec) { s.RestoreArchive = "" }))
			wantError(t, err, nfs.ErrConflict, a.Key)
			_, err = s.CreateVolume(t.Context(), back("new", "team/new", "another"))
			wantError(t, err, nfs.ErrConflict, a.Key, "another")
			_, err = s.CreateVolume(t.Context(), back("second", "team/second", "old"))
			wantError(t, err, nfs.ErrNotFound, `"old"`, ".nfs-csi/archive")
			if b := s.Backlog(); b.Archives != 0 {
				t.Errorf("backlog: %+v", b)
			}
			remove(t, s, "new")
			waitPurged(t, dir)
			if left := leftovers(t, dir); len(left) != 2 || exists(dir+"/team") { // the neighbour's
				t.Errorf("left: %v, the parent: %v", left, exists(dir+"/team"))
			}
		})
	}
}

// A volume goes to the archive and back as often as one likes, also under its old
// name, and owner and mode change where that is asked for.
func TestTakeBackAgain(t *testing.T) {
	dir, a := withArchive(t)
	s := openStore(t, dir)
	for n := range 3 {
		spec := with(back("old", "ns/old", "old"), func(s *nfs.VolumeSpec) {
			s.OnDelete, s.Mode = nfs.Archive, nfs.FileMode(0o750+uint32(n))
			if os.Getuid() == 0 {
				id := uint32(4711 + n)
				s.UID, s.GID = &id, &id
			}
		})
		create(t, s, spec)
		checkWhole(t, s, dir, a, "old")
		st, err := os.Stat(dir + "/ns/old")
		if err != nil || st.Mode() != os.ModeDir|spec.Mode {
			t.Errorf("the mode: %v, %v", st, err)
		}
		if owner := st.Sys().(*syscall.Stat_t); spec.UID != nil && (owner.Uid != *spec.UID || owner.Gid != *spec.GID) {
			t.Errorf("the owner: %d:%d", owner.Uid, owner.Gid)
		}
		remove(t, s, "old")
		waitPurged(t, dir)
		again := onlyArchive(t, s)
		if again.Key == a.Key || again.Volume.Name != "old" {
			t.Errorf("archived again: %+v", again)
		}
		a = again
		checkWhole(t, s, dir, a, "old")
	}
}

func TestTakeBackRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		prepare func(t *testing.T, dir string, a nfs.Item)
		spec    func(a nfs.Item) nfs.VolumeSpec
		want    error
		say     []string
	}{
		"unknown": {spec: func(nfs.Item) nfs.VolumeSpec { return back("new", "new", "nobody") }, want: nfs.ErrNotFound, say: []string{`"nobody"`}},
		"no name": {spec: func(nfs.Item) nfs.VolumeSpec { return back("new", "new", "../volumes/neighbour") }, want: nfs.ErrNotFound},
		"archived twice": {
			prepare: func(t *testing.T, dir string, a nfs.Item) {
				archive(t, openStore(t, dir), dir, archivedSpec("old", "ns/old", 0))
			},
			spec: func(nfs.Item) nfs.VolumeSpec { return back("new", "new", "old") },
			want: nfs.ErrInvalid, say: []string{"2 times", "old-1"},
		},
		"another instance's": {
			prepare: func(t *testing.T, dir string, a nfs.Item) {
				two := openStore(t, dir, func(o *Options) { o.InstanceID = "two" })
				archive(t, two, dir, archivedSpec("theirs", "theirs", 0))
			},
			spec: func(nfs.Item) nfs.VolumeSpec { return back("new", "new", "theirs") },
			want: nfs.ErrForeign, say: []string{`"two"`},
		},
		"it was moved by hand": {
			prepare: func(t *testing.T, dir string, a nfs.Item) {
				if err := os.Rename(filepath.Join(dir, a.Path), dir+"/mine"); err != nil {
					t.Fatal(err)
				}
			},
			spec: func(a nfs.Item) nfs.VolumeSpec { return back("new", "new", a.Key) },
			want: nfs.ErrNotFound,
		},
		"it became a symbolic link": {
			prepare: func(t *testing.T, dir string, a nfs.Item) {
				if err := os.RemoveAll(filepath.Join(dir, a.Path)); err != nil {
					t.Fatal(err)
				}
				mustSymlink(t, "neighbour", filepath.Join(dir, a.Path))
			},
			spec: func(a nfs.Item) nfs.VolumeSpec { return back("new", "new", a.Key) },
			want: nfs.ErrForeign, say: []string{"symbolic link"},
		},
		"the directory is someone's": {
			prepare: func(t *testing.T, dir string, a nfs.Item) { mustMkdir(t, dir+"/new") },
			spec:    func(a nfs.Item) nfs.VolumeSpec { return back("new", "new", a.Key) },
			want:    nfs.ErrForeign, say: []string{`"new"`, "no record"},
		},
		"the directory is a volume's": {
			spec: func(a nfs.Item) nfs.VolumeSpec { return back("new", "ns/neighbour", a.Key) },
			want: nfs.ErrConflict, say: []string{`"neighbour"`},
		},
		"inside a volume": {
			spec: func(a nfs.Item) nfs.VolumeSpec { return back("new", "ns/neighbour/new", a.Key) },
			want: nfs.ErrConflict, say: []string{"inside another"},
		},
		"another volume takes it": {
			prepare: func(t *testing.T, dir string, a nfs.Item) {
				from := filepath.Join(dir, ownDir, "archive", a.Key)
				if err := os.Rename(from+".json", from+"+someone-1.json"); err != nil {
					t.Fatal(err)
				}
			},
			spec: func(a nfs.Item) nfs.VolumeSpec { return back("new", "new", a.Key) },
			want: nfs.ErrConflict, say: []string{`"someone"`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, a := withArchive(t)
			if tt.prepare != nil {
				tt.prepare(t, dir, a)
				waitPurged(t, dir)
			}
			before := tree(t, dir, ignoreTimesOf)
			_, err := openStore(t, dir).CreateVolume(t.Context(), tt.spec(a))
			wantError(t, err, tt.want, tt.say...)
			if diff := cmp.Diff(before, tree(t, dir, ignoreTimesOf)); diff != "" {
				t.Errorf("changed (-before +after):\n%s", diff)
			}
		})
	}
}

// A create that takes an archive back is killed before each of its operations, and
// its retry before some; the data is in one place, and the next retry ends it.
func TestKillTakeBack(t *testing.T) {
	t.Parallel()
	spec := back("new", "team/new", "old")
	run := func(ctx context.Context, s *Store) {
		if _, err := s.CreateVolume(ctx, spec); err != nil {
			t.Error(err)
		}
	}
	for n, died := 1, true; died && !t.Failed(); n++ {
		for _, m := range []int{8, 16, 24} {
			t.Run(fmt.Sprintf("%d+%d", n, m), func(t *testing.T) {
				dir, a := withArchive(t)
				if died = dieAt(t, dir, n, run); died {
					dieAt(t, dir, m, run)
				}
				s := openStore(t, dir)
				create(t, s, spec)
				checkWhole(t, s, dir, a, "new")
			})
		}
	}
}

// It is killed and never tried again: the data stays in its one place, and nobody else
// is given it. When the volume had come to be, deleting it frees the archive, or takes
// the data away with it.
func TestKillTakeBackForGood(t *testing.T) {
	spec := back("new", "team/new", "old")
	eachOperation(t, func(t *testing.T, n int) bool {
		dir, a := withArchive(t)
		died := dieAt(t, dir, n, func(ctx context.Context, s *Store) { _, _ = s.CreateVolume(ctx, spec) })
		s := openStore(t, dir)
		_, getErr := s.GetVolume(t.Context(), "new")
		moved := exists(dir + "/team/new/sub/file")
		if moved && getErr != nil || !moved && !exists(filepath.Join(dir, a.Path, "sub/file")) {
			t.Fatalf("the data is in the volume: %v; which is: %v", moved, getErr)
		}
		if getErr != nil {
			_, err := s.CreateVolume(t.Context(), back("other", "team/other", "old"))
			if err != nil {
				wantError(t, err, nfs.ErrConflict, `"new"`)
			} else if !exists(dir+"/team/other/sub/file") || len(archiveFiles(t, dir)) > 0 {
				t.Errorf("the other volume has not the data, or archives are left: %v", archiveFiles(t, dir))
			}
			return died
		}
		remove(t, s, "new")
		waitPurged(t, dir)
		if moved {
			if left := archiveFiles(t, dir); len(left) > 0 || exists(filepath.Join(dir, a.Path)) {
				t.Errorf("left: %v", left)
			}
			return died
		}
		checkWhole(t, s, dir, a, "new", "other")
		create(t, s, back("other", "team/other", a.Key))
		checkWhole(t, s, dir, a, "other")
		return died
	})
}

// Each operation fails once: a definite failure leaves the archive to others, and the
// same request succeeds afterwards in any case.
func TestTakeBackFails(t *testing.T) {
	t.Parallel()
	spec := with(back("new", "team/new", "old"), func(s *nfs.VolumeSpec) { s.Mode = 0o711 })
	for _, errno := range []unix.Errno{unix.EACCES, unix.EIO} {
		t.Run(errno.Error(), func(t *testing.T) {
			eachOperation(t, func(t *testing.T, n int) bool {
				dir, a := withArchive(t)
				var err error
				happened := interrupted(t, dir, n, func(string) error { return errno }, func(ctx context.Context, s *Store) {
					_, err = s.CreateVolume(ctx, spec)
				})
				s := openStore(t, dir)
				_, getErr := s.GetVolume(t.Context(), "new")
				if err != nil && errors.Is(getErr, nfs.ErrNotFound) && errno != unix.EIO {
					checkWhole(t, s, dir, a, "new")
					if exists(dir + "/team") {
						t.Error("the parent stays")
					}
					create(t, s, back("other", "ns/other", a.Key))
					checkWhole(t, s, dir, a, "other")
					return happened
				}
				create(t, s, spec)
				checkWhole(t, s, dir, a, "new")
				return happened
			})
		})
	}
}

// While one create takes an archive back, something else happens before each of its
// operations: the archive goes to one volume at most, and is never lost.
func TestTakeBackInterrupted(t *testing.T) {
	t.Parallel()
	spec := back("new", "team/new", "old")
	for name, between := range map[string]func(t *testing.T, dir string, s *Store){
		"the same volume": func(t *testing.T, dir string, s *Store) {
			if _, err := s.CreateVolume(t.Context(), spec); err != nil && !errors.Is(err, nfs.ErrBusy) {
				t.Error(err)
			}
		},
		"another volume": func(t *testing.T, dir string, s *Store) {
			_, err := s.CreateVolume(t.Context(), back("other", "team/other", "old"))
			if err != nil && !errors.Is(err, nfs.ErrConflict) && !errors.Is(err, nfs.ErrNotFound) {
				t.Error(err)
			}
		},
		"made and deleted": func(t *testing.T, dir string, s *Store) {
			if _, err := s.CreateVolume(t.Context(), with(spec, func(s *nfs.VolumeSpec) { s.OnDelete = nfs.Archive })); err == nil {
				remove(t, s, "new")
			}
		},
		"deleted": func(t *testing.T, dir string, s *Store) {
			if !exists(dir + "/team/new") {
				remove(t, s, "new")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachOperation(t, func(t *testing.T, n int) bool {
				dir, a := withArchive(t)
				s := openStore(t, dir, func(o *Options) { o.purgeGrace = 0 })
				var err error
				happened := interrupted(t, dir, n, func(string) error { between(t, dir, s); return nil }, func(ctx context.Context, s *Store) {
					_, err = s.CreateVolume(ctx, spec)
				})
				if err != nil && sentinelOf(err) == nil {
					t.Errorf("the create: %v", err)
				}
				openStore(t, dir) // takes over what the others have left
				waitPurged(t, dir)
				if name == "made and deleted" {
					if files, _ := filepath.Glob(filepath.Join(dir, "*/*/sub/file")); len(files) != 1 {
						t.Fatalf("the data: %v", files)
					}
					return happened
				}
				if _, getErr := s.GetVolume(t.Context(), "other"); err != nil && getErr != nil {
					_ = untilSettled(t, func() error { _, err = s.CreateVolume(t.Context(), spec); return err })
					if err != nil {
						t.Errorf("again: %v", err)
					}
				}
				checkWhole(t, s, dir, a, "new", "other")
				return happened
			})
		})
	}
}

// Of many that want one archive at once, in several processes, one gets it.
func TestTakeBackOneWinner(t *testing.T) {
	for range 20 {
		dir, a := withArchive(t)
		stores := []*Store{openStore(t, dir), openStore(t, dir), openStore(t, dir)}
		var wg sync.WaitGroup
		var mu sync.Mutex
		var won []string
		start := make(chan struct{})
		for n := range 9 {
			wg.Go(func() {
				<-start
				name := fmt.Sprintf("v%d", n/2)
				_, err := untilMade(t, stores[n%3], back(name, "team/"+name, []string{a.Key, "old"}[n/2%2]))
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil && !slices.Contains(won, name):
					won = append(won, name)
				case err != nil && !errors.Is(err, nfs.ErrConflict) && !errors.Is(err, nfs.ErrNotFound):
					t.Errorf("%s: %v", name, err)
				}
			})
		}
		close(start)
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("it went to %v", won)
		}
		checkWhole(t, stores[0], dir, a, "v0", "v1", "v2", "v3", "v4")
	}
}

// An archive that is being taken back does not expire, and one that has expired is
// not taken back.
func TestTakeBackOrExpire(t *testing.T) {
	spec := back("new", "team/new", "old")
	eachOperation(t, func(t *testing.T, n int) bool {
		dir, a := withArchive(t)
		var err error
		happened := interrupted(t, dir, n, func(string) error {
			for _, file := range archiveFiles(t, dir) {
				age(t, file, 2*time.Hour, 2*time.Hour)
			}
			expired := openStore(t, dir)
			waitPassed(t, expired)
			waitPurged(t, dir)
			return nil
		}, func(ctx context.Context, s *Store) {
			_, err = s.CreateVolume(ctx, spec)
		})
		data, _ := filepath.Glob(filepath.Join(dir, "*/*/sub/file"))
		if happened && errors.Is(err, nfs.ErrNotFound) {
			if len(data)+len(archiveFiles(t, dir)) > 0 {
				t.Errorf("left of %s: %v, %v", a.Key, data, archiveFiles(t, dir))
			}
		} else if err != nil || len(data) != 1 || !strings.HasPrefix(data[0], dir+"/team/new/") {
			t.Errorf("create: %v; the data: %v", err, data)
		}
		consistent(t, dir)
		return happened
	})
}
