package mount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// The tests in this file mount from a real NFS server. It is LAB_SERVER (IPv4),
// LAB_SERVER6 (IPv6), LAB_SERVER_NAME (a host name), and exports LAB_EXPORT
// (default /export/tmpfs) to this machine and LAB_DENIED to another one only.

func labEnv(t *testing.T, key string) string {
	t.Helper()
	v := os.Getenv(key)
	if v == "" {
		t.Skipf("mounts from a real NFS server: %s is not set; LAB=1 go test ./pkg/nfs/mount/ -run TestLab starts one", key)
	}
	return v
}

// labExport is the export to work on. Without a server it is LAB_SERVER.
func labExport(t *testing.T, server string, options ...string) nfs.Export {
	t.Helper()
	if server == "" {
		server = labEnv(t, "LAB_SERVER")
	}
	share := os.Getenv("LAB_EXPORT")
	if share == "" {
		share = "/export/tmpfs"
	}
	export, err := nfs.NewExport(server, share, options)
	if err != nil {
		t.Fatal(err)
	}
	return export
}

// mounted mounts, checks what mountinfo then says, and unmounts at the end.
func mounted(t *testing.T, m *Mounter, export nfs.Export, dir string, readOnly bool) (target string, options []string) {
	t.Helper()
	target = mkdirs(t, needNamespace(t), "target")
	if err := m.Mount(t.Context(), export, dir, target, readOnly); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The test's own context is over by now.
		if err := m.Unmount(context.WithoutCancel(t.Context()), target); err != nil {
			t.Error(err)
		}
		notMounted(t, m, target)
	})
	infos, err := m.List()
	if err != nil {
		t.Fatal(err)
	}
	info, ok := Find(infos, target)
	if !ok {
		t.Fatalf("%s is not in mountinfo: %+v", target, infos)
	}
	if err := m.Match(t.Context(), info, export, dir, readOnly); err != nil {
		t.Errorf("Match of our own mount: %v\n%+v", err, info)
	}
	if err := m.Match(t.Context(), info, export, dir, !readOnly); !errors.Is(err, nfs.ErrConflict) {
		t.Errorf("Match with the other access: error %v, want ErrConflict", err)
	}
	return target, slices.Concat(info.MountOptions, info.SuperOptions)
}

func notMounted(t *testing.T, m *Mounter, target string) {
	t.Helper()
	infos, err := m.List()
	if err != nil {
		t.Fatal(err)
	}
	if info, ok := Find(infos, target); ok {
		t.Errorf("still mounted: %+v", info)
	}
}

// canWrite writes a file, reads it and removes it.
func canWrite(t *testing.T, dir string) {
	t.Helper()
	name := filepath.Join(dir, "file")
	if err := os.WriteFile(name, []byte("hello"), 0o600); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(name); err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v", got, err)
	}
	if err := os.Remove(name); err != nil {
		t.Error(err)
	}
}

func TestNFSVersions(t *testing.T) {
	labEnv(t, "LAB_SERVER")
	for way, m := range ways() {
		for options, want := range map[string]string{
			"": "4.2", "vers=4": "4.2", "vers=4.2": "4.2", "nfsvers=4.1": "4.1", "v4.0": "4.0", "vers=4,minorversion=1": "4.1", "vers=3,nolock": "3",
			"vers=3,nolock,mountproto=tcp,proto=tcp,port=2049": "3",
		} {
			t.Run(way+"/"+options, func(t *testing.T) {
				target, have := mounted(t, m, labExport(t, "", options), "", false)
				if v := optionValue(have, "vers"); v != want {
					t.Errorf("version %s, want %s: %q", v, want, have)
				}
				canWrite(t, target)
				if u, err := m.Usage(t.Context(), target); err != nil || u.TotalBytes == 0 || u.TotalInodes == 0 {
					t.Errorf("usage %+v, %v", u, err)
				}
			})
		}
	}
}

