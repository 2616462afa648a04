package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func archivedSpec(name, dir string, retention time.Duration) nfs.VolumeSpec {
	return with(volumeSpec(name, dir), func(s *nfs.VolumeSpec) { s.OnDelete, s.ArchiveRetention = nfs.Archive, retention })
}

// archive makes the volume, with data in it, and deletes it.
func archive(t testing.TB, s *Store, dir string, spec nfs.VolumeSpec) {
	t.Helper()
	create(t, s, spec)
	mustWrite(t, filepath.Join(dir, spec.Dir, "sub/file"), spec.Name)
	remove(t, s, nfs.RecordID(spec.Name))
}

func archiveFiles(t testing.TB, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, ownDir, "archive/*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// age makes an archive's record one that was written, and has its file made, that
// long ago.
func age(t testing.TB, file string, archived, written time.Duration) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	a, err := decodeArchive(file, data)
	if err != nil {
		t.Fatal(err)
	}
	a.Archived = time.Now().Add(-archived)
	if data, err = encode(a); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-written)
	if err := os.Chtimes(file, at, at); err != nil {
		t.Fatal(err)
	}
}

// waitPassed waits until the store has taken a turn at the trash and the archives.
func waitPassed(t testing.TB, s *Store) {
	t.Helper()
	waitFor(t, "the purge to be done", func() (bool, string) {
		b := s.Backlog()
		return b.Settled, fmt.Sprintf("%+v", b)
	})
}

// An archive expires when its time has come by the client's clock and by the
// server's, never before, and none without a retention does.
func TestExpire(t *testing.T) {
	const retention = 24 * time.Hour
	for name, tt := range map[string]struct {
		retention         time.Duration
		archived, written time.Duration // ago
		gone              bool
	}{
		"both clocks":      {retention, 25 * time.Hour, 25 * time.Hour, true},
		"server's is late": {retention, 25 * time.Hour, 23 * time.Hour, false},
		"client's is late": {retention, 23 * time.Hour, 25 * time.Hour, false},
		"in the future":    {retention, -time.Hour, -time.Hour, false},
		"for ever":         {0, 1e5 * time.Hour, 1e5 * time.Hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			d := t.TempDir()
			first := openStore(t, d)
			create(t, first, volumeSpec("neighbour", "a/neighbour"))
			archive(t, first, d, archivedSpec("v", "a/b/v", tt.retention))
			files := archiveFiles(t, d)
			if len(files) != 1 {
				t.Fatalf("archives: %v", files)
			}
			age(t, files[0], tt.archived, tt.written)
			s := openStore(t, d)
			waitPassed(t, s)
			waitPurged(t, d)
			listed := listItems(t, s, nfs.ItemArchive)
			left, _ := filepath.Glob(d + "/a/b/archived-v-*/sub/file")
			if b := s.Backlog(); tt.gone {
				if len(listed)+len(left)+len(archiveFiles(t, d)) > 0 || exists(d+"/a/b") {
					t.Errorf("left: %v, %v, its parent: %v", listed, left, exists(d+"/a/b"))
				}
				if b.ArchivesExpired != 1 || b.Archives != 0 || !b.NextExpiry.IsZero() {
					t.Errorf("backlog: %+v", b)
				}
			} else {
				if len(listed) != 1 || len(left) != 1 {
					t.Errorf("left: %v, %v", listed, left)
				}
				if b.ArchivesExpired != 0 || b.Archives != 1 || b.NextExpiry.IsZero() != (tt.retention == 0) {
					t.Errorf("backlog: %+v", b)
				}
			}
			consistent(t, d)
		})
	}
}

