package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// What another process has in the trash is its own while it lives.
func TestTakeOver(t *testing.T) {
	dir := t.TempDir()
	p := trashEntry(t, dir, "v")
	slot := path.Dir(p)
	s := openStore(t, dir, func(o *Options) { o.purgeGrace = time.Hour })
	create(t, s, volumeSpec("w", "w"))
	remove(t, s, "w")
	waitFor(t, "its own entry to go", func() (bool, string) {
		b := s.Backlog()
		return b.Entries == 1 && b.RemovedFiles == 1, fmt.Sprintf("%+v", b)
	})
	s.purge.stop()
	watch := func(o *otherSlot) *otherSlot {
		o, due, err := s.purge.watch(t.Context(), s.current(), path.Base(slot), o)
		if err != nil || o != nil && time.Until(due) < 59*time.Minute {
			t.Fatalf("%+v, due %v, %v", o, due, err)
		}
		return o
	}
	long := time.Now().Add(-2 * time.Hour)
	o := watch(nil)
	o.since = long
	if err := os.Chtimes(slot, time.Now(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if o = watch(o); o == nil || o.since.Equal(long) || !exists(p+recordSuffix) {
		t.Fatalf("taken over though it was touched: %+v", o)
	}
	o.since = long
	if o = watch(o); o != nil || exists(p+recordSuffix) {
		t.Fatalf("not taken over: %+v", o)
	}
	startPurger(t.Context(), s)
	waitPurged(t, dir)
}

// A process shows that it lives.
func TestBeat(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, func(o *Options) {
		o.purgeGrace = 20 * time.Millisecond
		o.hook = func(ctx context.Context, op, path string) error {
			if strings.HasSuffix(path, "/stubborn") {
				return unix.EPERM
			}
			return nil
		}
	})
	create(t, s, volumeSpec("v", "v"))
	mustWrite(t, dir+"/v/stubborn", "x")
	remove(t, s, "v")
	waitFor(t, "the purge to fail", func() (bool, string) {
		b := s.Backlog()
		return b.Failing == 1, fmt.Sprintf("%+v", b)
	})
	changed := func() time.Time {
		st, err := os.Stat(filepath.Join(dir, s.current().own.Load().path))
		if err != nil {
			t.Fatal(err)
		}
		return st.ModTime()
	}
	before := changed()
	waitFor(t, "the slot to be touched", func() (bool, string) {
		now := changed()
		return now.After(before), fmt.Sprint(before, now)
	})
}

func TestNamesInTheTrash(t *testing.T) {
	for _, id := range []string{"v", "pvc-1.a", "x-0123456789abcdef0123456789abcdef"} {
		name := newEntryName(id, time.Now())
		if got, ok := parseEntryName(name); !ok || got != id {
			t.Errorf("parse(%q) = %q, %t", name, got, ok)
		}
		created := time.Now().UTC()
		if got, at := parseKey(volumeKey(id, created)); got != id || !at.Equal(created) {
			t.Errorf("parse(%q) = %q, %v", volumeKey(id, created), got, at)
		}
	}
	for _, name := range []string{"", ".", "v", "v.", ".0123456789ab", "v.0123456789", "v.0123456789az", "../v.0123456789ab", "V.0123456789ab"} {
		if got, ok := parseEntryName(name); ok {
			t.Errorf("parse(%q) = %q", name, got)
		}
	}
	for _, key := range []string{"", "-", "v", "v-", "v-x", "-1", "../x-1", "V-1"} {
		if id := idOf(key); id != "" {
			t.Errorf("the id of %q is %q", key, id)
		}
	}
	for name, want := range map[string]bool{"20200101T000000Z.0123456789ab": true, "20200101T000000Z": false, "x.0123456789ab": false, "": false} {
		if got := isSlotName(name); got != want {
			t.Errorf("isSlotName(%q) = %t", name, got)
		}
	}
}

// The delete of a process that was killed after the decision is ended by another,
// which must not take what is of a volume made since.
func TestPurgeCompletesDelete(t *testing.T) {
	old := newRecord(testOptions, volumeSpec("old", "data"), 0, time.Unix(1, 0).UTC())
	for name, tt := range map[string]struct {
		claim string // "" for none
		dir   bool   // is there
		want  string // the claim that stays, and the directory with it
	}{
		"nothing done":                   {claim: old.key(), dir: true},
		"moved":                          {claim: old.key()},
		"claim gone":                     {dir: true, want: "none"},
		"all done":                       {},
		"a create of it is at work":      {claim: volumeKey("old", time.Unix(2, 0)), dir: true, want: volumeKey("old", time.Unix(2, 0))},
		"a create of another is at work": {claim: volumeKey("new", time.Unix(1, 0)), dir: true, want: volumeKey("new", time.Unix(1, 0))},
		"no key":                         {claim: "../x", dir: true, want: "../x"},
	} {
		t.Run(name, func(t *testing.T) {
			d := t.TempDir()
			p := trashRecord(t, d, old)
			claim := filepath.Join(d, ownDir, "dirs", claimName("data"))
			if tt.claim != "" {
				mustSymlink(t, tt.claim, claim)
			}
			if tt.dir {
				mustWrite(t, d+"/data/file", "x")
			} else if tt.claim == old.key() {
				mustWrite(t, p+"/file", "x")
			}
			openStore(t, d)
			waitPurged(t, d)
			got, err := os.Readlink(claim)
			if err != nil && exists(d+"/data") {
				got = "none"
			}
			if got != tt.want || (tt.want != "") != exists(d+"/data/file") {
				t.Errorf("the claim is %q, want %q; data there: %t", got, tt.want, exists(d+"/data/file"))
			}
		})
	}
}

// A process that was slow, not dead, cannot move anything after another has taken
// over what it had in the trash.
func TestFence(t *testing.T) {
	d := t.TempDir()
	s := openStore(t, d)
	create(t, s, volumeSpec("warm", "warm"))
	remove(t, s, "warm")
	waitPurged(t, d)
	own, err := s.current().slot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v := create(t, s, volumeSpec("v", "data"))
	s.purge.stop() // which would go on with the entry itself
	if err := s.current().volumes.rename(t.Context(), v.ID+recordSuffix, own, newEntryName(v.ID, v.Created)+recordSuffix); err != nil {
		t.Fatal(err)
	}
	other := openStore(t, d, func(o *Options) { o.purgeGrace = time.Hour })
	if err := other.DeleteVolume(t.Context(), v.ID, "data"); err != nil || exists(d+"/data") {
		t.Fatalf("%v; directory there: %t", err, exists(d+"/data"))
	}
	create(t, other, volumeSpec("new", "data"))
	if place, err := moveAway(t.Context(), s.root, "data", own, "late"); err == nil || place != unknown {
		t.Errorf("moved %v, %v", place, err)
	}
	consistent(t, d)
	// It goes on in another slot.
	startPurger(t.Context(), s)
	remove(t, s, "new")
	waitPurged(t, d)
	consistent(t, d)
}

// A process is not dead, but slow, and moves the directory to the archive while
// another, which has taken over the delete, does the same.
func TestSlowArchive(t *testing.T) {
	t.Parallel()
	for n := range slowArchive(t, 0) + 1 {
		t.Run(fmt.Sprint(n+1), func(t *testing.T) {
			t.Parallel() // since some wait for the purge to try again
			slowArchive(t, n+1)
		})
	}
}

// slowArchive has it happen before the n-th operation of the other process, and
// says how many there were.
func slowArchive(t *testing.T, n int32) int32 {
	d := memDir(t)
	slow := openStore(t, d, withGrace, func(o *Options) {
		o.hook = func(_ context.Context, op, p string) error {
			if op == "rename" && strings.HasPrefix(p, ownDir+"/trash/") {
				return unix.EIO
			}
			return nil
		}
	})
	create(t, slow, with(volumeSpec("v", "a/v"), func(s *nfs.VolumeSpec) { s.OnDelete = nfs.Archive }))
	mustWrite(t, d+"/a/v/file", "data")
	if err := slow.DeleteVolume(t.Context(), "v", ""); err == nil {
		t.Fatal("the archive was moved at once")
	}
	slow.purge.stop()
	var ops atomic.Int32
	s := openStore(t, d, func(o *Options) {
		o.hook = func(context.Context, string, string) error {
			if ops.Add(1) == n {
				moveToArchive(t, d)
			}
			return nil
		}
	})
	waitPurged(t, d)
	s.purge.stop()
	archives, err := filepath.Glob(d + "/a/archived-v-*/file")
	if left := leftovers(t, d); err != nil || len(archives) != 1 || len(left) != 1 || !strings.HasPrefix(left[0], "archive/") {
		t.Errorf("archives %v, %v, left %v", archives, err, left)
	}
	return ops.Load()
}

// moveToArchive does what is left for a process to do that has found the directory
// in the trash, if it is there still.
func moveToArchive(t *testing.T, d string) {
	dirs, err := filepath.Glob(d + "/" + ownDir + "/trash/*/v.*")
	if err != nil {
		t.Error(err)
	}
	records, err := filepath.Glob(d + "/" + ownDir + "/archive/*")
	if err != nil || len(records) != 1 {
		t.Errorf("archive records: %v, %v", records, err)
		return
	}
	data, err := os.ReadFile(records[0])
	if err != nil {
		t.Error(err)
	}
	a, err := decodeArchive(records[0], data)
	if err != nil {
		t.Error(err)
		return
	}
	for _, p := range dirs {
		if !strings.HasSuffix(p, recordSuffix) && !strings.HasSuffix(p, claimSuffix) {
			// Where the other process is faster, at this very moment, it is gone.
			if err := os.Rename(p, d+"/a/"+a.Target); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		}
	}
}

// A claim that was taken away by mistake is put back if its volume needs it.
func TestPutBackClaim(t *testing.T) {
	made := time.Unix(0, 5).UTC()
	for name, tt := range map[string]struct {
		meanwhile func(t *testing.T, d string)
		back      bool
	}{
		"the create has failed":       {func(*testing.T, string) {}, false},
		"the create is at work":       {func(t *testing.T, d string) { mustMkdir(t, d+"/v") }, true},
		"the create has ended":        {func(t *testing.T, d string) { writeRecord(t, d, volumeSpec("w", "v"), made) }, true},
		"an earlier volume of the id": {func(t *testing.T, d string) { writeRecord(t, d, volumeSpec("w", "x"), made.Add(1)) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			d := t.TempDir()
			claim := filepath.Join(d, ownDir, "dirs", claimName("v"))
			key := volumeKey("w", made)
			s := openStore(t, d, func(o *Options) {
				o.hook = func(_ context.Context, op, p string) error {
					if op == "rename" && strings.HasSuffix(p, "/dirs/"+claimName("v")) {
						removeAll(t, claim)
						mustSymlink(t, key, claim)
						tt.meanwhile(t, d)
					}
					return nil
				}
			})
			create(t, s, volumeSpec("v", "v"))
			remove(t, s, "v")
			waitPurged(t, d)
			text, err := os.Readlink(claim)
			if back := err == nil && text == key; back != tt.back {
				t.Errorf("the claim is %q, %v", text, err)
			}
		})
	}
}

// writeRecord makes the record of a volume that was made at that time.
func writeRecord(t *testing.T, d string, spec nfs.VolumeSpec, made time.Time) {
	t.Helper()
	data, err := encode(newRecord(testOptions, spec, 0, made))
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, filepath.Join(d, ownDir, "volumes", spec.Name+recordSuffix), string(data))
}