// What the user asks for must arrive in the kernel.
func TestNFSOptions(t *testing.T) {
	labEnv(t, "LAB_SERVER")
	for way, m := range ways() {
		for options, want := range map[string]string{
			"soft,timeo=50,retrans=3":      "soft,timeo=50,retrans=3",
			"nosharecache,nconnect=2":      "nconnect=2",
			"noatime,nosuid,nodev,noexec":  "noatime,nosuid,nodev,noexec",
			"sync":                         "sync",
			"actimeo=7,lookupcache=none":   "acregmin=7,acdirmax=7,lookupcache=none",
			"softerr,nocto,noac":           "softerr,nocto,noac",
			"sec=sys,rsize=4096,proto=tcp": "sec=sys,rsize=4096,proto=tcp",
			"vers=3,nolock,noacl":          "nolock,noacl,local_lock=all",
			"clientaddr=127.0.0.7":         "clientaddr=127.0.0.7",
			"_netdev,nofail,x-a=b,bg,user": "nosuid,nodev,noexec",
		} {
			t.Run(way+"/"+options, func(t *testing.T) {
				_, have := mounted(t, m, labExport(t, "", options), "", false)
				for w := range strings.SplitSeq(want, ",") {
					if !slices.Contains(have, w) {
						t.Errorf("the mount has not %s: %q", w, have)
					}
				}
			})
		}
	}
}

func TestNFSAddresses(t *testing.T) {
	v4 := labEnv(t, "LAB_SERVER")
	servers := map[string]string{"dead first": "127.0.0.9," + v4, "no route first": "192.0.2.1," + v4}
	if v6 := os.Getenv("LAB_SERVER6"); v6 != "" {
		servers["IPv6"] = v6
		servers["IPv6, tcp"] = v6 + " proto=tcp"
		servers["IPv6, tcp6"] = v6 + " proto=tcp6"
		servers["IPv6, version 3"] = v6 + " vers=3,nolock,mountproto=tcp"
	}
	if name := os.Getenv("LAB_SERVER_NAME"); name != "" {
		servers["name"] = name
		servers["unknown name first"] = "nowhere.invalid," + name
	}
	for way, m := range ways() {
		for what, server := range servers {
			t.Run(way+"/"+what, func(t *testing.T) {
				server, options, _ := strings.Cut(server, " ")
				target, _ := mounted(t, m, labExport(t, server, options), "", false)
				canWrite(t, target)
			})
		}
	}
}

// The kubelet tells volumes by the device number of their mounts.
func TestNFSDevices(t *testing.T) {
	server := labEnv(t, "LAB_SERVER")
	for way, m := range ways() {
		for options, shared := range map[string]bool{"": false, "vers=3,nolock": false, "sharecache": true} {
			t.Run(way+"/"+options, func(t *testing.T) {
				var devices []uint64
				for range 2 {
					target, _ := mounted(t, m, labExport(t, server, options), "", false)
					var st unix.Stat_t
					if err := unix.Stat(target, &st); err != nil {
						t.Fatal(err)
					}
					devices = append(devices, st.Dev)
				}
				if (devices[0] == devices[1]) != shared {
					t.Errorf("devices %x, want the same: %t", devices, shared)
				}
			})
		}
	}
}

// Two mounts of one server can share a superblock, which shows the name of the first.
func TestNFSOtherNameOfMountedServer(t *testing.T) {
	byAddress, byName := labExport(t, "", "sharecache"), labExport(t, labEnv(t, "LAB_SERVER_NAME"), "sharecache")
	for way, m := range ways() {
		t.Run(way, func(t *testing.T) {
			mounted(t, m, byAddress, "", false)
			mounted(t, m, byName, "", false)
			mounted(t, m, byAddress, "", true)
		})
	}
}

