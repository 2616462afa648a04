package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// What happens to an entry between being found and being copied.
func TestCopyChanging(t *testing.T) {
	t.Parallel()
	appendTo := func(p string) error {
		f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString("more")
		return errors.Join(err, f.Close())
	}
	outside := t.TempDir()
	mustWrite(t, outside+"/secret", "secret")
	for _, tt := range []struct {
		name, op, path string // when: before this operation on this path
		do             func(p string) error
		always         bool // and not only once
		want           copyNotes
		missing        bool // the entry is not in the copy
	}{
		{name: "grows once", op: "copy", path: "sub/file", do: appendTo},
		{name: "grows for ever", op: "copy", path: "sub/file", do: appendTo, always: true, want: copyNotes{Changed: 1}},
		{name: "shrinks", op: "copy", path: "sub/file", do: func(p string) error { return os.Truncate(p, 3) }},
		{name: "is replaced", op: "copy", path: "sub/file", do: func(p string) error {
			return errors.Join(os.WriteFile(p+".new", []byte("new"), 0o600), os.Rename(p+".new", p))
		}, want: copyNotes{Changed: 1}}, // its directory
		{name: "vanishes before it is opened", op: "open", path: "sub/file", do: os.Remove, want: copyNotes{Changed: 1, Vanished: 1}, missing: true},
		{name: "becomes a link", op: "open", path: "sub/file", do: func(p string) error {
			return errors.Join(os.Remove(p), os.Symlink(outside+"/secret", p))
		}, want: copyNotes{Changed: 1}},
		{name: "becomes a directory", op: "open", path: "sub/file", do: func(p string) error {
			return errors.Join(os.Remove(p), os.Mkdir(p, 0o700))
		}, want: copyNotes{Changed: 2}, missing: true},
		{name: "becomes a pipe", op: "open", path: "sub/file", do: func(p string) error {
			return errors.Join(os.Remove(p), unix.Mkfifo(p, 0o600))
		}, want: copyNotes{Changed: 1}},
		{name: "directory vanishes", op: "open", path: "sub", do: os.RemoveAll, want: copyNotes{Changed: 1, Vanished: 1}, missing: true},
		{name: "directory becomes a link", op: "open", path: "sub", do: func(p string) error {
			return errors.Join(os.RemoveAll(p), os.Symlink(outside, p))
		}, want: copyNotes{Changed: 1}},
		{name: "shrinks for ever", op: "copy", path: "sub/file", do: func(p string) error {
			st, err := os.Stat(p)
			if err != nil {
				return err
			}
			return os.Truncate(p, st.Size()/2)
		}, always: true, want: copyNotes{Changed: 1}},
		{name: "directory grows", op: "copy", path: "sub/file", do: func(p string) error {
			return os.WriteFile(p+".late", nil, 0o600)
		}, want: copyNotes{Changed: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			at := t.TempDir()
			var armed sync.Mutex
			times := 0
			b := openCopyBed(t, at, func(_ context.Context, op, p string) error {
				armed.Lock()
				defer armed.Unlock()
				if op != tt.op || !strings.HasSuffix(p, tt.path) || strings.HasPrefix(p, "id/") != (op == "copy") || times > 0 && !tt.always {
					return nil
				}
				times++
				if err := tt.do(filepath.Join(at, "source", tt.path)); err != nil {
					t.Errorf("%s: %v", tt.name, err)
				}
				return nil
			})
			mustWrite(t, b.source()+"/sub/file", strings.Repeat("content ", 1000))
			mustWrite(t, b.source()+"/other", "other")
			// A change in the same tick of the clock would not be seen.
			waitForTick(t, b.source()+"/sub")
			// Whatever the file system can do, the test needs the same steps.
			c := newTreeCopy(b.src, b.work, "id", copyOptions{})
			c.how.clone.fails.Store(true)
			m, err := c.run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if times == 0 {
				t.Fatalf("the operation %s of %s never came", tt.op, tt.path)
			}
			got := m.Notes
			got.Examples = nil
			if tt.name == "is replaced" && isNFS(t, at) {
				// The NFS client that replaces an open file removes it in the background, and
				// meanwhile may show its directory as it was. Here that is ourselves.
				got.Changed = tt.want.Changed
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("notes (-want +got):\n%s\n%s", diff, m.Notes.Examples)
			}
			if there := exists(b.data("id") + "/" + tt.path); there == tt.missing {
				t.Errorf("it is in the copy: %v", there)
			}
			if got := tree(t, outside, nil); len(got) != 2 {
				t.Errorf("outside: %v", got)
			}
			if tt.want.Changed == 0 {
				compareTrees(t, scan(t, b.source(), nil), scan(t, b.data("id"), nil), true)
			}
			for p, n := range scan(t, b.data("id"), nil) {
				if strings.HasSuffix(p, "secret") || n.Size == int64(len("secret")) && n.Mode&unix.S_IFMT == unix.S_IFREG {
					t.Errorf("a link was followed: %s", p)
				}
			}
		})
	}
}

