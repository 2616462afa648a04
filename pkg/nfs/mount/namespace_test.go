package mount

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// oddNames are names that a subDir may have and that have confused parsers.
var oddNames = map[string]string{
	"space": "a b", "hash": "a#b", "percent": "100%41", "backslash": `a\040b`, "unicode": "größe-体积-🐘",
	"no-break space": "a\u00a0b", "newline": "a\nb", "deleted": "a (deleted)", "comma": "a,b=c", "dash": "-", "255 bytes": strings.Repeat("x", 255),
}

func TestBind(t *testing.T) {
	dir := needNamespace(t)
	for way, m := range ways() {
		t.Run(way, func(t *testing.T) {
			for what, name := range oddNames {
				for _, readOnly := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/readOnly=%v", what, readOnly), func(t *testing.T) {
						source, target := mkdirs(t, dir, "source", name), mkdirs(t, dir, "target", name)
						if err := m.Bind(t.Context(), source, target, readOnly); err != nil {
							t.Fatal(err)
						}
						err := os.WriteFile(filepath.Join(target, "file"), []byte("x"), 0o600)
						if readOnly && !errors.Is(err, unix.EROFS) || !readOnly && err != nil {
							t.Errorf("write beneath the target: %v", err)
						}
						if err := os.WriteFile(filepath.Join(source, "file"), []byte("y"), 0o600); err != nil {
							t.Errorf("the source became read-only: %v", err)
						}
						if got, err := os.ReadFile(filepath.Join(target, "file")); err != nil || string(got) != "y" {
							t.Errorf("read beneath the target: %q, %v", got, err)
						}
						infos, err := m.List()
						if err != nil {
							t.Fatal(err)
						}
						info, ok := Find(infos, target)
						if !ok || slices.Contains(info.MountOptions, "ro") != readOnly {
							t.Errorf("mountinfo says %+v, %v", info, ok)
						}
						if err := m.Unmount(t.Context(), target); err != nil {
							t.Fatal(err)
						}
						if _, err := os.Stat(filepath.Join(target, "file")); !errors.Is(err, os.ErrNotExist) {
							t.Errorf("the target still shows the source: %v", err)
						}
					})
				}
			}
		})
	}
}

// A read-only bind must not lose the flags of the mount that it shows.
func TestBindKeepsFlags(t *testing.T) {
	dir := needNamespace(t)
	for _, flags := range []uintptr{unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME, unix.MS_STRICTATIME | unix.MS_NODIRATIME, unix.MS_NOSYMFOLLOW} {
		for way, m := range ways() {
			t.Run(way, func(t *testing.T) {
				source, target := mkdirs(t, dir, "source"), mkdirs(t, dir, "target")
				if err := unix.Mount("tmpfs", source, "tmpfs", flags, ""); err != nil {
					t.Fatal(err)
				}
				defer func() {
					for _, p := range []string{target, source} {
						if err := m.Unmount(t.Context(), p); err != nil {
							t.Error(err)
						}
					}
				}()
				if err := m.Bind(t.Context(), source, target, true); err != nil {
					t.Fatal(err)
				}
				infos, err := m.List()
				if err != nil {
					t.Fatal(err)
				}
				from, _ := Find(infos, source)
				to, _ := Find(infos, target)
				want := slices.Clone(from.MountOptions)
				want[slices.Index(want, "rw")] = "ro"
				if !slices.Equal(want, to.MountOptions) {
					t.Errorf("flags %#x: the bind has %q, the source %q", flags, to.MountOptions, from.MountOptions)
				}
			})
		}
	}
}

func TestBindRefuses(t *testing.T) {
	dir := needNamespace(t)
	for way, m := range ways() {
		t.Run(way, func(t *testing.T) {
			source, victim := mkdirs(t, dir, "source"), mkdirs(t, dir, "victim")
			link := filepath.Join(dir, "link")
			if err := os.Symlink(victim, link); err != nil && !errors.Is(err, os.ErrExist) {
				t.Fatal(err)
			}
			for _, tt := range []struct{ source, target, text string }{
				{source, link, "symbolic link"},
				{link, source, "symbolic link"},
				{source, filepath.Join(dir, "missing"), "no such file"},
				{filepath.Join(dir, "missing"), source, "no such file"},
				{source, "relative", "not absolute"},
			} {
				err := m.Bind(t.Context(), tt.source, tt.target, false)
				if !errors.Is(err, nfs.ErrInvalid) || !strings.Contains(fmt.Sprint(err), tt.text) {
					t.Errorf("bind %s at %s: error %v, want ErrInvalid that says %q", tt.source, tt.target, err, tt.text)
				}
				oneSentinel(t, err)
			}
			infos, err := m.List()
			if err != nil {
				t.Fatal(err)
			}
			if info, ok := Find(infos, victim); ok {
				t.Errorf("mounted through a symbolic link: %+v", info)
			}
		})
	}
}

