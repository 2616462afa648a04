package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// treeBuilder makes a tree with everything in it. What this file system or this
// user cannot make is left out, and told.
type treeBuilder struct {
	t   testing.TB
	dir string
	// root: owners, devices and trusted attributes can be made.
	root bool
	many int // how many files there are of which nothing is special
}

func (b *treeBuilder) path(rel string) string { return filepath.Join(b.dir, rel) }

func (b *treeBuilder) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *treeBuilder) file(rel, content string) string {
	b.t.Helper()
	mustWrite(b.t, b.path(rel), content)
	return b.path(rel)
}

// optional says that something cannot be made here.
func (b *treeBuilder) optional(what string, err error) {
	if err != nil {
		b.t.Logf("not in the test here: %s: %v", what, err)
	}
}

func (b *treeBuilder) everything() {
	b.content()
	b.names()
	b.links()
	b.special()
	b.attributes()
	b.owners()
	b.deep()
	b.times() // The last, as everything else changes them.
}

func (b *treeBuilder) content() {
	b.file("empty", "")
	b.file("small", "small")
	b.file("block", strings.Repeat("b", 4096))
	b.file("odd", strings.Repeat("0123456789", 31_415))
	b.file("large", strings.Repeat("large file. ", 300_000))
	mustMkdir(b.t, b.path("many"))
	for n := range b.many {
		b.file(fmt.Sprintf("many/%d", n), fmt.Sprint(n))
	}
	for n := range 12 {
		b.file(fmt.Sprintf("dirs/%d/a/b/file", n), fmt.Sprint(n))
	}
	b.must(os.MkdirAll(b.path("emptydir/emptier"), 0o755))
	for name, segments := range map[string][]int64{
		"start": {3 << 20}, "middle": {0, 5 << 20}, "end": {0}, "only": nil, "many": {1 << 20, 2<<20 + 4096, 3<<20 + 12345, 7 << 20},
	} {
		f, err := os.Create(b.file("sparse/"+name, ""))
		b.must(err)
		for _, off := range segments {
			_, err := f.WriteAt([]byte(strings.Repeat("data", 2048)), off)
			b.must(err)
		}
		b.must(f.Truncate(8 << 20))
		b.must(f.Close())
	}
}

func (b *treeBuilder) names() {
	for _, name := range []string{
		strings.Repeat("n", 255), strings.Repeat("ü", 127), "\xff\xfe\x80 not UTF-8", "new\nline", " ", "back\\slash", "-rf", "...", ".hidden",
		"quote\"'", "*?[", "tab\t\x01\x7f", "deep.0", "began.json", "#hash%41",
	} {
		err := os.WriteFile(b.path(name), []byte(name), 0o644)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EILSEQ) {
			b.optional(fmt.Sprintf("the name %q", name), err)
			continue
		}
		b.must(err)
	}
	b.must(os.Mkdir(b.path("\xc3\x28 dir"), 0o755))
	b.file("\xc3\x28 dir/file", "x")
}

func (b *treeBuilder) links() {
	b.file("linked/a", "three names")
	b.must(os.Mkdir(b.path("linked/sub"), 0o755))
	b.must(os.Link(b.path("linked/a"), b.path("linked/sub/b")))
	b.must(os.Link(b.path("linked/a"), b.path("many/c")))
	for n := range 12 {
		b.file(fmt.Sprintf("linked/%d", n), fmt.Sprint(n))
		b.must(os.Link(b.path(fmt.Sprintf("linked/%d", n)), b.path(fmt.Sprintf("dirs/%d/link", n))))
	}
	for name, text := range map[string]string{
		"relative": "small", "broken": "nowhere", "absolute": "/etc/passwd", "up": "../../..", "loop": "loop",
		"toDir": "many", "long": strings.Repeat("l/", 500), "odd": "\xff\n ",
	} {
		b.must(os.MkdirAll(b.path("symlinks"), 0o755))
		b.must(os.Symlink(text, b.path("symlinks/"+name)))
	}
	b.optional("a symbolic link with two names", unix.Linkat(unix.AT_FDCWD, b.path("symlinks/relative"), unix.AT_FDCWD, b.path("symlinks/again"), 0))
}