// waitForTick waits until what changes gets a later time than the file has.
func waitForTick(t *testing.T, at string) {
	t.Helper()
	last, err := statx(unix.AT_FDCWD, at, unix.AT_STATX_FORCE_SYNC)
	if err != nil {
		t.Fatal(err)
	}
	probe := t.TempDir() + "/probe"
	waitFor(t, "the clock to tick", func() (bool, string) {
		if err := os.WriteFile(probe, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		now, err := statx(unix.AT_FDCWD, probe, unix.AT_STATX_FORCE_SYNC)
		return err == nil && before(last.ctime, now.ctime), fmt.Sprint(now.ctime, err)
	})
}

// Others write, rename, link and remove in the source all the while.
func TestCopyUnderLoad(t *testing.T) {
	t.Parallel()
	b := newCopyBed(t)
	for n := range 200 {
		mustWrite(t, fmt.Sprintf("%s/still/%d/file", b.source(), n), fmt.Sprint(n))
		mustWrite(t, fmt.Sprintf("%s/busy/%d", b.source(), n), strings.Repeat("x", n*100))
	}
	still := scan(t, b.source()+"/still", nil)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var changes atomic.Int64
	for w := range 3 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 1))
			name := func() string { return fmt.Sprintf("%s/busy/%d", b.source(), random.IntN(300)) }
			for ; ctx.Err() == nil; changes.Add(1) {
				var err error
				switch random.IntN(6) {
				case 0:
					err = os.WriteFile(name(), make([]byte, random.IntN(100_000)), 0o644)
				case 1:
					err = os.Rename(name(), name())
				case 2:
					err = os.Remove(name())
				case 3:
					err = os.Link(name(), name())
				case 4:
					err = os.Mkdir(name(), 0o755)
				case 5:
					err = os.Symlink("x", name())
				}
				var path *fs.PathError
				var link *os.LinkError
				if err != nil && !errors.As(err, &path) && !errors.As(err, &link) {
					t.Error(err)
				}
			}
		})
	}
	for round := range 3 {
		id := fmt.Sprint("id", round)
		m := b.copy(t, id, copyOptions{})
		t.Logf("%d changes so far: %+v", changes.Load(), m)
		compareTrees(t, still, scan(t, b.data(id)+"/still", nil), isNFS(t, b.dir))
	}
	stop()
	wg.Wait()
}

// Links in the place of what the copy has of its own are never followed.
func TestCopyPlanted(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", dataName, linksName, "junk", beganName, manifestName, "times", "deep.0", "data/sub", "data/file", "data/pipe"} {
		for _, text := range []string{"dir", "dir/file", "nowhere"} {
			t.Run(name+"->"+text, func(t *testing.T) {
				t.Parallel()
				b := newCopyBed(t)
				mustWrite(t, b.dir+"/outside/dir/file", "outside")
				mustWrite(t, b.source()+"/sub/a", "a")
				mustWrite(t, b.source()+"/file", "content")
				if err := unix.Mkfifo(b.source()+"/pipe", 0o644); err != nil {
					t.Fatal(err)
				}
				deep := b.source()
				for range maxDepth + 2 {
					deep += "/d"
				}
				mustMkdir(t, deep)
				want := scan(t, b.source(), nil)
				outside := tree(t, b.dir+"/outside", nil)
				job := b.dir + "/work/id"
				if strings.Contains(name, "/") {
					b.copy(t, "id", copyOptions{}) // To be resumed.
					for _, p := range []string{job + "/" + manifestName, job + "/" + name} {
						if err := os.RemoveAll(p); err != nil {
							t.Fatal(err)
						}
					}
				}
				mustMkdir(t, filepath.Dir(filepath.Join(job, name)))
				mustSymlink(t, b.dir+"/outside/"+text, filepath.Join(job, name))
				_, err := newTreeCopy(b.src, b.work, "id", copyOptions{}).run(t.Context())
				if diff := cmp.Diff(outside, tree(t, b.dir+"/outside", nil)); diff != "" {
					t.Fatalf("outside changed (-before +after):\n%s", diff)
				}
				if err == nil {
					compareTrees(t, want, scan(t, b.data("id"), nil), isNFS(t, b.dir))
				} else if strings.Contains(name, "/") || name == "times" {
					t.Errorf("the link should have been put away: %v", err)
				}
			})
		}
	}
}