func TestUnmountReal(t *testing.T) {
	dir := needNamespace(t)
	m := New(Options{})
	target, source := mkdirs(t, dir, "target"), mkdirs(t, dir, "source")
	notMounted := func() {
		t.Helper()
		infos, err := m.List()
		if err != nil {
			t.Fatal(err)
		}
		if info, ok := Find(infos, target); ok {
			t.Errorf("still mounted: %+v", info)
		}
	}
	t.Run("nothing there", func(t *testing.T) {
		for _, p := range []string{target, filepath.Join(dir, "missing"), filepath.Join(dir, "missing", "too")} {
			if err := m.Unmount(t.Context(), p); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("stacked", func(t *testing.T) {
		for i := range 4 {
			if err := m.Bind(t.Context(), source, target, i%2 == 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Unmount(t.Context(), target); err != nil {
			t.Fatal(err)
		}
		notMounted()
	})
	t.Run("in use", func(t *testing.T) {
		if err := unix.Mount("tmpfs", target, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(filepath.Join(target, "open"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := m.Unmount(t.Context(), target); err != nil {
			t.Fatal(err)
		}
		notMounted()
		if _, err := f.WriteString("still works"); err != nil {
			t.Errorf("write to a file that was open: %v", err)
		}
	})
	t.Run("through a symbolic link in the parent", func(t *testing.T) {
		if err := m.Bind(t.Context(), source, target, false); err != nil {
			t.Fatal(err)
		}
		link := filepath.Join(dir, "root")
		if err := os.Symlink(dir, link); err != nil {
			t.Fatal(err)
		}
		if err := m.Unmount(t.Context(), filepath.Join(link, "target")); err != nil {
			t.Fatal(err)
		}
		notMounted()
	})
	t.Run("symbolic link to a mount", func(t *testing.T) {
		if err := m.Bind(t.Context(), source, target, false); err != nil {
			t.Fatal(err)
		}
		link := filepath.Join(dir, "alias")
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		if err := m.Unmount(t.Context(), link); err != nil {
			t.Fatal(err)
		}
		infos, err := m.List()
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := Find(infos, target); !ok {
			t.Error("unmounted what a symbolic link led to")
		}
		if err := m.Unmount(t.Context(), target); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("hidden below another mount", func(t *testing.T) {
		inner := mkdirs(t, dir, "outer", "inner")
		if err := m.Bind(t.Context(), source, inner, false); err != nil {
			t.Fatal(err)
		}
		outer := filepath.Dir(inner)
		if err := m.Bind(t.Context(), source, outer, false); err != nil {
			t.Fatal(err)
		}
		if err := m.Unmount(t.Context(), inner); !errors.Is(err, nfs.ErrUnavailable) || !strings.Contains(fmt.Sprint(err), "still mounted") {
			t.Errorf("error %v, want: still mounted", err)
		}
		for _, p := range []string{outer, inner} {
			if err := m.Unmount(t.Context(), p); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestMountTarget(t *testing.T) {
	dir := needNamespace(t)
	link, file := filepath.Join(dir, "link"), filepath.Join(dir, "file")
	if err := os.Symlink(mkdirs(t, dir, "victim"), link); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for target, text := range map[string]string{link: "symbolic link", file: "no directory", filepath.Join(dir, "missing"): "no such file", "relative": "not absolute"} {
		err := New(Options{}).Mount(t.Context(), testExport(t, "127.0.0.1"), "", target, false)
		if !errors.Is(err, nfs.ErrInvalid) || !strings.Contains(fmt.Sprint(err), text) {
			t.Errorf("mount at %s: error %v, want ErrInvalid that says %q", target, err, text)
		}
	}
}

func TestUsage(t *testing.T) {
	dir := needNamespace(t)
	m := New(Options{})
	before, err := m.Usage(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if before.TotalBytes != 1<<20 || before.UsedBytes+before.AvailableBytes != before.TotalBytes || before.TotalInodes != before.UsedInodes+before.AvailableInodes {
		t.Errorf("usage of a tmpfs of 1 MiB: %+v", before)
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	after, err := m.Usage(t.Context(), dir)
	if err != nil || after.UsedBytes-before.UsedBytes != 64<<10 || after.UsedInodes-before.UsedInodes != 1 {
		t.Errorf("after a file of 64 KiB: %+v, %v, before it %+v", after, err, before)
	}
	if _, err := m.Usage(t.Context(), filepath.Join(dir, "missing")); !errors.Is(err, nfs.ErrInvalid) {
		t.Errorf("missing path: error %v, want ErrInvalid", err)
	}
}

func TestUtils(t *testing.T) {
	dir := needNamespace(t)
	u := New(Options{}).Utils()
	source, target := mkdirs(t, dir, "source"), mkdirs(t, dir, "target")
	if err := u.Mount(source, target, "", []string{"bind"}); err != nil {
		t.Fatal(err)
	}
	if err := u.Mount(source, target, "", []string{"bind", "remount", "ro"}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(target, "f"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write after the remount: %v, want EROFS", err)
	}
	if is, err := u.IsMountPoint(target); !is || err != nil {
		t.Errorf("IsMountPoint(target) = %v, %v", is, err)
	}
	if not, err := u.IsLikelyNotMountPoint(source); !not || err != nil {
		t.Errorf("IsLikelyNotMountPoint(source) = %v, %v", not, err)
	}
	if _, err := u.IsMountPoint(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("IsMountPoint(missing): error %v, want ErrNotExist", err)
	}
	if refs, err := u.GetMountRefs(source); err != nil || !slices.Equal(refs, []string{target}) {
		t.Errorf("GetMountRefs(source) = %q, %v, want the target", refs, err)
	}
	points, err := u.List()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, p := range points {
		found = found || p.Path == target && p.Type == "tmpfs" && slices.Contains(p.Opts, "ro")
	}
	if !found {
		t.Errorf("List has no read-only tmpfs at %s", target)
	}
	if err := u.Unmount(target); err != nil {
		t.Fatal(err)
	}
	if is, err := u.IsMountPoint(target); is || err != nil {
		t.Errorf("IsMountPoint(target) after the unmount = %v, %v", is, err)
	}
	if err := u.Mount("tmpfs", target, "tmpfs", nil); !errors.Is(err, nfs.ErrInvalid) {
		t.Errorf("mount of tmpfs: error %v, want ErrInvalid", err)
	}
}

// The thread with the private namespace must not be the one that the process
// shows as its own, and nothing of it may stay.
func TestPrivateNamespace(t *testing.T) {
	dir := needNamespace(t)
	before, err := readMountInfo()
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		err := inPrivateNamespace(func() error { return unix.Mount("tmpfs", dir, "tmpfs", 0, "") })
		if err != nil {
			t.Fatal(err)
		}
		after, err := readMountInfo()
		if err != nil || after != before {
			t.Fatalf("the mounts of the process changed: %v\n%s", err, after)
		}
	}
}

// Without CAP_SYS_ADMIN every error says what to do about it. The process is
// this test again, as another user.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() == 0 {
		dir := needNamespace(t)
		self, err := os.ReadFile("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		// The place that go test builds to is not open to other users.
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=200m,mode=755"); err != nil {
			t.Fatal(err)
		}
		program := filepath.Join(dir, "program")
		if err := os.WriteFile(program, self, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "/proc/self/fd/3", "-test.run=^TestUnprivileged$", "-test.v")
		f, err := os.Open(program)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = []*os.File{f}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestUnprivileged") {
			t.Errorf("as another user: %v\n%s", err, out)
		}
		return
	}
	if privileged() {
		t.Error("privileged() says that this process has CAP_SYS_ADMIN")
	}
	const want = "CAP_SYS_ADMIN is missing: operation not permitted; set securityContext.capabilities.add: [SYS_ADMIN] on the container"
	export := testExport(t, "127.0.0.1", fmt.Sprintf("port=%d", listen(t)))
	for way, m := range ways() {
		t.Run(way, func(t *testing.T) {
			_, detachErr := m.Detached(t.Context(), export, "", false)
			for what, err := range map[string]error{
				"mount":    m.Mount(t.Context(), export, "", "/", false),
				"detached": detachErr,
				"bind":     m.Bind(t.Context(), "/proc", "/proc", false),
				"unmount":  m.Unmount(t.Context(), "/proc"),
			} {
				if !errors.Is(err, nfs.ErrPermission) || !strings.HasSuffix(fmt.Sprint(err), want) {
					t.Errorf("%s: error %v, want ErrPermission that says %q", what, err, want)
				}
			}
		})
	}
}

// TestListMany: mountinfo gives about a page a read, and no mount may be missed
// at the seams.
func TestListMany(t *testing.T) {
	dir := needNamespace(t)
	const count = 200
	var want []string
	for i := range count {
		place := mkdirs(t, dir, fmt.Sprintf("%03d-%s", i, strings.Repeat("x", 150)))
		if err := unix.Mount(dir, place, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		want = append(want, place)
	}
	for way, list := range map[string]func() (string, error){"once": readMountInfo, "settled": readSettledMountInfo} {
		m := New(Options{})
		m.readMountInfo = list
		infos, err := m.List()
		if err != nil {
			t.Fatalf("%s: %v", way, err)
		}
		var got []string
		for _, info := range infos {
			if strings.HasPrefix(info.MountPoint, dir+"/") {
				got = append(got, info.MountPoint)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", way, diff)
		}
	}
	for _, place := range want {
		if err := unix.Unmount(place, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}
}
