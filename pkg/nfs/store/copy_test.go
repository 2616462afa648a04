package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// copyBed is an export with a source and a place for copies.
type copyBed struct {
	dir       string
	src, work *dir
}

func newCopyBed(t testing.TB) *copyBed {
	t.Helper()
	return openCopyBed(t, t.TempDir(), nil)
}

// openCopyBed opens the bed in a directory that has one, or makes it.
func openCopyBed(t testing.TB, at string, h hook) *copyBed {
	t.Helper()
	b := &copyBed{dir: at}
	mustMkdir(t, b.source())
	mustMkdir(t, at+"/work")
	b.src, b.work = openTestDir(t, b.source(), h), openTestDir(t, at+"/work", h)
	return b
}

func (b *copyBed) source() string        { return b.dir + "/source" }
func (b *copyBed) data(id string) string { return b.dir + "/work/" + id + "/data" }

func openTestDir(t testing.TB, at string, h hook) *dir {
	t.Helper()
	root, err := os.OpenRoot(at)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	d, err := openShare(root, h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.f.Close() })
	return d
}

func (b *copyBed) copy(t testing.TB, id string, opts copyOptions) *copyManifest {
	t.Helper()
	m, err := newTreeCopy(b.src, b.work, id, opts).run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// node is all that a copy keeps of an entry.
type node struct {
	Mode, UID, GID uint32
	Size           int64
	Mtime, Atime   string
	Link           string // text of a symbolic link
	Sum            uint64 // of the content
	SameAs         string // the first name of a linked file
	Xattrs         map[string]string
	Sparse         bool // there are holes
}

// scan describes everything beneath a directory, without ever using a path: the
// tree may be deeper than one can be long.
func scan(t testing.TB, at string, skip func(kind uint32) bool) map[string]node {
	t.Helper()
	fd, err := unix.Open(at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		t.Fatal(err)
	}
	out, first := map[string]node{}, map[uint64]string{}
	if err := scanDir(fd, "", skip, out, first); err != nil {
		t.Fatal(err)
	}
	return out
}

func scanDir(fd int, rel string, skip func(kind uint32) bool, out map[string]node, first map[uint64]string) error {
	f := os.NewFile(uintptr(fd), rel)
	defer f.Close()
	a, err := statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC)
	if err != nil {
		return err
	}
	n := nodeOf(a)
	n.Size = 0
	if n.Xattrs, err = readXattrs(fmt.Sprintf("/proc/self/fd/%d/.", fd)); err != nil {
		return fmt.Errorf("%q: %w", rel, err)
	}
	out[rel+"/"] = n
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		p := rel + "/" + name
		a, err := statx(fd, name, unix.AT_STATX_FORCE_SYNC)
		if err != nil {
			return fmt.Errorf("%q: %w", p, err)
		}
		if skip != nil && skip(a.kind()) {
			continue
		}
		if a.kind() == unix.S_IFDIR {
			next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOATIME, 0)
			if err == nil {
				err = scanDir(next, p, skip, out, first)
			}
			if err != nil {
				return fmt.Errorf("%q: %w", p, err)
			}
			continue
		}
		n := nodeOf(a)
		if a.nlink > 1 {
			if first[a.ino] == "" {
				first[a.ino] = p
			}
			n.SameAs = fmt.Sprintf("%s, one of %d", first[a.ino], a.nlink)
		}
		if n.Xattrs, err = readXattrs(fmt.Sprintf("/proc/self/fd/%d/%s", fd, name)); err != nil {
			return fmt.Errorf("%q: %w", p, err)
		}
		switch a.kind() {
		case unix.S_IFLNK:
			buf := make([]byte, unix.PathMax)
			m, err := unix.Readlinkat(fd, name, buf)
			if err != nil {
				return fmt.Errorf("%q: %w", p, err)
			}
			n.Link = string(buf[:m])
		case unix.S_IFREG:
			if n.Sum, err = sumFile(fd, name); err != nil {
				return fmt.Errorf("%q: %w", p, err)
			}
			n.Sparse = a.size >= 1<<20 && a.blocks*512 <= a.size*3/4
		}
		out[p] = n
	}
	return nil
}

func nodeOf(a attr) node {
	at := func(t unix.Timespec) string { return fmt.Sprintf("%d.%09d", t.Sec, t.Nsec) }
	return node{Mode: a.mode, UID: a.uid, GID: a.gid, Size: a.size, Mtime: at(a.mtime), Atime: at(a.atime)}
}

