package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"testing"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// While an update runs, something else happens before each of its operations.
func TestUpdateInterrupted(t *testing.T) {
	t.Parallel()
	spec := volumeSpec("v", "a/v")
	gone := func(t *testing.T, other *Store) {
		if _, err := other.GetVolume(t.Context(), "v"); !errors.Is(err, nfs.ErrNotFound) {
			t.Errorf("the deleted volume is back: %v", err)
		}
	}
	for name, tt := range map[string]struct {
		between func(t *testing.T, other *Store)
		wantErr []error // what the update may say, beside nothing
		check   func(t *testing.T, d string, other *Store, err error)
	}{
		"the volume is deleted": {
			between: func(t *testing.T, other *Store) { remove(t, other, "v") },
			wantErr: []error{nfs.ErrNotFound, nfs.ErrBusy},
			check:   func(t *testing.T, _ string, other *Store, _ error) { gone(t, other) },
		},
		"the volume is deleted and made anew": {
			between: func(t *testing.T, other *Store) {
				remove(t, other, "v")
				create(t, other, spec)
			},
			wantErr: []error{nfs.ErrNotFound, nfs.ErrBusy},
			check: func(t *testing.T, d string, other *Store, err error) {
				got, getErr := other.GetVolume(t.Context(), "v")
				if getErr != nil || modeOf(t, d+"/a/v") != nfs.UnixMode(got.Mode) {
					t.Errorf("the update said %v, and it is %+v, %v, mode %o", err, got, getErr, modeOf(t, d+"/a/v"))
				}
			},
		},
		"another volume takes its directory": {
			between: func(t *testing.T, other *Store) {
				remove(t, other, "v")
				create(t, other, volumeSpec("w", spec.Dir))
			},
			wantErr: []error{nfs.ErrNotFound, nfs.ErrBusy},
			check: func(t *testing.T, d string, other *Store, _ error) {
				gone(t, other)
				if got := modeOf(t, d+"/a/v"); got != 0o755 {
					t.Errorf("the other volume's directory has mode %o", got)
				}
			},
		},
		"another process makes it larger still": {
			between: func(t *testing.T, other *Store) { update(t, other, "v", nfs.VolumeChange{MinBytes: 9 << 30}) },
			wantErr: []error{nfs.ErrBusy},
			check: func(t *testing.T, _ string, other *Store, err error) {
				got, getErr := other.GetVolume(t.Context(), "v")
				if getErr != nil || got.CapacityBytes != 9<<30 || err == nil && got.OnDelete != nfs.Archive {
					t.Errorf("the update said %v, and it is %+v, %v", err, got, getErr)
				}
			},
		},
		"another process sets another mode": {
			between: func(t *testing.T, other *Store) {
				update(t, other, "v", nfs.VolumeChange{Mode: new(fs.FileMode(0o711))})
			},
			wantErr: []error{nfs.ErrBusy},
			check: func(t *testing.T, d string, other *Store, _ error) {
				got, err := other.GetVolume(t.Context(), "v")
				if err != nil || modeOf(t, d+"/a/v") != nfs.UnixMode(got.Mode) {
					t.Errorf("it is %+v, %v, and the directory has mode %o", got, err, modeOf(t, d+"/a/v"))
				}
			},
		},
	} {
		for _, changed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s:%v", name, changed), func(t *testing.T) {
				eachOperation(t, func(t *testing.T, n int) bool {
					d := memDir(t)
					other := openStore(t, d, withGrace)
					create(t, other, spec)
					if changed {
						update(t, other, "v", nfs.VolumeChange{MinBytes: 3 << 29})
					}
					var err error
					happened := interrupted(t, d, n, func(string) error {
						tt.between(t, other)
						return nil
					}, func(ctx context.Context, s *Store) {
						_, err = s.UpdateVolume(ctx, "v", wholeChange)
					})
					if err != nil && !slices.ContainsFunc(tt.wantErr, func(want error) bool { return errors.Is(err, want) }) {
						t.Errorf("the update: %v", err)
					}
					waitPurged(t, d)
					if happened {
						tt.check(t, d, other, err)
					}
					consistent(t, d)
					return happened
				})
			})
		}
	}
}

// While a delete runs, the volume is changed before each of its operations: the
// delete ends well, and nothing comes back.
func TestDeleteInterruptedByUpdate(t *testing.T) {
	t.Parallel()
	for _, onDelete := range []nfs.OnDelete{nfs.Delete, nfs.Retain, nfs.Archive} {
		for _, changed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s:%v", onDelete, changed), func(t *testing.T) {
				eachOperation(t, func(t *testing.T, n int) bool {
					d := memDir(t)
					other := openStore(t, d, withGrace)
					spec := with(volumeSpec("pvc-1", "a/pvc-1"), func(s *nfs.VolumeSpec) { s.OnDelete = onDelete })
					create(t, other, spec)
					mustWrite(t, d+"/a/pvc-1/sub/file", "data")
					if changed {
						update(t, other, "pvc-1", nfs.VolumeChange{MinBytes: 3 << 29})
					}
					var deleted error
					happened := interrupted(t, d, n, func(string) error {
						change := nfs.VolumeChange{MinBytes: 2 << 30, Mode: new(fs.FileMode(0o711))}
						if _, err := other.UpdateVolume(t.Context(), "pvc-1", change); err != nil &&
							!errors.Is(err, nfs.ErrNotFound) && !errors.Is(err, nfs.ErrForeign) && !errors.Is(err, nfs.ErrBusy) {
							t.Errorf("the update: %v", err)
						}
						return nil
					}, func(ctx context.Context, s *Store) {
						deleted = s.DeleteVolume(ctx, "pvc-1", "")
					})
					if deleted != nil {
						t.Errorf("the delete: %v", deleted)
					}
					openStore(t, d) // which takes over what the first has left
					waitPurged(t, d)
					checkDeleted(t, other, d, spec, nil)
					return happened
				})
			})
		}
	}
}

// Several processes change one volume at once: no change is lost.
func TestUpdatesAtOnce(t *testing.T) {
	t.Parallel()
	d := t.TempDir()
	create(t, openStore(t, d), volumeSpec("v", "v"))
	stores := []*Store{openStore(t, d, withGrace), openStore(t, d, withGrace), openStore(t, d, withGrace)}
	changes := []nfs.VolumeChange{{OnDelete: new(nfs.Archive)}, {Mode: new(fs.FileMode(0o711))}}
	for n := range int64(30) {
		changes = append(changes, nfs.VolumeChange{MinBytes: (n + 2) << 30})
	}
	var wg sync.WaitGroup
	for n, change := range changes {
		wg.Go(func() {
			for {
				_, err := stores[n%len(stores)].UpdateVolume(t.Context(), "v", change)
				if err == nil {
					return
				}
				if !errors.Is(err, nfs.ErrBusy) {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	got, err := openStore(t, d).GetVolume(t.Context(), "v")
	if err != nil || got.CapacityBytes != 31<<30 || got.OnDelete != nfs.Archive || got.Mode != 0o711 || modeOf(t, d+"/v") != 0o711 {
		t.Errorf("at last: %+v, %v, mode %o", got, err, modeOf(t, d+"/v"))
	}
	consistent(t, d)
}
