package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// killJob has a child killed before each file operation of the job, several at a time,
// half of them a second time at random, and each on an export with neighbours, a volume
// "src" and a snapshot "old" of it.
func killJob(t *testing.T, least int, j job, check func(t *testing.T, s *Store, d string, want map[string]node)) {
	const together = 24 // They mostly wait for leases.
	killed := make([]bool, together)
	for n := 1; ; n += together {
		var wg sync.WaitGroup
		for i := range together {
			// Not t.Parallel, which allows as many as there are processors.
			wg.Go(func() {
				t.Run(fmt.Sprint(n+i), func(t *testing.T) {
					d := populated(t)
					s := openStore(t, d, patient)
					create(t, s, volumeSpec("src", "src"))
					// TestKillCopy has one of everything.
					mustWrite(t, d+"/src/sub/file", "content")
					if err := os.Link(d+"/src/sub/file", d+"/src/link"); err != nil {
						t.Fatal(err)
					}
					want := scan(t, d+"/src", nil)
					snapshot(t, s, "old", "src")
					base := leftovers(t, d)
					before := jobNeighbours(t, d)
					j := j
					j.Dir, j.KillAt = d, n+i
					killed[i] = runJob(t, j)
					if killed[i] && i%2 == 1 {
						j.KillAt = 1 + rand.IntN(j.KillAt)
						runJob(t, j)
					}
					s = openStore(t, d, quickLease)
					check(t, s, d, want)
					openStore(t, d) // for what the child has put in the trash meanwhile
					waitPurged(t, d)
					if diff := cmp.Diff(before, jobNeighbours(t, d)); diff != "" {
						t.Errorf("neighbours changed (-before +after):\n%s", diff)
					}
					compareTrees(t, want, scan(t, d+"/src", nil), isNFS(t, d))
					consistent(t, d)
					waitFor(t, "nothing to be left", func() (bool, string) {
						left := slices.DeleteFunc(leftovers(t, d), func(name string) bool {
							return isTemporary(name) || slices.Contains(base, name)
						})
						return len(left) == 0, fmt.Sprint(left)
					})
				})
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		if !slices.Contains(killed, true) {
			if n <= least {
				t.Fatalf("the job took %d file operations, want more than %d: is the hook called?", n-1, least)
			}
			t.Logf("about %d file operations", n)
			return
		}
	}
}

func (j job) takeSnapshot(ctx context.Context, s *Store) (err error) {
	for ready := false; !ready && err == nil; {
		err = whileBusy(func() error {
			v, err := s.CreateSnapshot(ctx, j.Snapshot, "src")
			ready = v.Ready
			return err
		})
	}
	return err
}

// isTemporary is for what goes when it is an hour old.
func isTemporary(name string) bool {
	name, ok := strings.CutPrefix(name, "work/")
	_, _, isJob := parseJobName(name)
	return ok && !isJob
}

func jobNeighbours(t testing.TB, dir string) []string {
	return tree(t, dir, func(p string) bool {
		return p == "." || p == "src" || p == "copy" || p == ownDir || strings.HasPrefix(p, ownDir+"/snapshots") || strings.HasPrefix(p, ownDir+"/work") ||
			strings.HasPrefix(p, ownDir+"/trash") || p == ownDir+"/volumes/copy.json" || p == ownDir+"/dirs/"+claimName("copy")
	})
}

func TestKillSnapshot(t *testing.T) {
	t.Parallel()
	killJob(t, 60, job{Snapshot: "snap", KillAny: true}, func(t *testing.T, s *Store, d string, want map[string]node) {
		v := snapshot(t, s, "snap", "src")
		again, err := openStore(t, d, patient).GetSnapshot(t.Context(), "snap")
		if err != nil || again != v {
			t.Errorf("get: %+v, %v; want %+v", again, err, v)
		}
		compareTrees(t, want, scan(t, snapshotData(d, "snap"), nil), isNFS(t, d))
		if err := s.DeleteSnapshot(t.Context(), "snap"); err != nil {
			t.Error(err)
		}
	})
}

func TestKillClone(t *testing.T) {
	for name, source := range map[string]nfs.Source{"clone": {Volume: "src"}, "restore": {Snapshot: "old"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec := cloneSpec("copy", "copy", source)
			killJob(t, 60, job{Create: &spec, KillAny: true}, func(t *testing.T, s *Store, d string, want map[string]node) {
				if _, err := s.GetVolume(t.Context(), "copy"); err == nil || hasEntries(t, d+"/copy") {
					// It is there whole, or not at all.
					compareTrees(t, want, scan(t, d+"/copy", nil), isNFS(t, d))
				}
				if _, err := untilCreated(t, s, spec); err != nil {
					t.Fatal(err)
				}
				compareTrees(t, want, scan(t, d+"/copy", nil), isNFS(t, d))
				consistent(t, d)
				remove(t, s, "copy")
				if exists(d + "/copy") {
					t.Error("the directory is there still")
				}
				waitFor(t, "the job to go", func() (bool, string) {
					err := s.scanJobs(t.Context())
					return !exists(filepath.Join(d, ownDir, "work", jobName(cloneJob, "copy"))), fmt.Sprint(leftovers(t, d), err)
				})
			})
		})
	}
}

func hasEntries(t testing.TB, p string) bool {
	t.Helper()
	entries, err := os.ReadDir(p)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return len(entries) > 0
}

// A clone that was killed at any moment can be deleted.
func TestKillCloneThenDelete(t *testing.T) {
	t.Parallel()
	spec := cloneSpec("copy", "copy", nfs.Source{Volume: "src"})
	killJob(t, 60, job{Create: &spec, KillAny: true}, func(t *testing.T, s *Store, d string, _ map[string]node) {
		job := exists(filepath.Join(d, ownDir, "work", jobName(cloneJob, "copy")))
		_, err := s.GetVolume(t.Context(), "copy")
		remove(t, s, "copy")
		if exists(d + "/copy") {
			t.Error("the directory is there still")
		}
		if claim := filepath.Join(d, ownDir, "dirs", claimName("copy")); !job && err != nil && exists(claim) {
			// Documented: the claim of a create that is never tried again stays.
			if err := os.Remove(claim); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A delete of a snapshot is killed at each operation, and so is its purge.
func TestKillDeleteSnapshot(t *testing.T) {
	for _, purge := range []bool{false, true} {
		t.Run(fmt.Sprintf("purge:%v", purge), func(t *testing.T) {
			t.Parallel()
			killJob(t, 5, job{DeleteSnapshot: "old", KillPurge: purge}, func(t *testing.T, s *Store, d string, want map[string]node) {
				if v, err := s.GetSnapshot(t.Context(), "old"); err == nil {
					compareTrees(t, want, scan(t, snapshotData(d, v.ID), nil), isNFS(t, d))
				}
				if err := s.DeleteSnapshot(t.Context(), "old"); err != nil {
					t.Fatal(err)
				}
				snapshot(t, s, "old", "src")
			})
		})
	}
}