func TestNFSErrors(t *testing.T) {
	server := labEnv(t, "LAB_SERVER")
	tests := []struct {
		name, server, share, options string
		want                         error
		text, words                  string
	}{
		{name: "wrong share", server: server, share: "/nowhere", want: nfs.ErrNoExport, text: "mount " + server + ":/nowhere (vers 4.2): ", words: "NFS4: Couldn't follow remote path"},
		{name: "bogus option", server: server, options: "bogus", want: nfs.ErrInvalid, text: "nfs(5)", words: "Unknown parameter 'bogus'"},
		{name: "bad value", server: server, options: "timeo=x", want: nfs.ErrInvalid, text: "nfs(5)", words: "timeo"},
		{name: "udp", server: server, options: "proto=udp,vers=4", want: nfs.ErrInvalid, words: "udp"},
		{name: "nothing listens", server: server, options: "port=1", want: nfs.ErrUnavailable, text: server + ":1: connection refused"},
		{name: "no route", server: "192.0.2.1", want: nfs.ErrUnavailable, text: "192.0.2.1:2049"},
		{name: "all dead", server: "127.0.0.9,192.0.2.1", want: nfs.ErrUnavailable, text: "no address of the server can be used"},
	}
	if denied := os.Getenv("LAB_DENIED"); denied != "" {
		tests = append(tests, tests[0], tests[0])
		tests[len(tests)-2].name, tests[len(tests)-2].share, tests[len(tests)-2].text = "not for this client", denied, "/etc/exports"
		v3 := &tests[len(tests)-1]
		v3.name, v3.share, v3.options, v3.want, v3.words = "not for this client, version 3", denied, "vers=3,nolock", nfs.ErrPermission, ""
		v3.text = "(vers 3): access denied by server"
	}
	for way, m := range ways() {
		for _, tt := range tests {
			t.Run(way+"/"+tt.name, func(t *testing.T) {
				target := mkdirs(t, needNamespace(t), "target")
				export := labExport(t, tt.server, tt.options)
				if tt.share != "" {
					export.Share = tt.share
				}
				root, detachedErr := m.Detached(t.Context(), export, "", false)
				if root != nil {
					t.Error("Detached gives a file with its error")
				}
				for what, err := range map[string]error{"Mount": m.Mount(t.Context(), export, "", target, false), "Detached": detachedErr} {
					if !errors.Is(err, tt.want) || !strings.Contains(fmt.Sprint(err), tt.text) {
						t.Errorf("%s: error %v, want %v that says %q", what, err, tt.want, tt.text)
					}
					if !m.options.Legacy && !strings.Contains(fmt.Sprint(err), tt.words) {
						t.Errorf("%s: error %v has not the kernel's words %q", what, err, tt.words)
					}
					oneSentinel(t, err)
				}
				notMounted(t, m, target)
			})
		}
	}
}

func TestNFSReadOnly(t *testing.T) {
	labEnv(t, "LAB_SERVER")
	for way, m := range ways() {
		for _, options := range []string{"", "vers=3,nolock"} {
			t.Run(way+"/"+options, func(t *testing.T) {
				// Both at once: the kernel must not let one decide for the other.
				writable, _ := mounted(t, m, labExport(t, "", options), "", false)
				readOnly, have := mounted(t, m, labExport(t, "", options), "", true)
				canWrite(t, writable)
				if err := os.Mkdir(filepath.Join(readOnly, "dir"), 0o755); !errors.Is(err, unix.EROFS) {
					t.Errorf("mkdir on the read-only mount: %v, want EROFS; it has %q", err, have)
				}
				bound := mkdirs(t, needNamespace(t), "bound")
				if err := m.Bind(t.Context(), writable, bound, true); err != nil {
					t.Fatal(err)
				}
				if err := os.Mkdir(filepath.Join(bound, "dir"), 0o755); !errors.Is(err, unix.EROFS) {
					t.Errorf("mkdir on the read-only bind: %v, want EROFS", err)
				}
				canWrite(t, writable)
				if err := m.Unmount(t.Context(), bound); err != nil {
					t.Error(err)
				}
				canWrite(t, writable)
			})
		}
	}
}

func TestNFSDetached(t *testing.T) {
	labEnv(t, "LAB_SERVER")
	for way, m := range ways() {
		for _, options := range []string{"", "vers=4.1", "vers=3,nolock"} {
			t.Run(way+"/"+options, func(t *testing.T) { testDetached(t, m, labExport(t, "", options)) })
		}
	}
}