func (b *treeBuilder) special() {
	b.must(os.MkdirAll(b.path("special"), 0o755))
	b.must(unix.Mkfifo(b.path("special/fifo"), 0o640))
	b.must(os.Link(b.path("special/fifo"), b.path("special/fifo2")))
	b.must(unix.Mknod(b.path("special/socket"), unix.S_IFSOCK|0o600, 0))
	if b.root {
		b.must(unix.Mknod(b.path("special/char"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
		b.must(unix.Mknod(b.path("special/block"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 200))))
	}
}

// posixACL encodes an access list as the attribute has it (acl(5),
// linux/posix_acl_xattr.h).
func posixACL(entries ...[3]uint32) []byte {
	out := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		out = binary.LittleEndian.AppendUint16(out, uint16(e[0]))
		out = binary.LittleEndian.AppendUint16(out, uint16(e[1]))
		out = binary.LittleEndian.AppendUint32(out, e[2])
	}
	return out
}

func testACL() []byte {
	const none = 0xffffffff
	return posixACL([3]uint32{1, 7, none}, [3]uint32{2, 5, 1234}, [3]uint32{4, 5, none}, [3]uint32{8, 6, 4321}, [3]uint32{16, 7, none}, [3]uint32{32, 1, none})
}

func (b *treeBuilder) attributes() {
	file := b.file("xattr/file", "with attributes")
	for p, attrs := range map[string]map[string][]byte{
		file:                   {"user.a": []byte("value"), "user.empty": {}, "user.binary": {0, 1, 255}, "user.large": bytes.Repeat([]byte("x"), 1500)},
		b.path("xattr"):        {"user.dir": []byte("on a directory")},
		b.path("dirs/3"):       {posixDefault: testACL(), posixAccess: testACL()},
		b.path("small"):        {posixAccess: testACL()},
		b.path("odd"):          {"trusted.odd": []byte("for root only")},
		b.path("linked/a"):     {"user.linked": []byte("once")},
		b.path("special/fifo"): {posixAccess: testACL()},
	} {
		for _, name := range slices.Sorted(maps.Keys(attrs)) {
			b.optional(name, unix.Lsetxattr(p, name, attrs[name], 0))
		}
	}
	// Over NFS 4, what is set of the list is what follows from it.
	if list, err := grow(func(buf []byte) (int, error) { return unix.Lgetxattr(file, nfs4ACL, buf) }); err == nil {
		b.must(unix.Lsetxattr(b.path("block"), nfs4ACL, withEntry(list, "1234", 0), 0))
		b.must(unix.Lsetxattr(b.path("emptydir"), nfs4ACL, withEntry(list, "1234", 3), 0))
	}
}

// withEntry puts an entry before those of an NFS 4 access list: who may read.
func withEntry(list []byte, who string, flags uint32) []byte {
	out := binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(list)+1)
	for _, v := range []uint32{0, flags, 0x1, uint32(len(who))} {
		out = binary.BigEndian.AppendUint32(out, v)
	}
	out = append(out, who...)
	out = append(out, make([]byte, (4-len(who)%4)%4)...)
	return append(out, list[4:]...)
}

func (b *treeBuilder) owners() {
	for n, mode := range []uint32{0, 0o400, 0o777, 0o4755, 0o2755, 0o6711, 0o1644, 0o001, 0o4000, 0o2070} {
		p := b.file(fmt.Sprintf("modes/file%d", n), "mode")
		d := b.path(fmt.Sprintf("modes/dir%d", n))
		b.must(os.Mkdir(d, 0o755))
		b.file(fmt.Sprintf("modes/dir%d/file", n), "in it")
		if b.root {
			uid := []int{0, 1, 1000, 65534, 100_000, 4_000_000_000, 7, 8, 9, 10}[n]
			for _, p := range []string{p, d, d + "/file"} {
				b.must(os.Lchown(p, uid, uid+1))
			}
		} else {
			mode |= 0o500
		}
		b.must(unix.Chmod(p, mode))
		b.must(unix.Chmod(d, mode))
	}
	if b.root {
		b.must(os.Lchown(b.path("symlinks/odd"), 11, 12))
		b.must(os.Lchown(b.path("special/fifo"), 13, 14))
		b.must(os.Lchown(b.path("linked/a"), 15, 16))
		b.must(os.Lchown(b.dir, 17, 18))
	}
	b.must(unix.Chmod(b.path("special/fifo"), 0o4751))
	b.must(unix.Chmod(b.path("linked/a"), 0o604))
	b.must(unix.Chmod(b.dir, 0o2775))
}

// deep makes directories whose path is longer than any path may be.
func (b *treeBuilder) deep() {
	fd, err := unix.Open(b.dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	b.must(err)
	for n := range 2*maxDepth + 10 {
		name := fmt.Sprintf("%d%s", n, strings.Repeat("d", 200))
		b.must(unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		b.must(err)
		b.must(unix.Close(fd))
		fd = next
		file, err := unix.Openat(fd, "file", unix.O_WRONLY|unix.O_CREAT, 0o644)
		b.must(err)
		_, err = unix.Write(file, []byte(name))
		b.must(err)
		b.must(unix.Close(file))
		b.must(unix.UtimesNanoAt(fd, ".", []unix.Timespec{{Sec: 1e9, Nsec: int64(n)}, {Sec: 1e9 + 1, Nsec: int64(n)}}, 0))
	}
	b.must(unix.Close(fd))
}

func (b *treeBuilder) times() {
	for n, sec := range []int64{-1, 0, 1, -2_000_000_000, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 9_999_999_999, 1_234_567_890} {
		p := b.file(fmt.Sprintf("times/file%d", n), "time")
		d := b.path(fmt.Sprintf("times/dir%d", n))
		b.must(os.Mkdir(d, 0o755))
		b.must(os.Symlink("x", d+"/link"))
		for _, p := range []string{p, d + "/link", d} {
			t := []unix.Timespec{{Sec: sec + 1, Nsec: 987654321}, {Sec: sec, Nsec: 123456789}}
			b.must(unix.UtimesNanoAt(unix.AT_FDCWD, p, t, unix.AT_SYMLINK_NOFOLLOW))
		}
	}
	at := []unix.Timespec{{Sec: 5, Nsec: 6}, {Sec: 7, Nsec: 8}}
	for _, p := range []string{"special/fifo", "linked", "linked/a", "xattr", "modes/dir0", "."} {
		b.must(unix.UtimesNanoAt(unix.AT_FDCWD, b.path(p), at, unix.AT_SYMLINK_NOFOLLOW))
	}
}
