package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// Every operation of a create fails once in each of these ways. A definite
// failure leaves nothing behind but an empty .nfs-csi; after any failure, trying
// again succeeds.
func TestCreateFails(t *testing.T) {
	for _, tt := range []struct {
		errno    unix.Errno
		want     error
		definite bool
	}{
		{unix.ENOSPC, nfs.ErrFull, true},
		{unix.EDQUOT, nfs.ErrFull, true},
		{unix.EACCES, nfs.ErrPermission, true},
		{unix.EROFS, nfs.ErrPermission, true},
		{unix.EIO, nfs.ErrUnavailable, false},
		{unix.ESTALE, nfs.ErrStale, false},
		{unix.ETIMEDOUT, nfs.ErrUnavailable, false},
		{unix.ENAMETOOLONG, nfs.ErrInvalid, true},
	} {
		t.Run(tt.errno.Error(), func(t *testing.T) {
			spec := with(volumeSpec("v", "a/b/v"), func(s *nfs.VolumeSpec) { s.Mode = 0o700 })
			eachOperation(t, func(t *testing.T, n int) bool {
				d := memDir(t)
				mustWrite(t, d+"/neighbour/file", "x")
				before := tree(t, d, ownOnly)
				var op string
				var err error
				happened := interrupted(t, d, n, func(o string) error { op = o; return tt.errno }, func(ctx context.Context, s *Store) {
					_, err = s.CreateVolume(ctx, spec)
				})
				// The volume exists when its temporary file alone is left, or its
				// directories could not be synced.
				made := exists(filepath.Join(d, ownDir, "volumes/v.json"))
				switch {
				case happened && err == nil && op == "stat" && tt.errno == unix.ESTALE: // it was looked up again
				case happened && err == nil && op != "unlink":
					t.Errorf("%s failed, and the create did not", op)
				case happened && err != nil && (!errors.Is(err, tt.want) && !errors.Is(err, nfs.ErrBusy)):
					t.Errorf("%s failed with %v: %v", op, tt.errno, err)
				case happened && err != nil && !made && tt.definite:
					if diff := cmp.Diff(before, tree(t, d, ownOnly)); diff != "" {
						t.Errorf("%s failed, left on the share (-before +after):\n%s", op, diff)
					}
					left := slices.DeleteFunc(leftovers(t, d), func(s string) bool { return strings.HasPrefix(s, "work/") })
					if len(left) != 0 {
						t.Errorf("%s failed, left %v", op, left)
					}
				}
				s := openStore(t, d)
				create(t, s, spec)
				consistent(t, d)
				remove(t, s, "v")
				waitPurged(t, d)
				return happened
			})
		})
	}
}

// The same of a delete, for which trying again succeeds.
func TestDeleteFails(t *testing.T) {
	for _, onDelete := range []nfs.OnDelete{nfs.Delete, nfs.Retain, nfs.Archive} {
		for _, errno := range []unix.Errno{unix.EACCES, unix.EIO, unix.ENOSPC} {
			t.Run(fmt.Sprintf("%s:%v", onDelete, errno), func(t *testing.T) {
				spec := with(volumeSpec("pvc-1", "a/pvc-1"), func(s *nfs.VolumeSpec) { s.OnDelete = onDelete })
				eachOperation(t, func(t *testing.T, n int) bool {
					d := memDir(t)
					create(t, openStore(t, d, patient), spec)
					mustWrite(t, d+"/a/pvc-1/sub/file", "data")
					var op string
					var err error
					happened := interrupted(t, d, n, func(o string) error { op = o; return errno }, func(ctx context.Context, s *Store) {
						err = s.DeleteVolume(ctx, "pvc-1", "")
					})
					_, want := classify(errno)
					if happened && err == nil && op != "unlink" || err != nil && !errors.Is(err, want) {
						t.Errorf("%s failed with %v: %v", op, errno, err)
					}
					s := openStore(t, d)
					remove(t, s, "pvc-1")
					waitPurged(t, d)
					checkDeleted(t, s, d, spec, nil)
					return happened
				})
			})
		}
	}
}