// Every way to copy content gives the same.
func TestCopyMethods(t *testing.T) {
	t.Parallel()
	blocked := []string{"clone", "copy", "seek"}
	for n := range len(blocked) + 1 {
		t.Run(fmt.Sprint("without ", blocked[:n]), func(t *testing.T) {
			t.Parallel()
			b := openCopyBed(t, t.TempDir(), func(_ context.Context, op, p string) error {
				for _, no := range blocked[:n] {
					if op == no {
						return unix.EOPNOTSUPP
					}
				}
				return nil
			})
			(&treeBuilder{t: t, dir: b.source()}).content()
			want := scan(t, b.source(), nil)
			b.copy(t, "id", copyOptions{still: true})
			compareTrees(t, want, scan(t, b.data("id"), nil), isNFS(t, b.dir))
		})
	}
}

// A full disk fails the copy, at whatever byte, and the copy goes on when there is
// room again. The lab has small file systems for that.
func TestCopyFullDisk(t *testing.T) {
	if os.Getenv("COPY_TEST_GUEST") == "" {
		t.Skip("needs small file systems: run this in the lab")
	}
	local := filepath.Join(os.TempDir(), "small")
	local = strings.Replace(local, os.TempDir(), "/tmp", 1)
	mustMkdir(t, local)
	if err := unix.Mount("tmpfs", local, "tmpfs", 0, "size=12m"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(local, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	source := newCopyBed(t)
	for n := range 60 {
		mustWrite(t, fmt.Sprintf("%s/d%d/%d", source.source(), n%5, n), strings.Repeat("x", 3000*n))
	}
	mustWrite(t, source.source()+"/large", strings.Repeat("y", 2<<20))
	want := scan(t, source.source(), nil)
	for _, at := range []string{local, os.Getenv("COPY_TEST_SMALL")} {
		free := available(t, at)
		for round := range 3 {
			t.Run(fmt.Sprintf("%s-%d", filepath.Base(at), round), func(t *testing.T) {
				// What the last round has removed is free with the server's next commit.
				waitFor(t, "the space of removed files", func() (bool, string) {
					now := available(t, at)
					return now >= free-256<<10, fmt.Sprintf("%d of %d bytes", now, free)
				})
				fullDisk(t, source, want, at)
			})
		}
	}
}

func available(t *testing.T, at string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

func fullDisk(t *testing.T, source *copyBed, want map[string]node, at string) {
	dir, err := os.MkdirTemp(at, "") //nolint:usetesting // on a certain file system
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	}()
	filler, err := os.Create(dir + "/filler")
	if err != nil {
		t.Fatal(err)
	}
	left := rand.Int64N(4 << 20) // of the 7 MiB that it takes; root has a reserve on ext4
	_, err = filler.Write(make([]byte, available(t, dir)-left))
	if err = errors.Join(err, filler.Sync(), filler.Close()); err != nil {
		t.Fatal(err)
	}
	mustMkdir(t, dir+"/work")
	work := openTestDir(t, dir+"/work", nil)
	defer func() { _ = work.f.Close() }()
	_, err = newTreeCopy(source.src, work, "id", copyOptions{}).run(t.Context())
	wantError(t, err, nfs.ErrFull)
	if exists(dir + "/work/id/" + manifestName) {
		t.Error("there is a manifest")
	}
	t.Logf("with %d bytes left: %v", left, err)
	if err := os.Remove(dir + "/filler"); err != nil {
		t.Fatal(err)
	}
	m, err := newTreeCopy(source.src, work, "id", copyOptions{}).run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m.Notes.Changed+m.Notes.Vanished+m.Notes.Unlinked > 0 {
		t.Errorf("notes: %+v", m.Notes)
	}
	got := scan(t, dir+"/work/id/data", nil)
	if !isNFS(t, at) { // It has no lists of NFS 4.
		want, got = withoutXattrs(want), withoutXattrs(got)
	}
	compareTrees(t, want, got, true)
}

func withoutXattrs(tree map[string]node) map[string]node {
	out := map[string]node{}
	for p, n := range tree {
		n.Xattrs = nil
		out[p] = n
	}
	return out
}

// Other file systems in the tree are left out.
func TestCopyMountPoint(t *testing.T) {
	if os.Getenv("COPY_TEST_GUEST") == "" {
		t.Skip("mounts file systems: run this in the lab")
	}
	b := newCopyBed(t)
	mustWrite(t, b.source()+"/sub/file", "x")
	want := scan(t, b.source(), nil)
	for _, p := range []string{b.source() + "/mount", b.source() + "/sub/mounted-file"} {
		var err error
		if strings.HasSuffix(p, "file") {
			mustWrite(t, p, "hidden")
			err = unix.Mount("/proc/self/stat", p, "", unix.MS_BIND, "")
		} else {
			mustMkdir(t, p)
			err = unix.Mount("tmpfs", p, "tmpfs", 0, "size=1m")
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(p, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	mustWrite(t, b.source()+"/mount/file", "elsewhere")
	for _, id := range []string{"new", "resumed"} {
		if id == "resumed" {
			mustMkdir(t, b.data(id)+"/mount/file")
		}
		m := b.copy(t, id, copyOptions{})
		if m.Notes.Mounts != 2 {
			t.Errorf("notes: %+v", m.Notes)
		}
		got := scan(t, b.data(id), nil)
		for _, p := range []string{"/", "/sub/"} { // They have changed with the mount points.
			n := got[p]
			n.Mtime = want[p].Mtime
			got[p] = n
		}
		compareTrees(t, want, got, true)
	}
}

// What the driver's own directory has inherited is not passed on to copies.
func TestCopyInheritance(t *testing.T) {
	t.Parallel()
	b := newCopyBed(t)
	mustWrite(t, b.source()+"/sub/file", "x")
	want := scan(t, b.source(), nil)
	err := unix.Setxattr(b.dir+"/work", posixDefault, testACL(), 0)
	if isUnsupportedXattr(err) {
		var list []byte
		if list, err = grow(func(buf []byte) (int, error) { return unix.Getxattr(b.dir+"/work", nfs4ACL, buf) }); err == nil {
			err = unix.Setxattr(b.dir+"/work", nfs4ACL, withEntry(list, "1234", 3), 0)
		}
	}
	if isUnsupportedXattr(err) {
		t.Skip("this file system has no access lists")
	}
	if err != nil {
		t.Fatal(err)
	}
	m := b.copy(t, "id", copyOptions{})
	got := scan(t, b.data("id"), nil)
	if m.Notes.Inherits { // NFS 4 to a Linux server: it can be told only.
		want, got = withoutXattrs(want), withoutXattrs(got)
	} else if m := b.copy(t, "other", copyOptions{}); m.Notes.Inherits {
		t.Errorf("notes: %+v", m.Notes)
	}
	compareTrees(t, want, got, isNFS(t, b.dir))
}

// An export that takes root for nobody cannot keep owners, and says so.
func TestCopyRootSquash(t *testing.T) {
	at := os.Getenv("COPY_TEST_SQUASH")
	if at == "" {
		t.Skip("needs an export with root_squash: run this in the lab")
	}
	b := newCopyBed(t)
	mustWrite(t, b.source()+"/sub/file", "x")
	const nobody = 65534
	for p, id := range map[string]int{"": nobody, "/sub": nobody, "/sub/file": 1000} {
		if err := os.Chown(b.source()+p, id, id); err != nil {
			t.Fatal(err)
		}
	}
	work, err := os.MkdirTemp(at, "") //nolint:usetesting // on a certain file system
	if err != nil {
		t.Fatal(err)
	}
	d := openTestDir(t, work, nil)
	_, err = newTreeCopy(b.src, d, "id", copyOptions{}).run(t.Context())
	wantError(t, err, nfs.ErrPermission, "sub/file", "no_root_squash", "1000:1000")
}

func FuzzWithoutInheritance(f *testing.F) {
	acl := withEntry(withEntry(binary.BigEndian.AppendUint32(nil, 0), "OWNER@", 0), "someone", 3)
	f.Add(acl)
	f.Add(acl[:20])
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, acl []byte) {
		got := withoutInheritance(acl)
		if len(got) > len(acl) {
			t.Errorf("%x grew to %x", acl, got)
		}
		if diff := cmp.Diff(got, withoutInheritance(got)); diff != "" {
			t.Errorf("twice is not once: %s", diff)
		}
	})
}

func TestWithoutInheritance(t *testing.T) {
	none := binary.BigEndian.AppendUint32(nil, 0)
	plain := withEntry(none, "OWNER@", 0)
	if diff := cmp.Diff(plain, withoutInheritance(withEntry(plain, "someone", 3))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(plain, withoutInheritance(plain)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