func sumFile(fd int, name string) (sum uint64, err error) {
	n, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(n)
	buf := make([]byte, 1<<20)
	sum = 14695981039346656037
	for {
		m, err := unix.Read(n, buf)
		if err != nil || m == 0 {
			return sum, err
		}
		for _, b := range buf[:m] {
			sum = (sum ^ uint64(b)) * 1099511628211
		}
	}
}

func readXattrs(at string) (map[string]string, error) {
	names, err := grow(func(buf []byte) (int, error) { return unix.Llistxattr(at, buf) })
	if isUnsupportedXattr(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list xattrs: %w", err)
	}
	var out map[string]string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value, err := grow(func(buf []byte) (int, error) { return unix.Lgetxattr(at, name, buf) })
		if err != nil {
			return nil, fmt.Errorf("xattr %s: %w", name, err)
		}
		if out == nil {
			out = map[string]string{}
		}
		out[name] = fmt.Sprintf("%x", value)
	}
	return out, nil
}

func isNFS(t testing.TB, at string) bool {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		t.Fatal(err)
	}
	return st.Type == unix.NFS_SUPER_MAGIC
}

func skipSpecial(kind uint32) bool {
	return kind == unix.S_IFSOCK || kind == unix.S_IFCHR || kind == unix.S_IFBLK
}