// removeSlots removes all slots that are empty, as another process may, before the
// n-th file operation of a store, and says whether that came.
func removeSlots(t *testing.T, dir string, n int, removed *atomic.Bool) func(*Options) {
	var ops atomic.Int64
	return func(o *Options) {
		o.hook = func(context.Context, string, string) error {
			if ops.Add(1) != int64(n) {
				return nil
			}
			removed.Store(true)
			slots, err := filepath.Glob(filepath.Join(dir, ownDir, "trash/*"))
			for _, s := range slots {
				if rerr := os.Remove(s); !errors.Is(rerr, unix.ENOTEMPTY) {
					err = errors.Join(err, rerr)
				}
			}
			if err != nil {
				t.Error(err)
			}
			return nil
		}
	}
}

// An archive expires, and soon, when the store's slot goes at any time.
func TestExpireWithoutSlot(t *testing.T) {
	t.Parallel()
	eachOperation(t, func(t *testing.T, n int) bool {
		d := memDir(t)
		archive(t, openStore(t, d), d, archivedSpec("v", "team/v", time.Hour))
		waitPurged(t, d)
		for _, file := range archiveFiles(t, d) {
			age(t, file, 2*time.Hour, 2*time.Hour)
		}
		var removed atomic.Bool
		openStore(t, d, removeSlots(t, d, n, &removed))
		waitFor(t, "the archive to go", func() (bool, string) {
			left, _ := filepath.Glob(d + "/team/archived-*")
			left = append(append(left, archiveFiles(t, d)...), inTrash(t, d)...)
			return len(left) == 0, fmt.Sprint(left)
		})
		return removed.Load()
	})
}

