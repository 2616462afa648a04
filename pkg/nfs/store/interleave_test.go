package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// interrupted calls f on a store on dir whose n-th foreground file operation is
// preceded by a call of between, and reports whether it came to that. between
// may return an error for the operation.
func interrupted(t testing.TB, dir string, n int, between func(op string) error, f func(ctx context.Context, s *Store)) (happened bool) {
	t.Helper()
	ops := 0
	opts := testOptions
	opts.purgeGrace = 0
	opts.hook = func(ctx context.Context, op, path string) error {
		if ctx.Value(foregroundKey{}) == nil {
			return nil
		}
		if ops++; ops != n {
			return nil
		}
		happened = true
		return between(op)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), root, opts)
	if err != nil {
		t.Fatal(err)
	}
	f(context.WithValue(t.Context(), foregroundKey{}, true), s)
	if err := errors.Join(s.Close(), root.Close()); err != nil {
		t.Error(err)
	}
	return happened
}

// eachOperation runs a subtest for every n until body says that the n-th
// operation never came.
func eachOperation(t *testing.T, body func(t *testing.T, n int) bool) {
	for n, more := 1, true; more && !t.Failed(); n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) { more = body(t, n) })
	}
}

// untilSettled repeats what another process may have stood in the way of.
func untilSettled(t testing.TB, f func() error) error {
	t.Helper()
	var err error
	for range 50 {
		if err = f(); !errors.Is(err, nfs.ErrBusy) {
			return err
		}
	}
	t.Fatalf("still busy: %v", err)
	return nil
}

// A slow delete must not take what was made in the volume's place after another
// process had deleted the volume.
func TestSlowDelete(t *testing.T) {
	for _, onDelete := range []nfs.OnDelete{nfs.Delete, nfs.Archive, nfs.Retain} {
		for _, dir := range []string{"data", "ns/data"} {
			t.Run(string(onDelete)+":"+strings.ReplaceAll(dir, "/", ":"), func(t *testing.T) {
				eachOperation(t, func(t *testing.T, n int) bool {
					d := memDir(t)
					other := openStore(t, d, func(o *Options) { o.purgeGrace = 0 })
					old := with(volumeSpec("old", dir), func(s *nfs.VolumeSpec) { s.OnDelete = onDelete })
					create(t, other, old)
					mustWrite(t, filepath.Join(d, dir, "file"), "old")
					var slow error
					happened := interrupted(t, d, n, func(string) error {
						remove(t, other, "old")
						if onDelete == nfs.Retain {
							if err := os.RemoveAll(filepath.Join(d, dir)); err != nil {
								t.Fatal(err)
							}
						}
						err := untilSettled(t, func() error {
							_, err := other.CreateVolume(t.Context(), volumeSpec("new", dir))
							return err
						})
						if errors.Is(err, nfs.ErrConflict) && onDelete != nfs.Retain {
							return nil // the slow one holds the claim still
						}
						if err != nil {
							t.Fatal(err)
						}
						mustWrite(t, filepath.Join(d, dir, "file"), "new")
						return nil
					}, func(ctx context.Context, s *Store) {
						slow = s.DeleteVolume(ctx, "old", "")
					})
					if slow != nil && !errors.Is(slow, nfs.ErrBusy) {
						t.Errorf("the slow delete: %v", slow)
					}
					if err := untilSettled(t, func() error { return other.DeleteVolume(t.Context(), "old", "") }); err != nil {
						t.Error(err)
					}
					openStore(t, d)
					waitPurged(t, d)
					if !happened {
						consistent(t, d)
						return false
					}
					create(t, other, volumeSpec("new", dir))
					if exists(filepath.Join(d, dir, "file")) {
						if data, err := os.ReadFile(filepath.Join(d, dir, "file")); err != nil || string(data) != "new" {
							t.Errorf("the new volume holds %q, %v", data, err)
						}
					}
					if data, err := os.ReadFile(filepath.Join(d, dir, "file")); slow != nil && (err != nil || string(data) != "new") {
						t.Errorf("the slow delete said %v, and the new volume holds %q, %v", slow, data, err)
					}
					consistent(t, d)
					return true
				})
			})
		}
	}
}

