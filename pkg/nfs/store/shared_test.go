package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func sharedSpec(name, dir string) nfs.VolumeSpec {
	return with(volumeSpec(name, dir), func(s *nfs.VolumeSpec) { s.Shared = true })
}

func TestShared(t *testing.T) {
	for _, onDelete := range []nfs.OnDelete{nfs.Delete, nfs.Retain, nfs.Archive} {
		t.Run(string(onDelete), func(t *testing.T) {
			d := t.TempDir()
			s := openStore(t, d)
			create(t, s, volumeSpec("neighbour", "neighbour"))
			base := leftovers(t, d)
			first := create(t, s, with(sharedSpec("a", "team/app/data"), func(s *nfs.VolumeSpec) { s.Mode = 0o701 }))
			mustWrite(t, d+"/team/app/data/file", "data")
			spec := with(sharedSpec("b", "team/app/data"), func(s *nfs.VolumeSpec) { s.OnDelete = onDelete })
			other := openStore(t, d)
			second := create(t, other, spec)
			if !first.Shared || !second.Shared || first.Dir != second.Dir {
				t.Errorf("made: %+v, %+v", first, second)
			}
			if again := create(t, s, spec); !again.Created.Equal(second.Created) {
				t.Errorf("again: %+v", again)
			}
			if st, err := os.Stat(d + "/team/app/data"); err != nil || st.Mode().Perm() != 0o701 {
				t.Errorf("the mode: %v, %v", st, err)
			}
			consistent(t, d)
			remove(t, other, "a")
			waitPurged(t, d)
			if data, err := os.ReadFile(d + "/team/app/data/file"); err != nil || string(data) != "data" {
				t.Fatalf("after the first delete: %q, %v", data, err)
			}
			consistent(t, d)
			create(t, s, sharedSpec("c", "team/app/data"))
			remove(t, s, "c")
			remove(t, s, "b")
			waitPurged(t, d)
			consistent(t, d)
			archives, _ := filepath.Glob(d + "/team/app/archived-data-*/file")
			left := exists(d + "/team/app/data/file")
			if left != (onDelete == nfs.Retain) || (len(archives) == 1) != (onDelete == nfs.Archive) || exists(d+"/team") != (onDelete != nfs.Delete) {
				t.Errorf("left: %v, archives %v, parents %v", left, archives, exists(d+"/team"))
			}
			if onDelete != nfs.Archive {
				if diff := cmp.Diff(base, leftovers(t, d)); diff != "" {
					t.Errorf("left (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestSharedRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		before *nfs.VolumeSpec
		dir    string // that someone makes
		spec   nfs.VolumeSpec
		want   error
		say    string
	}{
		"another's directory":         {before: new(volumeSpec("a", "data")), spec: sharedSpec("b", "data"), want: nfs.ErrConflict, say: `"a"`},
		"a shared directory, alone":   {before: new(sharedSpec("a", "data")), spec: volumeSpec("b", "data"), want: nfs.ErrConflict, say: "shared by volumes"},
		"below a shared directory":    {before: new(sharedSpec("a", "data")), spec: volumeSpec("b", "data/b"), want: nfs.ErrConflict, say: "shared by volumes"},
		"shared below a volume":       {before: new(volumeSpec("a", "data")), spec: sharedSpec("b", "data/b"), want: nfs.ErrConflict, say: `"a"`},
		"shared no longer":            {before: new(sharedSpec("a", "data")), spec: volumeSpec("a", "data"), want: nfs.ErrConflict, say: "has true, not false"},
		"shared since":                {before: new(volumeSpec("a", "data")), spec: sharedSpec("a", "data"), want: nfs.ErrConflict, say: "has false, not true"},
		"someone's directory":         {dir: "data/theirs", spec: sharedSpec("a", "data"), want: nfs.ErrForeign, say: "no record"},
		"someone's, and it is empty":  {dir: "data", spec: sharedSpec("a", "data"), want: nfs.ErrForeign, say: "no record"},
		"an archive":                  {spec: with(sharedSpec("a", "data"), func(s *nfs.VolumeSpec) { s.RestoreArchive = "x" }), want: nfs.ErrInvalid, say: "restoreArchive"},
		"the directory is not shared": {before: new(sharedSpec("a", "data/a")), spec: sharedSpec("b", "data"), want: nfs.ErrForeign, say: "no record"},
	} {
		t.Run(name, func(t *testing.T) {
			d := t.TempDir()
			s := openStore(t, d)
			create(t, s, volumeSpec("neighbour", "neighbour"))
			mustMkdir(t, filepath.Join(d, tt.dir))
			if tt.before != nil {
				create(t, s, *tt.before)
			}
			skip := func(p string) bool { return ignoreTimesOf(p) || p == sharedDir && tt.before == nil }
			before := tree(t, d, skip)
			_, err := s.CreateVolume(t.Context(), tt.spec)
			wantError(t, err, tt.want, tt.say)
			waitPurged(t, d)
			if diff := cmp.Diff(before, tree(t, d, skip)); diff != "" {
				t.Errorf("changed (-before +after):\n%s", diff)
			}
		})
	}
}

// sharers makes an export with the shared volumes of those names, and data.
func sharers(t testing.TB, names ...string) string {
	t.Helper()
	d := memDir(t)
	s := openStore(t, d)
	create(t, s, volumeSpec("neighbour", "neighbour"))
	for _, name := range names {
		create(t, s, sharedSpec(name, "ns/data"))
		mustWrite(t, d+"/ns/data/file", "data")
	}
	return d
}

// checkShared checks that the directory is there, with its data, if any volume is.
func checkShared(t testing.TB, d string) {
	t.Helper()
	records, err := filepath.Glob(filepath.Join(d, ownDir, "volumes/*"))
	if err != nil {
		t.Fatal(err)
	}
	if there := exists(d + "/ns/data"); there != (len(records) > 1) {
		t.Errorf("the directory is there: %v; the volumes are %v", there, records)
	}
	consistent(t, d)
}

// endShared deletes the volumes and checks that nothing of them is left.
func endShared(t testing.TB, s *Store, d string, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := untilSettled(t, func() error { return s.DeleteVolume(t.Context(), name, "") }); err != nil {
			t.Fatal(err)
		}
	}
	waitPurged(t, d)
	checkShared(t, d)
	var left []string
	for _, name := range leftovers(t, d) {
		if !strings.HasPrefix(name, "work/") {
			left = append(left, name)
		}
	}
	if len(left) != 2 {
		t.Errorf("left: %v", left)
	}
}

// A create, of the first volume of a group or of another, is killed before each of its
// operations: what stands keeps its data, and the retry succeeds, or is never made.
func TestKillSharedCreate(t *testing.T) {
	t.Parallel()
	for name, before := range map[string][]string{"first": nil, "second": {"a"}} {
		for _, retry := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s:%v", name, retry), func(t *testing.T) {
				eachOperation(t, func(t *testing.T, n int) bool {
					d := sharers(t, before...)
					died := dieAt(t, d, n, func(ctx context.Context, s *Store) {
						if _, err := s.CreateVolume(ctx, sharedSpec("b", "ns/data")); err != nil {
							t.Error(err)
						}
					})
					s := openStore(t, d)
					if len(before) > 0 && !exists(d+"/ns/data/file") {
						t.Fatal("the data is gone")
					}
					if retry {
						create(t, s, sharedSpec("b", "ns/data"))
					}
					create(t, s, sharedSpec("c", "ns/data"))
					if len(before) > 0 {
						remove(t, s, "a")
					}
					waitPurged(t, d)
					if !exists(d + "/ns/data") {
						t.Fatal("the directory is gone")
					}
					remove(t, s, "b")
					remove(t, s, "c")
					waitPurged(t, d)
					if exists(d+"/ns/data") || len(inDir(t, d+"/"+ownDir+"/dirs")) != 1 {
						t.Errorf("left: the directory: %v, claims: %v", exists(d+"/ns/data"), inDir(t, d+"/"+ownDir+"/dirs"))
					}
					return died
				})
			})
		}
	}
}

func inDir(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// A delete, of the last volume of a group or of another, is killed before each of its
// operations, and the purge of another process ends it.
func TestKillSharedDelete(t *testing.T) {
	t.Parallel()
	for _, names := range [][]string{{"a"}, {"a", "b"}} {
		for _, onDelete := range []nfs.OnDelete{nfs.Delete, nfs.Archive, nfs.Retain} {
			if len(names) > 1 && onDelete != nfs.Delete {
				continue
			}
			t.Run(fmt.Sprintf("%s of %d", onDelete, len(names)), func(t *testing.T) {
				eachOperation(t, func(t *testing.T, n int) bool {
					d := sharers(t, names[1:]...)
					create(t, openStore(t, d), with(sharedSpec("a", "ns/data"), func(s *nfs.VolumeSpec) { s.OnDelete = onDelete }))
					mustWrite(t, d+"/ns/data/file", "data")
					died := dieAt(t, d, n, func(ctx context.Context, s *Store) {
						if err := s.DeleteVolume(ctx, "a", ""); err != nil {
							t.Error(err)
						}
					})
					s := openStore(t, d)
					remove(t, s, "a")
					waitPurged(t, d)
					archives, _ := filepath.Glob(d + "/ns/archived-data-*/file")
					there := exists(d + "/ns/data/file")
					if len(names) > 1 {
						if !there || len(archives) > 0 {
							t.Fatalf("the data is there: %v; archives: %v", there, archives)
						}
						checkShared(t, d)
						endShared(t, s, d, "b")
						return died
					}
					if there != (onDelete == nfs.Retain) || (len(archives) == 1) != (onDelete == nfs.Archive) {
						t.Errorf("the data is there: %v; archives: %v", there, archives)
					}
					consistent(t, d)
					return died
				})
			})
		}
	}
}

// While one create or delete runs, others come and go before each of its operations:
// a volume that stands has its directory, with its data.
func TestSharedInterrupted(t *testing.T) {
	t.Parallel()
	makeOf := func(name string) func(context.Context, *Store) error {
		return func(ctx context.Context, s *Store) error {
			_, err := s.CreateVolume(ctx, sharedSpec(name, "ns/data"))
			return err
		}
	}
	deleteOf := func(name string) func(context.Context, *Store) error {
		return func(ctx context.Context, s *Store) error { return s.DeleteVolume(ctx, name, "") }
	}
	for name, tt := range map[string]struct {
		before        []string
		slow, between func(context.Context, *Store) error
	}{
		"first and first":    {nil, makeOf("a"), makeOf("b")},
		"first and the same": {nil, makeOf("a"), makeOf("a")},
		"second and last":    {[]string{"a"}, makeOf("b"), deleteOf("a")},
		"last and second":    {[]string{"a"}, deleteOf("a"), makeOf("b")},
		"last and last":      {[]string{"a", "b"}, deleteOf("a"), deleteOf("b")},
		"last and the same":  {[]string{"a"}, deleteOf("a"), deleteOf("a")},
		"last and all": {[]string{"a"}, deleteOf("a"), func(ctx context.Context, s *Store) error {
			return errors.Join(ignoreBusy(deleteOf("a")(ctx, s)), makeOf("b")(ctx, s))
		}},
		"first and its end": {nil, makeOf("a"), func(ctx context.Context, s *Store) error {
			return errors.Join(makeOf("b")(ctx, s), deleteOf("b")(ctx, s))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			eachOperation(t, func(t *testing.T, n int) bool {
				d := sharers(t, tt.before...)
				other := openStore(t, d, func(o *Options) { o.purgeGrace = 0 })
				var slow error
				made := false
				happened := interrupted(t, d, n, func(string) error {
					if err := tt.between(t.Context(), other); err != nil && !errors.Is(err, nfs.ErrBusy) {
						t.Errorf("between: %v", err)
					}
					if _, err := other.GetVolume(t.Context(), "b"); err == nil && name != "second and last" { // where b is the slow one
						made = true
						if err := os.WriteFile(d+"/ns/data/b", nil, 0o600); err != nil {
							t.Error(err)
						}
					}
					return nil
				}, func(ctx context.Context, s *Store) { slow = tt.slow(ctx, s) })
				if slow != nil && !errors.Is(slow, nfs.ErrBusy) {
					t.Errorf("the slow one: %v", slow)
				}
				openStore(t, d)
				waitPurged(t, d)
				if _, err := other.GetVolume(t.Context(), "b"); made && err == nil && !exists(d+"/ns/data/b") {
					t.Error("the data of a volume that stands is gone")
				}
				for _, name := range []string{"a", "b"} {
					if err := untilSettled(t, func() error { return makeOf(name)(t.Context(), other) }); err != nil {
						t.Errorf("%s at last: %v", name, err)
					}
				}
				checkShared(t, d)
				endShared(t, other, d, "a", "b")
				return happened
			})
		})
	}
}

func ignoreBusy(err error) error {
	if errors.Is(err, nfs.ErrBusy) {
		return nil
	}
	return err
}

// Each operation of a create fails once: what is left keeps nobody from trying again,
// and what stands has its data.
func TestSharedFails(t *testing.T) {
	t.Parallel()
	for name, before := range map[string][]string{"first": nil, "second": {"a"}} {
		for _, errno := range []unix.Errno{unix.EACCES, unix.EIO} {
			t.Run(fmt.Sprintf("%s:%v", name, errno), func(t *testing.T) {
				eachOperation(t, func(t *testing.T, n int) bool {
					d := sharers(t, before...)
					var err error
					happened := interrupted(t, d, n, func(string) error { return errno }, func(ctx context.Context, s *Store) {
						_, err = s.CreateVolume(ctx, sharedSpec("b", "ns/data"))
					})
					s := openStore(t, d)
					waitPurged(t, d)
					if _, getErr := s.GetVolume(t.Context(), "b"); err != nil && getErr != nil && errno == unix.EACCES && len(before) == 0 && exists(d+"/ns/data") {
						t.Errorf("%v left the directory", err)
					}
					create(t, s, sharedSpec("b", "ns/data"))
					checkShared(t, d)
					if len(before) > 0 && !exists(d+"/ns/data/file") {
						t.Error("the data is gone")
					}
					endShared(t, s, d, append(before, "b")...)
					return happened
				})
			})
		}
	}
}

// sharedHammer makes and deletes volumes that share directories with others', and
// watches over what it has put there, as long as a volume of its own stands.
func sharedHammer(ctx context.Context, s *Store, dir string, seed, rounds int) error {
	for round := range rounds {
		name := fmt.Sprintf("s-%d-%d", seed, round)
		spec := sharedSpec(name, fmt.Sprintf("shared/data-%d", (seed+round)%2))
		spec.OnDelete = []nfs.OnDelete{nfs.Delete, nfs.Delete, nfs.Archive}[round%3]
		if err := retryBusy(func() error { _, err := s.CreateVolume(ctx, spec); return err }); err != nil {
			return fmt.Errorf("create %s: %w", name, err)
		}
		token := filepath.Join(dir, spec.Dir, name)
		if err := os.WriteFile(token, []byte(name), 0o600); err != nil {
			return fmt.Errorf("the new volume: %w", err)
		}
		if _, err := s.CreateVolume(ctx, spec); err != nil {
			return fmt.Errorf("again: %w", err)
		}
		if round%2 == 0 { // a moment in which others come and go
			if _, err := s.ListVolumes(ctx, "", 0); err != nil {
				return err
			}
		}
		if data, err := os.ReadFile(token); err != nil || string(data) != name {
			return fmt.Errorf("the volume %q holds %q: %w", name, data, err)
		}
		if err := retryBusy(func() error { return s.DeleteVolume(ctx, name, "") }); err != nil {
			return fmt.Errorf("delete %s: %w", name, err)
		}
	}
	return nil
}

// retryBusy gives others, who may have been killed, the time that a purge takes to
// take over what they have begun.
func retryBusy(f func() error) (err error) {
	deadline := time.Now().Add(2 * defaultGrace)
	for time.Now().Before(deadline) {
		if err = f(); !errors.Is(err, nfs.ErrBusy) && !errors.Is(err, nfs.ErrForeign) {
			return err
		}
		<-time.After(time.Millisecond)
	}
	return err
}

// Several processes make and delete volumes that share two directories: while one
// stands, its data is there; when the last has gone, nothing is left.
func TestHammerShared(t *testing.T) {
	d := t.TempDir()
	create(t, openStore(t, d), volumeSpec("neighbour", "neighbour"))
	var g errgroup.Group
	for seed := range 2 {
		g.Go(func() error {
			if runJob(t, job{Dir: d, SharedRounds: 40, SharedSeed: seed}) {
				return errors.New("killed")
			}
			return nil
		})
	}
	mine := openStore(t, d, func(o *Options) { o.purgeGrace = 0 })
	for seed := range 2 {
		g.Go(func() error { return sharedHammer(t.Context(), mine, d, 2+seed, 40) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	openStore(t, d)
	waitPurged(t, d)
	consistent(t, d)
	for n := range 2 {
		if place := fmt.Sprintf("%s/shared/data-%d", d, n); exists(place) {
			t.Errorf("left: %v", inDir(t, place))
		}
	}
}