func TestRootSquash(t *testing.T) {
	one := uint32(1)
	for op, spec := range map[string]nfs.VolumeSpec{
		"chown": with(volumeSpec("v", "a/v"), func(s *nfs.VolumeSpec) { s.UID = &one }),
		"chmod": with(volumeSpec("v", "a/v"), func(s *nfs.VolumeSpec) { s.Mode = 0o701 }),
	} {
		t.Run(op, func(t *testing.T) {
			d := t.TempDir()
			old := syscall.Umask(0o022)
			defer syscall.Umask(old)
			if op == "chmod" {
				syscall.Umask(0o077)
			}
			s := openStore(t, d, func(o *Options) {
				o.hook = func(ctx context.Context, name, p string) error {
					if name == op {
						return unix.EPERM
					}
					return nil
				}
			})
			_, err := s.CreateVolume(t.Context(), spec)
			wantError(t, err, nfs.ErrPermission, "root_squash", "no_root_squash", `"a/v"`)
			if left := leftovers(t, d); len(left) != 0 || exists(d+"/a") {
				t.Errorf("left: %v, the parent: %v", left, exists(d+"/a"))
			}
		})
	}
}

func TestReadOnlyExport(t *testing.T) {
	d := t.TempDir()
	create(t, openStore(t, d), volumeSpec("v", "v"))
	s := openStore(t, d, func(o *Options) {
		o.hook = func(ctx context.Context, op, p string) error {
			switch op {
			case "open", "read", "lstat", "stat", "readlink", "list", "statfs":
				return nil
			}
			return unix.EROFS
		}
	})
	if v, err := s.ListVolumes(t.Context(), "", 0); err != nil || len(v) != 1 {
		t.Errorf("list: %v, %v", v, err)
	}
	create(t, s, volumeSpec("v", "v"))
	_, err := s.CreateVolume(t.Context(), volumeSpec("w", "w"))
	wantError(t, err, nfs.ErrPermission, "read-only")
	wantError(t, s.DeleteVolume(t.Context(), "v", ""), nfs.ErrPermission, "read-only")
}