// What expires while the store is open goes without anybody asking.
func TestExpireInTime(t *testing.T) {
	d := t.TempDir()
	s := openStore(t, d)
	began := time.Now()
	const retention = 300 * time.Millisecond
	archive(t, s, d, archivedSpec("soon", "soon", retention))
	archive(t, s, d, archivedSpec("later", "later", time.Hour))
	if listed := listItems(t, s, nfs.ItemArchive); len(listed) != 2 {
		t.Fatalf("archives: %v", listed)
	}
	waitFor(t, "the archive to expire", func() (bool, string) {
		files := archiveFiles(t, d)
		return len(files) == 1, fmt.Sprint(files)
	})
	if took := time.Since(began); took < retention {
		t.Errorf("it has expired after %v", took)
	}
	waitPurged(t, d)
	if b := s.Backlog(); b.Archives != 1 || b.ArchivesExpired != 1 || time.Until(b.NextExpiry) < 50*time.Minute {
		t.Errorf("backlog: %+v", b)
	}
	if left, _ := filepath.Glob(d + "/archived-*/sub/file"); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

func TestListArchives(t *testing.T) {
	d := t.TempDir()
	s := openStore(t, d)
	archive(t, s, d, archivedSpec("a", "x/a", 0))
	archive(t, s, d, archivedSpec("b", "x/b", time.Hour))
	archive(t, s, d, archivedSpec("b", "x/b", time.Hour))
	archive(t, openStore(t, d, func(o *Options) { o.InstanceID = "two" }), d, archivedSpec("theirs", "theirs", 0))
	mustWrite(t, filepath.Join(d, ownDir, "archive/c-1.json"), "{")
	all := listItems(t, s, nfs.ItemArchive)
	if len(all) != 5 || all[3].Key != "c-1" || all[3].Problem == "" || all[4].Instance != "two" {
		t.Fatalf("%+v", all)
	}
	for i, a := range all[:3] {
		name := []string{"a", "b", "b"}[i]
		if a.Volume.Name != name || a.Volume.Dir != "x/"+name || !exists(filepath.Join(d, a.Path, "sub/file")) || a.Volume.Claim.Name != "pvc" ||
			a.Volume.CapacityBytes != 1<<30 || time.Since(a.Since) > time.Minute {
			t.Errorf("%+v", a)
		}
		if until := time.Until(a.Expires); (name == "a") != a.Expires.IsZero() || name == "b" && (until > time.Hour || until < 50*time.Minute) {
			t.Errorf("%s expires at %v", name, a.Expires)
		}
	}
	var paged []nfs.Item
	for after := ""; ; after = paged[len(paged)-1].Key {
		page, err := s.ListItems(t.Context(), nfs.ItemArchive, after, 1)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		paged = append(paged, page...)
	}
	if diff := cmp.Diff(all, paged); diff != "" {
		t.Errorf("in pages (-all +paged):\n%s", diff)
	}
	if !exists(d + "/.nfs-csi/archive/c-1.json") {
		t.Error("the unreadable record is gone")
	}
}

// A delete that came to nothing long ago has announced an archive. The volume is
// not touched, and when it is deleted at last, its retention begins then.
func TestExpireAfterLateDelete(t *testing.T) {
	const retention = 24 * time.Hour
	d := t.TempDir()
	var fail atomic.Bool
	fail.Store(true)
	s := openStore(t, d, func(o *Options) {
		o.hook = func(ctx context.Context, op, p string) error {
			if op == "rename" && strings.Contains(p, "volumes/") && fail.Load() {
				return unix.EACCES
			}
			return nil
		}
	})
	create(t, s, archivedSpec("v", "v", retention))
	mustWrite(t, d+"/v/file", "data")
	wantError(t, s.DeleteVolume(t.Context(), "v", ""), nfs.ErrPermission)
	files := archiveFiles(t, d)
	if len(files) != 1 {
		t.Fatalf("announced: %v", files)
	}
	age(t, files[0], 30*time.Hour, 30*time.Hour)
	waitPassed(t, openStore(t, d))
	if diff := cmp.Diff(files, archiveFiles(t, d)); diff != "" || !exists(d+"/v/file") {
		t.Errorf("the volume's file: %v; announced (-before +after):\n%s", exists(d+"/v/file"), diff)
	}
	fail.Store(false)
	remove(t, s, "v")
	again := openStore(t, d)
	waitPassed(t, again)
	left := listItems(t, again, nfs.ItemArchive)
	if len(left) != 1 || !exists(filepath.Join(d, left[0].Path, "file")) || time.Until(left[0].Expires) < 23*time.Hour {
		t.Errorf("after the delete: %+v", left)
	}
	if b := s.Backlog(); b.Archives != 1 || b.NextExpiry.IsZero() {
		t.Errorf("backlog: %+v", b)
	}
}

// What stands in the way of the expiry stays as it is.
func TestExpireLeavesAlone(t *testing.T) {
	outside := t.TempDir()
	mustWrite(t, outside+"/secret", "s")
	for name, prepare := range map[string]func(t *testing.T, archived string){
		"a symbolic link": func(t *testing.T, archived string) {
			if err := os.RemoveAll(archived); err != nil {
				t.Fatal(err)
			}
			mustSymlink(t, outside, archived)
		},
		"it was brought back by hand": func(t *testing.T, archived string) {
			if err := os.Rename(archived, filepath.Dir(archived)+"/back"); err != nil {
				t.Fatal(err)
			}
		},
		"its parent became a symbolic link": func(t *testing.T, archived string) {
			parent := filepath.Dir(archived)
			if err := os.Rename(parent, parent+"-moved"); err != nil {
				t.Fatal(err)
			}
			mustSymlink(t, filepath.Base(parent)+"-moved", parent)
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := t.TempDir()
			archive(t, openStore(t, d), d, archivedSpec("v", "a/v", time.Hour))
			age(t, archiveFiles(t, d)[0], 2*time.Hour, 2*time.Hour)
			waitPurged(t, d) // which looks for the directory where it was
			archived, _ := filepath.Glob(d + "/a/archived-*")
			prepare(t, archived[0])
			before := tree(t, d, ignoreTimesOf)
			waitPassed(t, openStore(t, d))
			if diff := cmp.Diff(before, tree(t, d, ignoreTimesOf)); diff != "" {
				t.Errorf("changed (-before +after):\n%s", diff)
			}
			if !exists(outside + "/secret") {
				t.Error("a symbolic link was followed")
			}
		})
	}
}

