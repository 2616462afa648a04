package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

var wholeChange = nfs.VolumeChange{MinBytes: 2 << 30, OnDelete: new(nfs.Archive), Mode: new(nfs.FileMode(0o2770))}

// An update is killed before each file operation, for a volume that was never
// changed and for one that was. The volume is then as it was or as it should be,
// and the retry, or a delete, ends well.
func TestKillUpdate(t *testing.T) {
	for _, before := range []int64{0, 5 << 29} {
		for _, then := range []string{"update", "delete"} {
			t.Run(fmt.Sprintf("%d:%s", before, then), func(t *testing.T) {
				t.Parallel()
				change := wholeChange
				change.MinBytes += before
				var was nfs.Volume
				var base []string
				killEach(t, 8, func(t *testing.T) job {
					d := populated(t)
					s := openStore(t, d)
					base = leftovers(t, d)
					create(t, s, volumeSpec("pvc-1", "team/app/pvc-1"))
					mustWrite(t, d+"/team/app/pvc-1/sub/file", "data")
					was = update(t, s, "pvc-1", nfs.VolumeChange{MinBytes: before})
					return job{Dir: d, Update: &change}
				}, func(t *testing.T, d string) {
					s := openStore(t, d)
					want, err := change.Apply(was)
					if err != nil {
						t.Fatal(err)
					}
					got, err := s.GetVolume(t.Context(), "pvc-1")
					if err != nil || !cmp.Equal(was, got) && !cmp.Equal(want, got) {
						t.Errorf("after the kill: %+v, %v; want the one or the other:\n%+v\n%+v", got, err, was, want)
					}
					checkWorkIsCleared(t, d)
					if then == "delete" {
						remove(t, s, "pvc-1")
						waitPurged(t, d)
						checkDeleted(t, s, d, with(volumeSpec("pvc-1", "team/app/pvc-1"), func(s *nfs.VolumeSpec) { s.OnDelete = got.OnDelete }), base)
						return
					}
					if diff := cmp.Diff(want, update(t, s, "pvc-1", change)); diff != "" {
						t.Errorf("the retry (-want +got):\n%s", diff)
					}
					if got := modeOf(t, d+"/team/app/pvc-1"); got != 0o2770 {
						t.Errorf("the directory has mode %o", got)
					}
				})
			})
		}
	}
}

// A delete of a changed volume is killed before each file operation.
func TestKillDeleteAfterUpdate(t *testing.T) {
	for _, onDelete := range []nfs.OnDelete{nfs.Delete, nfs.Retain, nfs.Archive} {
		t.Run(string(onDelete), func(t *testing.T) {
			t.Parallel()
			spec := with(volumeSpec("pvc-1", "pvc-1"), func(s *nfs.VolumeSpec) { s.OnDelete = onDelete })
			other := nfs.Retain
			if onDelete == nfs.Retain {
				other = nfs.Delete
			}
			var base []string
			killEach(t, 4, func(t *testing.T) job {
				d := populated(t)
				s := openStore(t, d)
				base = leftovers(t, d)
				create(t, s, with(spec, func(s *nfs.VolumeSpec) { s.OnDelete = other }))
				update(t, s, "pvc-1", nfs.VolumeChange{OnDelete: &onDelete})
				mustWrite(t, d+"/pvc-1/sub/file", "data")
				return job{Dir: d, Delete: "pvc-1"}
			}, func(t *testing.T, d string) {
				s := openStore(t, d)
				remove(t, s, "pvc-1")
				waitPurged(t, d)
				checkDeleted(t, s, d, spec, base)
			})
		})
	}
}

// Every operation of an update fails once in each of these ways; then the volume is
// as it was or as it should be, and trying again succeeds.
func TestUpdateFails(t *testing.T) {
	t.Parallel()
	for _, errno := range []unix.Errno{unix.ENOSPC, unix.EACCES, unix.EROFS, unix.EIO, unix.ESTALE} {
		t.Run(errno.Error(), func(t *testing.T) {
			eachOperation(t, func(t *testing.T, n int) bool {
				d := memDir(t)
				was := create(t, openStore(t, d, withGrace), volumeSpec("v", "a/v"))
				want, err := wholeChange.Apply(was)
				if err != nil {
					t.Fatal(err)
				}
				var op string
				happened := interrupted(t, d, n, func(o string) error { op = o; return errno }, func(ctx context.Context, s *Store) {
					_, err = s.UpdateVolume(ctx, "v", wholeChange)
				})
				_, sentinel := classify(errno)
				if err != nil && !errors.Is(err, sentinel) && !errors.Is(err, nfs.ErrBusy) {
					t.Errorf("%s failed with %v: %v", op, errno, err)
				}
				s := openStore(t, d)
				got, getErr := s.GetVolume(t.Context(), "v")
				if getErr != nil || !cmp.Equal(was, got) && !cmp.Equal(want, got) || err == nil && !cmp.Equal(want, got) {
					t.Errorf("%s failed, the update said %v: %+v, %v", op, err, got, getErr)
				}
				if diff := cmp.Diff(want, update(t, s, "v", wholeChange)); diff != "" {
					t.Errorf("again (-want +got):\n%s", diff)
				}
				consistent(t, d)
				remove(t, s, "v")
				waitPurged(t, d)
				left := slices.DeleteFunc(leftovers(t, d), func(s string) bool { return strings.HasPrefix(s, "work/") || strings.HasPrefix(s, "archive/v-") })
				if len(left) > 0 {
					t.Errorf("left %v", left)
				}
				return happened
			})
		})
	}
}