// compareTrees compares a copy with its source, as that was before.
func compareTrees(t testing.TB, want, got map[string]node, onNFS bool) {
	t.Helper()
	want, got = maps.Clone(want), maps.Clone(got)
	for _, tree := range []map[string]node{want, got} {
		for p, n := range tree {
			// To list a directory or read a link, as the test does, changes its atime.
			if kind := n.Mode & unix.S_IFMT; kind == unix.S_IFDIR || kind == unix.S_IFLNK || onNFS {
				n.Atime = ""
				tree[p] = n
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		if len(diff) > 8000 {
			diff = diff[:8000] + "\n..."
		}
		t.Errorf("the copy differs (-source +copy):\n%s", diff)
	}
}

func TestCopyFidelity(t *testing.T) {
	t.Parallel()
	b := newCopyBed(t)
	onNFS := isNFS(t, b.dir)
	builder := &treeBuilder{t: t, dir: b.source(), root: os.Getuid() == 0, many: 700}
	if os.Getenv("COPY_TEST_FEW") != "" {
		builder.many = 20
	}
	builder.everything()
	want := scan(t, b.source(), skipSpecial)
	began := time.Now()
	m := b.copy(t, "id", copyOptions{})
	t.Logf("%d entries in %v: %+v", m.entries(), time.Since(began).Round(time.Millisecond), m)
	got := scan(t, b.data("id"), nil)
	compareTrees(t, want, got, onNFS)

	wantNotes := copyNotes{Sockets: 1}
	if builder.root {
		wantNotes.Devices = 2
	}
	gotNotes := m.Notes
	gotNotes.Examples = nil
	if diff := cmp.Diff(wantNotes, gotNotes); diff != "" {
		t.Errorf("notes (-want +got):\n%s\n%s", diff, m.Notes.Examples)
	}
	if m.entries() != int64(len(want)) {
		t.Errorf("the manifest has %d entries, the source %d", m.entries(), len(want))
	}
	for _, name := range []string{linksName} {
		if exists(filepath.Join(b.dir, "work/id", name)) {
			t.Errorf("%s is still there", name)
		}
	}
	// Once more changes nothing.
	again := b.copy(t, "id", copyOptions{})
	if diff := cmp.Diff(m, again, cmp.AllowUnexported(copyManifest{})); diff != "" {
		t.Errorf("the manifest of a copy that is complete (-first +again):\n%s", diff)
	}
}

func TestCopyProgress(t *testing.T) {
	t.Parallel()
	b := newCopyBed(t)
	for n := range 50 {
		mustWrite(t, fmt.Sprintf("%s/d%d/file", b.source(), n%5), strings.Repeat("x", 1000))
		mustWrite(t, fmt.Sprintf("%s/d%d/file%d", b.source(), n%5, n), strings.Repeat("x", 1000))
	}
	c := newTreeCopy(b.src, b.work, "id", copyOptions{expected: treeCounts{Dirs: 6, Files: 55, Bytes: 55_000}})
	done := make(chan struct{})
	seen := make(chan copyProgress, 1)
	go func() {
		var last copyProgress
		for {
			p := c.progress()
			if p.Entries < last.Entries || p.Bytes > 55_000 {
				t.Errorf("progress goes from %+v to %+v", last, p)
			}
			last = p
			select {
			case <-done:
				seen <- c.progress()
				return
			default:
			}
		}
	}()
	_, err := c.run(t.Context())
	close(done)
	last := <-seen
	if err != nil {
		t.Fatal(err)
	}
	if want := (copyProgress{Entries: 61, Bytes: 55_000, TotalEntries: 61, TotalBytes: 55_000}); last != want {
		t.Errorf("at the end %+v, want %+v", last, want)
	}
}

func TestCopyCancelled(t *testing.T) {
	t.Parallel()
	at := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	ops := make(chan struct{}, 1<<20)
	b := openCopyBed(t, at, func(context.Context, string, string) error {
		if ops <- struct{}{}; len(ops) == 200 {
			cancel()
		}
		return nil
	})
	for n := range 300 {
		mustWrite(t, fmt.Sprintf("%s/d%d/%d", b.source(), n%7, n), "x")
	}
	if _, err := newTreeCopy(b.src, b.work, "id", copyOptions{}).run(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want %v", err, context.Canceled)
	}
	want := scan(t, b.source(), nil)
	b.copy(t, "id", copyOptions{})
	compareTrees(t, want, scan(t, b.data("id"), nil), isNFS(t, at))
}

// A copy that nobody wants any more goes the way of all volumes.
func TestDiscardCopy(t *testing.T) {
	t.Parallel()
	at := t.TempDir()
	s := openStore(t, at)
	create(t, s, volumeSpec("v", "v"))
	mustWrite(t, at+"/v/sub/file", "x")
	src := openTestDir(t, at+"/v", nil)
	if _, err := newTreeCopy(src, s.current().work, "job", copyOptions{}).run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.toTrash(t.Context(), s.current(), s.current().work, "job", "job"); err != nil {
			t.Fatal(err)
		}
	}
	waitPurged(t, at)
	if left := leftovers(t, at); slices.ContainsFunc(left, func(s string) bool { return strings.HasPrefix(s, "work/") }) {
		t.Errorf("left: %v", left)
	}
}

func TestCopyErrors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		op    string
		errno unix.Errno
		want  error
	}{
		{"write", unix.ENOSPC, nfs.ErrFull},
		{"copy", unix.EDQUOT, nfs.ErrFull},
		{"create", unix.EDQUOT, nfs.ErrFull},
		{"close", unix.ENOSPC, nfs.ErrFull},
		{"sync", unix.ENOSPC, nfs.ErrFull},
		{"chown", unix.EPERM, nfs.ErrPermission},
		{"utimes", unix.EIO, nfs.ErrUnavailable},
		{"mkdir", unix.ESTALE, nfs.ErrStale},
	} {
		t.Run(tt.op, func(t *testing.T) {
			t.Parallel()
			if tt.op == "chown" && os.Getuid() != 0 {
				t.Skip("takes root, who can give files away")
			}
			fail := false
			b := openCopyBed(t, t.TempDir(), func(_ context.Context, op, p string) error {
				if fail && op == tt.op && strings.Contains(p, "data/sub") {
					return tt.errno
				}
				if fail && tt.op == "write" && op == "copy" {
					return unix.EXDEV
				}
				return nil
			})
			mustWrite(t, b.source()+"/sub/file", strings.Repeat("x", 10_000))
			if os.Getuid() == 0 {
				if err := os.Lchown(b.source()+"/sub/file", 1, 1); err != nil {
					t.Fatal(err)
				}
			}
			fail = true
			_, err := newTreeCopy(b.src, b.work, "id", copyOptions{}).run(t.Context())
			if tt.op == "sync" && err == nil && !isNFS(t, b.dir) {
				return // No file is synced there.
			}
			wantError(t, err, tt.want, "sub")
			if _, err := os.Stat(b.dir + "/work/id/" + manifestName); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("there is a manifest: %v", err)
			}
			fail = false
			want := scan(t, b.source(), nil)
			b.copy(t, "id", copyOptions{})
			compareTrees(t, want, scan(t, b.data("id"), nil), isNFS(t, b.dir))
		})
	}
}