// From another file system of the server the archive goes as a volume does.
func TestExpireAcrossFileSystems(t *testing.T) {
	d := t.TempDir()
	archive(t, openStore(t, d), d, archivedSpec("v", "a/v", time.Hour))
	age(t, archiveFiles(t, d)[0], 2*time.Hour, 2*time.Hour)
	refused := 0
	s := openStore(t, d, func(o *Options) {
		o.hook = func(ctx context.Context, op, p string) error {
			if op == "rename" && strings.HasPrefix(p, "a/archived-") && refused == 0 {
				refused++
				return unix.EXDEV
			}
			return nil
		}
	})
	waitPassed(t, s)
	waitPurged(t, d)
	if left := tree(t, d, ownOnly); len(left) != 1 || refused == 0 {
		t.Errorf("left: %v; refused %d times", left, refused)
	}
}

// The process that lets an archive expire is killed before each of its operations.
func TestKillExpire(t *testing.T) {
	t.Parallel()
	const dir = "team/app/pvc-1"
	killEach(t, 15, func(t *testing.T) job {
		d := populated(t)
		archive(t, openStore(t, d), d, archivedSpec("pvc-1", dir, time.Hour))
		waitPurged(t, d) // Until its delete has ended, the record may be written again.
		for _, file := range archiveFiles(t, d) {
			age(t, file, 2*time.Hour, 2*time.Hour)
		}
		return job{Dir: d, KillPurge: true, Expire: true}
	}, func(t *testing.T, d string) {
		waitPassed(t, openStore(t, d))
		waitPurged(t, d)
		left := archiveFiles(t, d)
		archived, _ := filepath.Glob(filepath.Join(d, filepath.Dir(dir), "archived-pvc-1*"))
		if len(left)+len(archived) > 0 || exists(d+"/team") {
			t.Errorf("left: %v, %v, parents: %v", left, archived, exists(d+"/team"))
		}
	})
}

// Many processes find the same archives expired: each goes once, and nothing else.
func TestExpireInManyProcesses(t *testing.T) {
	d := t.TempDir()
	s := openStore(t, d)
	const count = 12
	for n := range count {
		archive(t, s, d, archivedSpec(fmt.Sprintf("v%d", n), fmt.Sprintf("ns/v%d", n), time.Hour))
		archive(t, s, d, archivedSpec(fmt.Sprintf("kept%d", n), fmt.Sprintf("ns/kept%d", n), 0))
	}
	waitPurged(t, d)
	for _, file := range archiveFiles(t, d) {
		age(t, file, 2*time.Hour, 2*time.Hour)
	}
	var g errgroup.Group
	stores := make([]*Store, 3)
	for n := range stores {
		g.Go(func() error {
			if runJob(t, job{Dir: d, WaitPurged: true, Expire: true}) {
				return errors.New("killed")
			}
			return nil
		})
		stores[n] = openStore(t, d)
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	var expired uint64
	for _, s := range stores {
		waitPassed(t, s)
		expired += s.Backlog().ArchivesExpired
	}
	waitPurged(t, d)
	if left, _ := filepath.Glob(d + "/ns/archived-kept*/sub/file"); len(left) != count || expired > count {
		t.Errorf("%d archives without a retention are left of %d; %d have expired", len(left), count, expired)
	}
	if left, _ := filepath.Glob(d + "/ns/archived-v*"); len(left) > 0 || len(archiveFiles(t, d)) != count {
		t.Errorf("left: %v and the records %v", left, archiveFiles(t, d))
	}
}