// A delete succeeds when another process deletes the volume meanwhile.
func TestDeleteBesideDelete(t *testing.T) {
	for _, onDelete := range []nfs.OnDelete{nfs.Delete, nfs.Archive, nfs.Retain} {
		for _, dir := range []string{"", "ns/data"} {
			t.Run(string(onDelete)+":"+path.Base(dir), func(t *testing.T) {
				eachOperation(t, func(t *testing.T, n int) bool {
					d := memDir(t)
					other := openStore(t, d, func(o *Options) { o.purgeGrace = 0 })
					create(t, other, with(volumeSpec("old", "ns/data"), func(s *nfs.VolumeSpec) { s.OnDelete = onDelete }))
					if onDelete == nfs.Retain {
						dir = "" // or the directory that stays is nobody's
					}
					happened := interrupted(t, d, n, func(string) error {
						return other.DeleteVolume(t.Context(), "old", dir)
					}, func(ctx context.Context, s *Store) {
						if err := s.DeleteVolume(ctx, "old", dir); err != nil {
							t.Error(err)
						}
					})
					openStore(t, d) // takes over what the others leave
					waitPurged(t, d)
					consistent(t, d)
					return happened
				})
			})
		}
	}
}

// A delete succeeds when another process takes it over meanwhile and ends it.
func TestDeleteTakenOver(t *testing.T) {
	t.Parallel()
	for _, onDelete := range []nfs.OnDelete{nfs.Delete, nfs.Archive, nfs.Retain} {
		t.Run(string(onDelete), func(t *testing.T) {
			eachOperation(t, func(t *testing.T, n int) bool {
				d := memDir(t)
				spec := with(volumeSpec("pvc-1", "ns/pvc-1"), func(s *nfs.VolumeSpec) { s.OnDelete = onDelete })
				other := openStore(t, d)
				create(t, other, spec)
				mustWrite(t, d+"/ns/pvc-1/sub/file", "data")
				happened := interrupted(t, d, n, func(string) error {
					other.purge.wakeUp()
					waitPurged(t, d)
					return nil
				}, func(ctx context.Context, s *Store) {
					if err := s.DeleteVolume(ctx, "pvc-1", ""); err != nil {
						t.Error(err)
					}
				})
				openStore(t, d) // takes over what is left
				waitPurged(t, d)
				checkDeleted(t, other, d, spec, nil)
				return happened
			})
		})
	}
}

// A delete that was so slow that the volume was deleted and made anew takes the new
// record, and another process takes that over before it can look: it puts it back.
func TestSlowDeleteTakenOver(t *testing.T) {
	t.Parallel()
	d := memDir(t)
	other := openStore(t, d, patient)
	create(t, other, volumeSpec("v", "v"))
	taken, began := false, time.Now()
	s := openStore(t, d, patient, func(o *Options) {
		o.hook = func(ctx context.Context, op, p string) error {
			switch {
			case ctx.Value(foregroundKey{}) == nil:
			case op == "rename" && p == ownDir+"/volumes/v.json":
				remove(t, other, "v")
				create(t, other, volumeSpec("v", "v"))
				mustWrite(t, d+"/v/file", "new")
				waitFor(t, "the delete to be a slow one", func() (bool, string) { took := time.Since(began); return took > 2*quick, took.String() })
				taken = true
			case taken:
				taken = false
				openStore(t, d)
				waitPurged(t, d)
			}
			return nil
		}
	})
	if err := s.DeleteVolume(context.WithValue(t.Context(), foregroundKey{}, true), "v", ""); err != nil && !errors.Is(err, nfs.ErrBusy) {
		t.Error(err)
	}
	waitPurged(t, d)
	if data, err := os.ReadFile(d + "/v/file"); err != nil || string(data) != "new" {
		t.Errorf("the new volume holds %q, %v", data, err)
	}
	if _, err := other.GetVolume(t.Context(), "v"); err != nil {
		t.Error(err)
	}
	consistent(t, d)
}