// A real, full file system: tmpfs takes a page for each file that is not empty,
// and an inode for each.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a tmpfs takes root")
	}
	for name, options := range map[string]string{"no blocks": "size=64k", "no inodes": "size=1m,nr_inodes=42"} {
		t.Run(name, func(t *testing.T) {
			d := t.TempDir()
			if err := unix.Mount("store-test", d, "tmpfs", 0, options); err != nil {
				t.Skipf("mount tmpfs: %v", err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(d, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			s := openStore(t, d)
			made := 0
			var err error
			for ; made < 1000; made++ {
				name := fmt.Sprintf("pvc-%d", made)
				before, left := tree(t, d, ownOnly), leftovers(t, d)
				if _, err = s.CreateVolume(t.Context(), volumeSpec(name, "ns/"+name)); err != nil {
					wantError(t, err, nfs.ErrFull, "ns/"+name)
					if diff := cmp.Diff(before, tree(t, d, ownOnly)); diff != "" {
						t.Errorf("on the share (-before +after):\n%s", diff)
					}
					if diff := cmp.Diff(left, leftovers(t, d)); diff != "" {
						t.Errorf("of the store's own (-before +after):\n%s", diff)
					}
					break
				}
			}
			if err == nil || made == 0 {
				t.Fatalf("%d volumes and %v", made, err)
			}
			consistent(t, d)
			remove(t, s, "pvc-0") // must work on a full disk
			waitPurged(t, d)
			create(t, s, volumeSpec("again", "ns/again"))
			consistent(t, d)
		})
	}
}

// patient is for a store that takes no entry of the trash over.
func patient(o *Options) { o.purgeGrace = 0 }

// Without hard links, records are as exclusive and as whole.
func TestNoHardLinks(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EPERM, unix.EOPNOTSUPP, unix.EMLINK, 524} {
		t.Run(errno.Error(), func(t *testing.T) {
			d := t.TempDir()
			s := openStore(t, d, func(o *Options) {
				o.hook = func(ctx context.Context, op, p string) error {
					if op == "link" {
						return errno
					}
					return nil
				}
			})
			spec := with(volumeSpec("v", "a/v"), func(s *nfs.VolumeSpec) { s.OnDelete = nfs.Archive })
			v := create(t, s, spec)
			if got, err := openStore(t, d, patient).GetVolume(t.Context(), "v"); err != nil || got.ID != v.ID {
				t.Errorf("get: %+v, %v", got, err)
			}
			if again := create(t, s, spec); !again.Created.Equal(v.Created) {
				t.Error("it was made again")
			}
			_, err := s.CreateVolume(t.Context(), with(spec, func(s *nfs.VolumeSpec) { s.Dir = "other" }))
			wantError(t, err, nfs.ErrConflict)
			if volumes, err := s.ListVolumes(t.Context(), "", 0); err != nil || len(volumes) != 1 {
				t.Errorf("list: %v, %v", volumes, err)
			}
			remove(t, s, "v")
			remove(t, s, "v")
			waitPurged(t, d)
			left := leftovers(t, d)
			if len(left) != 1 || !strings.HasPrefix(left[0], "archive/v-") {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestClassify(t *testing.T) {
	for errno, want := range map[unix.Errno]error{
		unix.ENOSPC: nfs.ErrFull, unix.EDQUOT: nfs.ErrFull, unix.EACCES: nfs.ErrPermission, unix.EPERM: nfs.ErrPermission,
		unix.EROFS: nfs.ErrPermission, unix.ESTALE: nfs.ErrStale, unix.EIO: nfs.ErrUnavailable, unix.ETIMEDOUT: nfs.ErrUnavailable,
		unix.EHOSTDOWN: nfs.ErrUnavailable, unix.ENAMETOOLONG: nfs.ErrInvalid,
		unix.ENOENT: nil, unix.EEXIST: nil, unix.EINVAL: nil, unix.EMFILE: nil,
	} {
		err := opError("mkdir", "a/b", errno)
		if want != nil {
			wantError(t, err, want, `"a/b"`)
		} else if _, got := classify(err); got != nil {
			t.Errorf("%v is %v", errno, got)
		}
		if !errors.Is(err, errno) {
			t.Errorf("%v hides %v", err, errno)
		}
	}
	wantError(t, opError("read", "x", fmt.Errorf("%w: odd", nfs.ErrForeign)), nfs.ErrForeign)
}

// No name that is not a plain one gets as far as the kernel.
func TestNames(t *testing.T) {
	parent := t.TempDir()
	mustMkdir(t, parent+"/share")
	mustWrite(t, parent+"/outside", "x")
	s := openStore(t, parent+"/share")
	d, ctx := s.root, t.Context()
	for _, name := range []string{"..", "../outside", ".", "a/b", "/etc"} {
		_, open := d.openDir(ctx, name)
		_, lstat := d.lstat(ctx, name)
		_, readlink := d.readlink(ctx, name)
		_, _, read := d.readFile(ctx, name, 10)
		for op, err := range map[string]error{
			"open": open, "lstat": lstat, "readlink": readlink, "read": read,
			"mkdir": d.mkdir(ctx, name, 0o700), "rmdir": d.rmdir(ctx, name), "unlink": d.unlink(ctx, name), "symlink": d.symlink(ctx, "x", name),
			"rename": d.rename(ctx, name, d, "ok"), "rename to": d.rename(ctx, "ok", d, name), "link": d.link(ctx, name, d, "ok"),
			"link to": d.link(ctx, "ok", d, name), "write": d.writeFile(ctx, name, nil), "widen": d.widen(ctx, name),
		} {
			if !errors.Is(err, nfs.ErrInvalid) {
				t.Errorf("%s %q: %v", op, name, err)
			}
		}
	}
	if got := tree(t, parent, nil); len(got) != 3 {
		t.Errorf("changed: %v", got)
	}
}