func testDetached(t *testing.T, m *Mounter, export nfs.Export) {
	t.Helper()
	before, err := readMountInfo()
	if err != nil {
		t.Fatal(err)
	}
	file, err := m.Detached(t.Context(), export, "", false)
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(RootPath(file))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(root.Close(), file.Close()); err != nil {
			t.Error(err)
		}
	}()
	if after, err := readMountInfo(); err != nil || after != before {
		t.Errorf("the detached mount shows in mountinfo: %v\n%s", err, after)
	}
	if u, err := m.Usage(t.Context(), RootPath(file)); err != nil || u.TotalBytes == 0 {
		t.Errorf("usage %+v, %v", u, err)
	}
	for _, step := range []func() error{
		func() error { return root.Mkdir("a", 0o755) },
		func() error { return root.WriteFile("a/f", []byte("x"), 0o600) },
		func() error { return root.Rename("a", "b") },
		func() error { return root.Symlink("/etc", "b/link") },
		func() error { return root.Chmod("b", 0o700) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := root.ReadFile("b/f"); err != nil || string(got) != "x" {
		t.Errorf("read %q, %v", got, err)
	}
	if got, err := root.Readlink("b/link"); err != nil || got != "/etc" {
		t.Errorf("readlink %q, %v", got, err)
	}
	if _, err := root.Open("b/link/passwd"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open through a link out of the root: %v, want a refusal", err)
	}
	// A directory of the share as the root of another mount of it.
	inner, err := m.Detached(t.Context(), export, "b", true)
	if err != nil {
		t.Fatal(err)
	}
	innerRoot, err := os.OpenRoot(RootPath(inner))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := innerRoot.ReadFile("f"); err != nil || string(got) != "x" {
		t.Errorf("read below the directory: %q, %v", got, err)
	}
	if err := innerRoot.Mkdir("c", 0o755); !errors.Is(err, unix.EROFS) {
		t.Errorf("mkdir in the read-only root: %v, want EROFS", err)
	}
	if err := errors.Join(innerRoot.Close(), inner.Close()); err != nil {
		t.Error(err)
	}
	if err := root.RemoveAll("b"); err != nil {
		t.Error(err)
	}
}

func TestNFSOddNames(t *testing.T) {
	labEnv(t, "LAB_SERVER")
	for _, options := range []string{"", "vers=3,nolock"} {
		file, err := New(Options{}).Detached(t.Context(), labExport(t, "", options), "", false)
		if err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(RootPath(file))
		if err != nil {
			t.Fatal(err)
		}
		for way, m := range ways() {
			for what, name := range oddNames {
				t.Run(way+"/"+options+"/"+what, func(t *testing.T) {
					if err := root.MkdirAll(name, 0o755); err != nil {
						t.Fatal(err)
					}
					target, _ := mounted(t, m, labExport(t, "", options), name, false)
					canWrite(t, target)
					if err := os.Mkdir(filepath.Join(target, "proof"), 0o755); err != nil {
						t.Error(err)
					}
					if err := root.Remove(name + "/proof"); err != nil {
						t.Errorf("the mount is of another directory: %v", err)
					}
				})
			}
		}
		for what, name := range oddNames {
			if err := root.RemoveAll(name); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := errors.Join(root.Close(), file.Close()); err != nil {
			t.Error(err)
		}
	}
}

func TestNFSUtils(t *testing.T) {
	export := labExport(t, "", "vers=4.1")
	target := mkdirs(t, needNamespace(t), "target")
	u := New(Options{}).Utils()
	if err := u.Mount(export.Source(export.Server, ""), target, "nfs", export.Options); err != nil {
		t.Fatal(err)
	}
	canWrite(t, target)
	if is, err := u.IsMountPoint(target); !is || err != nil {
		t.Errorf("IsMountPoint = %v, %v", is, err)
	}
	if err := u.UnmountWithForce(target, time.Minute); err != nil {
		t.Fatal(err)
	}
	if is, err := u.IsMountPoint(target); is || err != nil {
		t.Errorf("IsMountPoint after the unmount = %v, %v", is, err)
	}
}