// A slow delete brings back what it has moved by mistake also when the parents
// have gone meanwhile, empty without it.
func TestSlowDeleteWithoutParents(t *testing.T) {
	const dir = "ns/app/data"
	eachOperation(t, func(t *testing.T, n int) bool {
		d := memDir(t)
		other := openStore(t, d, func(o *Options) { o.purgeGrace = 0 })
		create(t, other, volumeSpec("old", dir))
		ops, made, moved, happened := 0, false, false, false
		slow := openStore(t, d, func(o *Options) {
			o.purgeGrace = 0
			o.hook = func(ctx context.Context, op, p string) error {
				if ctx.Value(foregroundKey{}) == nil {
					return nil
				}
				switch ops++; {
				case ops < n:
				case ops == n:
					happened = true
					remove(t, other, "old")
					_, err := other.CreateVolume(t.Context(), volumeSpec("new", dir))
					if made = err == nil; !made && !errors.Is(err, nfs.ErrConflict) && !errors.Is(err, nfs.ErrBusy) {
						t.Error(err)
					}
					if made {
						mustWrite(t, filepath.Join(d, dir, "file"), "new")
					}
				case made && !moved && !exists(filepath.Join(d, dir)):
					moved = true
					if err := errors.Join(os.Remove(filepath.Join(d, "ns/app")), os.Remove(filepath.Join(d, "ns"))); err != nil {
						t.Error(err)
					}
				}
				return nil
			}
		})
		err := slow.DeleteVolume(context.WithValue(t.Context(), foregroundKey{}, true), "old", "")
		if err != nil && !errors.Is(err, nfs.ErrBusy) {
			t.Errorf("the slow delete: %v", err)
		}
		if made {
			if data, err := os.ReadFile(filepath.Join(d, dir, "file")); err != nil || string(data) != "new" {
				t.Errorf("the new volume holds %q, %v", data, err)
			}
			consistent(t, d)
		}
		return happened
	})
}