// A volume is deleted when the store's slot goes at any time.
func TestDeleteWithoutSlot(t *testing.T) {
	t.Parallel()
	for name, spec := range map[string]nfs.VolumeSpec{
		"delete":  volumeSpec("v", "team/v"),
		"archive": archivedSpec("v", "team/v", time.Hour),
		"shared":  with(volumeSpec("v", "team/v"), func(s *nfs.VolumeSpec) { s.Shared = true }),
	} {
		t.Run(name, func(t *testing.T) {
			eachOperation(t, func(t *testing.T, n int) bool {
				d := memDir(t)
				create(t, openStore(t, d, passive), spec)
				mustWrite(t, d+"/team/v/file", "x")
				var removed atomic.Bool
				s := openStore(t, d, removeSlots(t, d, n, &removed))
				if err := untilSettled(t, func() error { return s.DeleteVolume(t.Context(), "v", "") }); err != nil {
					t.Error(err)
				}
				waitPurged(t, d)
				if exists(d+"/team/v") || exists(d+"/.nfs-csi/volumes/v.json") {
					t.Error("the delete has succeeded, and the volume is there")
				}
				if files := archiveFiles(t, d); (len(files) == 1) != (spec.OnDelete == nfs.Archive) {
					t.Errorf("archives: %v", files)
				}
				consistent(t, d)
				return removed.Load()
			})
		})
	}
}