// While one create runs, something else happens before each of its operations.
func TestCreateInterrupted(t *testing.T) {
	spec := volumeSpec("v", "a/v")
	tests := map[string]struct {
		between func(t *testing.T, d string, other *Store)
		wantErr []error // what the create may say, beside nothing
		check   func(t *testing.T, d string, other *Store, err error)
	}{
		"the same volume is made": {
			between: func(t *testing.T, d string, other *Store) {
				if _, err := other.CreateVolume(t.Context(), spec); err != nil && !errors.Is(err, nfs.ErrBusy) {
					t.Error(err)
				}
			},
			wantErr: []error{nfs.ErrBusy},
			check: func(t *testing.T, d string, other *Store, _ error) {
				create(t, other, spec)
			},
		},
		"the same volume is made and deleted": {
			between: func(t *testing.T, d string, other *Store) {
				if _, err := other.CreateVolume(t.Context(), spec); err == nil {
					remove(t, other, "v")
				}
			},
			wantErr: []error{nfs.ErrBusy},
			check: func(t *testing.T, d string, other *Store, _ error) {
				create(t, other, spec)
			},
		},
		"another volume takes the directory": {
			between: func(t *testing.T, d string, other *Store) {
				_, err := other.CreateVolume(t.Context(), volumeSpec("w", spec.Dir))
				if err != nil && !errors.Is(err, nfs.ErrConflict) && !errors.Is(err, nfs.ErrForeign) {
					t.Error(err)
				}
			},
			wantErr: []error{nfs.ErrConflict, nfs.ErrBusy},
			check: func(t *testing.T, d string, other *Store, err error) {
				_, getErr := other.GetVolume(t.Context(), "w")
				if (err == nil) == (getErr == nil) {
					t.Errorf("v: %v, w: %v; want one of them", err, getErr)
				}
			},
		},
		"a volume takes the parent": {
			between: func(t *testing.T, d string, other *Store) {
				_, err := other.CreateVolume(t.Context(), volumeSpec("w", "a"))
				if err != nil && !errors.Is(err, nfs.ErrConflict) && !errors.Is(err, nfs.ErrForeign) {
					t.Error(err)
				}
			},
			wantErr: []error{nfs.ErrConflict},
			check: func(t *testing.T, d string, other *Store, err error) {
				_, getErr := other.GetVolume(t.Context(), "w")
				if (err == nil) == (getErr == nil) {
					t.Errorf("v: %v, w: %v; want one of them", err, getErr)
				}
			},
		},
		"a neighbour comes and goes": {
			between: func(t *testing.T, d string, other *Store) {
				create(t, other, volumeSpec("w", "a/w"))
				remove(t, other, "w")
			},
			check: func(t *testing.T, d string, other *Store, err error) {},
		},
		"someone makes the directory": {
			between: func(t *testing.T, d string, other *Store) {
				mustMkdir(t, d+"/a")
				if err := os.Mkdir(d+"/a/v", 0o755); err == nil {
					mustWrite(t, d+"/a/v/theirs", "x")
				}
			},
			wantErr: []error{nfs.ErrForeign, nfs.ErrBusy},
			check: func(t *testing.T, d string, other *Store, err error) {
				if (err == nil) == exists(d+"/a/v/theirs") {
					t.Errorf("create said %v; their file: %v", err, exists(d+"/a/v/theirs"))
				}
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			eachOperation(t, func(t *testing.T, n int) bool {
				d := memDir(t)
				other := openStore(t, d)
				create(t, other, volumeSpec("neighbour", "neighbour"))
				var err error
				happened := interrupted(t, d, n, func(string) error {
					tt.between(t, d, other)
					return nil
				}, func(ctx context.Context, s *Store) {
					_, err = s.CreateVolume(ctx, spec)
				})
				allowed := err == nil
				for _, want := range tt.wantErr {
					allowed = allowed || errors.Is(err, want)
				}
				if !allowed {
					t.Errorf("the create: %v", err)
				}
				waitPurged(t, d)
				if happened {
					tt.check(t, d, other, err)
				}
				waitPurged(t, d)
				consistent(t, d)
				return happened
			})
		})
	}
}

// One process fails at any operation of its create while another makes the same
// volume before any other: what the second was told stays true.
func TestCreateFailsBesideSuccess(t *testing.T) {
	spec := volumeSpec("v", "a/v")
	eachOperation(t, func(t *testing.T, n int) bool {
		more := false
		for m := 1; ; m++ {
			d := memDir(t)
			other := openStore(t, d)
			create(t, other, volumeSpec("neighbour", "neighbour"))
			var second error
			started := false
			var outer, inner int
			s := openStore(t, d, func(o *Options) {
				o.hook = func(ctx context.Context, op, path string) error {
					if ctx.Value(foregroundKey{}) == nil {
						return nil
					}
					outer++
					if outer == m+n {
						started = true
						_, second = other.CreateVolume(t.Context(), spec)
					}
					if outer == n {
						inner++
						return unix.ENOSPC
					}
					return nil
				}
			})
			_, first := s.CreateVolume(context.WithValue(t.Context(), foregroundKey{}, true), spec)
			if inner > 0 {
				more = true
			}
			if started && second == nil {
				consistent(t, d)
				if _, err := other.GetVolume(t.Context(), "v"); err != nil {
					t.Errorf("failed at %d (%v), the other made it at %d: %v", n, first, n+m, err)
				}
			}
			if err := untilSettled(t, func() error { _, err := other.CreateVolume(t.Context(), spec); return err }); err != nil {
				t.Errorf("at last: %v", err)
			}
			consistent(t, d)
			if t.Failed() || !started {
				return more
			}
		}
	})
}
