package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/driver"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/admin"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var storeOptions = store.Options{DriverName: "csi.test", InstanceID: "one"}

// controller serves stores on temporary directories, one for each export.
type controller struct {
	socket string
	dirs   map[string]string // by server:/share
	stores map[string]*store.Store
}

func startController(t *testing.T, names ...string) *controller {
	t.Helper()
	c := &controller{socket: filepath.Join(t.TempDir(), "admin.sock"), dirs: map[string]string{}, stores: map[string]*store.Store{}}
	var exports []nfs.Export
	for _, name := range names {
		e, err := nfs.ParseExport(name)
		if err != nil {
			t.Fatal(err)
		}
		exports = append(exports, e)
		dir := t.TempDir()
		c.dirs[e.String()], c.stores[e.String()] = dir, openStore(t, dir)
	}
	ctx, cancel := context.WithCancel(t.Context())
	listener, err := driver.Listen(ctx, "unix://"+c.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := driver.NewAdminServer(&admin.Server{
		Driver:  "csi.test",
		Exports: func() []nfs.Export { return exports },
		Open: func(_ context.Context, e nfs.Export) (admin.Backend, error) {
			if e.Server == "dead" {
				return nil, fmt.Errorf("%w: %s: no answer", nfs.ErrUnavailable, e)
			}
			return c.stores[e.String()], nil
		},
	}, klog.TODO())
	done := make(chan error)
	go func() { done <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c
}

func openStore(t *testing.T, dir string) *store.Store {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), root, storeOptions)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		root.Close()
	})
	return s
}

func create(t *testing.T, s *store.Store, name, dir string, onDelete nfs.OnDelete) nfs.Volume {
	t.Helper()
	v, err := s.CreateVolume(t.Context(), nfs.VolumeSpec{Name: name, Dir: dir, MinBytes: 5 << 30, OnDelete: onDelete, Mode: 0o755,
		Claim: nfs.Claim{Namespace: "shop", Name: "data"}})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// result is what a command has written.
type result struct {
	stdout, stderr string
	err            error
}

func (c *controller) run(t *testing.T, o Options, output string, f func(Command) error) result {
	t.Helper()
	if o.Path == "" {
		o.Socket = c.socket
	}
	o.Store.DriverName, o.Store.InstanceID = storeOptions.DriverName, storeOptions.InstanceID
	var stdout, stderr bytes.Buffer
	err := f(Command{Options: o, Output: output, Stdout: &stdout, Stderr: &stderr})
	return result{stdout.String(), stderr.String(), err}
}

func list(t *testing.T, kind nfs.ItemKind, usage bool) func(Command) error {
	return func(c Command) error { return c.List(t.Context(), kind, usage) }
}

// ages are not what the tests are about.
var ages = regexp.MustCompile(`\b\d+s\b`)

func wantText(t *testing.T, got result, stdout string, says ...string) {
	t.Helper()
	trimmed := ""
	for line := range strings.Lines(ages.ReplaceAllString(got.stdout, "1s")) {
		trimmed += strings.TrimRight(line, " \n") + "\n"
	}
	if diff := cmp.Diff(stdout, trimmed); diff != "" {
		t.Errorf("stdout (-want +got):\n%s", diff)
	}
	for _, text := range says {
		if got.err == nil || !strings.Contains(got.err.Error(), text) {
			t.Errorf("the error is %v; want it to say %q", got.err, text)
		}
	}
	if len(says) == 0 && got.err != nil {
		t.Error(got.err)
	}
}

func TestLists(t *testing.T) {
	c := startController(t, "nfs.example:/a", "nfs.example:/b nfsvers=4.1")
	a := c.stores["nfs.example:/a"]
	create(t, a, "pvc-2", "two", nfs.Delete)
	create(t, a, "pvc-1", "team/one", nfs.Archive)
	create(t, c.stores["nfs.example:/b"], "pvc-0", "zero", nfs.Delete)
	if err := os.WriteFile(filepath.Join(c.dirs["nfs.example:/a"], "two/file"), make([]byte, 96<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	wantText(t, c.run(t, Options{}, "table", list(t, nfs.ItemVolume, false)), `EXPORT           NAME    DIRECTORY   CAPACITY   ON-DELETE   CLAIM       AGE
nfs.example:/a   pvc-1   team/one    5Gi        archive     shop/data   1s
nfs.example:/a   pvc-2   two         5Gi        delete      shop/data   1s
nfs.example:/b   pvc-0   zero        5Gi        delete      shop/data   1s
`)
	used := c.run(t, Options{Export: "nfs.example:/a"}, "json", list(t, nfs.ItemVolume, true))
	var rows []map[string]any
	if err := json.Unmarshal([]byte(used.stdout), &rows); err != nil || used.err != nil {
		t.Fatal(err, used)
	}
	if len(rows) != 2 || rows[1]["usedFiles"] != 2.0 || rows[1]["usedBytes"].(float64) < 96<<10 {
		t.Errorf("rows: %v", rows)
	}
	for _, r := range rows {
		for _, k := range []string{"created", "usedBytes", "usedFiles"} {
			delete(r, k)
		}
	}
	want := map[string]any{
		"kind": "volume", "export": "nfs.example:/a", "path": "two", "id": "pvc-2", "name": "pvc-2", "directory": "two", "capacityBytes": float64(5 << 30),
		"onDelete": "delete", "claim": map[string]any{"namespace": "shop", "name": "data"}, "driver": "csi.test", "instance": "one",
		"handle": "v1:nfs.example:/a::pvc-2",
	}
	if diff := cmp.Diff(want, rows[1]); diff != "" {
		t.Errorf("a volume in JSON (-want +got):\n%s", diff)
	}
	if err := a.DeleteVolume(t.Context(), "pvc-1", ""); err != nil {
		t.Fatal(err)
	}
	archived := c.run(t, Options{}, "table", list(t, nfs.ItemArchive, true))
	if archived.err != nil || !strings.Contains(archived.stdout, "PATH") || !strings.Contains(archived.stdout, "team/archived-one-") || strings.Contains(archived.stdout, "PROBLEM") {
		t.Errorf("archive: %+v", archived)
	}
	// The same without a controller.
	dir := c.dirs["nfs.example:/b"]
	wantText(t, c.run(t, Options{Path: dir, Export: "nfs.example:/b"}, "table", list(t, nfs.ItemVolume, false)), `NAME    DIRECTORY   CAPACITY   ON-DELETE   CLAIM       AGE
pvc-0   zero        5Gi        delete      shop/data   1s
`)
	for output, stdout := range map[string]string{"table": "", "json": "[]\n"} {
		wantText(t, c.run(t, Options{Export: "nfs.example:/b"}, output, list(t, nfs.ItemTrash, false)), stdout)
	}
}

// What fails does not hide the rest.
func TestFailures(t *testing.T) {
	c := startController(t, "dead:/x", "nfs.example:/a")
	create(t, c.stores["nfs.example:/a"], "v", "v", nfs.Delete)
	wantText(t, c.run(t, Options{}, "table", list(t, nfs.ItemVolume, false)), `NAME   DIRECTORY   CAPACITY   ON-DELETE   CLAIM       AGE
v      v           5Gi        delete      shop/data   1s
`, "dead:/x: export unavailable: dead:/x: no answer")
	wantText(t, c.run(t, Options{Export: "other:/x"}, "json", list(t, nfs.ItemVolume, false)), "[]\n", `does not know the export "other:/x"`, "dead:/x, nfs.example:/a")
	nowhere := c.run(t, Options{Path: t.TempDir()}, "table", list(t, nfs.ItemVolume, false))
	wantText(t, nowhere, "", "no directory .nfs-csi")
	c.socket += ".gone"
	wantText(t, c.run(t, Options{}, "table", list(t, nfs.ItemVolume, false)), "", "no controller answers", "--path")
	adopting := func(o Options, task nfs.Task) error {
		return c.run(t, o, "table", func(c Command) error { return c.Adopt(t.Context(), task) }).err
	}
	for name, err := range map[string]error{
		"no export":  adopting(Options{Path: t.TempDir()}, nfs.Task{Name: "v", Dir: "v", OnDelete: nfs.Retain}),
		"bad name":   adopting(Options{}, nfs.Task{Name: "Not Plain", Dir: "v", OnDelete: nfs.Retain}),
		"bad export": adopting(Options{Path: t.TempDir(), Export: "x"}, nfs.Task{Name: "v", Dir: "v", OnDelete: nfs.Retain}),
	} {
		if !IsUsage(err) {
			t.Errorf("%s: %v is no mistake of the command line", name, err)
		}
	}
}

func TestOrphansAndAdopt(t *testing.T) {
	c := startController(t, "nfs.example:/a nfsvers=4.1", "nfs.example:/b")
	dir := c.dirs["nfs.example:/a"]
	create(t, c.stores["nfs.example:/a"], "v", "team/v", nfs.Delete)
	for _, d := range []string{"team/stray", "evil\x1b[31m"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	orphans := func(c Command) error { return c.Orphans(t.Context()) }
	const found = "KIND        PATH             NAME   PROBLEM\n" +
		`directory   "evil\x1b[31m"   -      no record tells of it: the driver has not made it, or it was retained` + "\n" +
		"directory   team/stray       -      no record tells of it: the driver has not made it, or it was retained\n"
	wantText(t, c.run(t, Options{}, "table", orphans), found)
	wantText(t, c.run(t, Options{Path: dir}, "table", orphans), found)

	task := nfs.Task{Name: "stray", Dir: "team/stray", CapacityBytes: 1 << 30, OnDelete: nfs.Retain}
	adopt := func(c Command) error { return c.Adopt(t.Context(), task) }
	if err := c.run(t, Options{}, "table", adopt).err; !IsUsage(err) || !strings.Contains(err.Error(), `--export "nfs.example:/b"`) {
		t.Errorf("adopt without saying where: %v", err)
	}
	const manifest = `apiVersion: v1
kind: PersistentVolume
metadata:
  annotations:
    pv.kubernetes.io/provisioned-by: csi.test
  name: stray
spec:
  accessModes:
    - ReadWriteMany
  capacity:
    storage: 1073741824
  csi:
    driver: csi.test
    volumeAttributes:
      server: nfs.example
      share: /a
      subDir: team/stray
    volumeHandle: v1:nfs.example:/a:nfsvers=4.1:stray
  mountOptions:
    - nfsvers=4.1
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ""
`
	dry := c.run(t, Options{Export: "nfs.example:/a"}, "table", adopt)
	wantText(t, dry, manifest)
	if !strings.Contains(dry.stderr, "Nothing was changed; --yes does it") {
		t.Errorf("the dry run says %q", dry.stderr)
	}
	task.Commit = true
	wantText(t, c.run(t, Options{Export: "nfs.example:/a"}, "table", adopt), manifest)
	again := c.run(t, Options{Path: dir, Export: "nfs.example:/a nfsvers=4.1"}, "json", adopt)
	var row struct {
		Handle           string         `json:"handle"`
		DryRun           *bool          `json:"dryRun"`
		PersistentVolume map[string]any `json:"persistentVolume"`
	}
	if err := json.Unmarshal([]byte(again.stdout), &row); err != nil || again.err != nil {
		t.Fatal(err, again)
	}
	if row.Handle != "v1:nfs.example:/a:nfsvers=4.1:stray" || row.DryRun == nil || *row.DryRun || row.PersistentVolume["kind"] != "PersistentVolume" {
		t.Errorf("adopted again, in JSON: %s", again.stdout)
	}
	if _, err := c.stores["nfs.example:/a"].GetVolume(t.Context(), "stray"); err != nil {
		t.Error(err)
	}
	task.Name = "other"
	wantText(t, c.run(t, Options{Export: "nfs.example:/a"}, "table", adopt), "", "nfs.example:/a: ", `belongs to the volume with id "stray"`)
}

func TestPurge(t *testing.T) {
	c := startController(t, "nfs.example:/a")
	s := c.stores["nfs.example:/a"]
	for i := range 5 {
		create(t, s, fmt.Sprintf("v%d", i), fmt.Sprintf("v%d", i), nfs.Delete)
	}
	for i := range 5 {
		if err := s.DeleteVolume(t.Context(), fmt.Sprintf("v%d", i), ""); err != nil {
			t.Fatal(err)
		}
	}
	purged := c.run(t, Options{}, "json", func(c Command) error { return c.Purge(t.Context(), true) })
	var rows []trashRow
	if err := json.Unmarshal([]byte(purged.stdout), &rows); err != nil || purged.err != nil {
		t.Fatal(err, purged)
	}
	if len(rows) != 1 || !rows[0].Empty || rows[0].Entries != 0 || rows[0].Export != "nfs.example:/a" {
		t.Errorf("purged: %+v", rows)
	}
	wantText(t, c.run(t, Options{}, "table", func(c Command) error { return c.Purge(t.Context(), false) }), `EXPORT           WAITING   FAILING   OLDEST   REMOVED
nfs.example:/a   0         0         -        5
`)
	// Here the purge is that of the command.
	wantText(t, c.run(t, Options{Path: c.dirs["nfs.example:/a"], Export: "nfs.example:/a"}, "table", func(c Command) error { return c.Purge(t.Context(), true) }),
		`EXPORT           WAITING   FAILING   OLDEST   REMOVED
nfs.example:/a   0         0         -        0
`)
}

func TestFormat(t *testing.T) {
	now := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		0: "0s", -time.Hour: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 125 * time.Second: "2m5s", 59 * time.Minute: "59m",
		119 * time.Minute: "119m", 150 * time.Minute: "2h30m", 30 * time.Hour: "30h", 49 * time.Hour: "2d1h", 48 * time.Hour: "2d",
		100 * 24 * time.Hour: "100d", 3 * 365 * 24 * time.Hour: "3y",
	} {
		if got := age(now, now.Add(-d)); got != want {
			t.Errorf("age(%s) = %s, want %s", d, got, want)
		}
	}
	if got := age(now, time.Time{}); got != "-" {
		t.Errorf("no time: %s", got)
	}
	for at, want := range map[time.Time]string{{}: "never", now: "now", now.Add(150 * time.Minute): "in 2h30m"} {
		if got := until(now, at); got != want {
			t.Errorf("until(%s) = %s, want %s", at, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0B", 1023: "1023B", 1024: "1Ki", 1536: "1.5Ki", 10 << 10: "10Ki", 1<<20 - 1: "1Mi", 5 << 30: "5Gi", 1<<63 - 1: "8Ei", 999 << 20: "999Mi"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %s, want %s", n, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1000: "-1,000"} {
		if got := count(n); got != want {
			t.Errorf("count(%d) = %s, want %s", n, got, want)
		}
	}
	for s, want := range map[string]int64{"1": 1, "10Gi": 10 << 30, "500M": 5e8, "1Ki": 1024, "2k": 2000, "": 0, "0": 0, "-1": 0, "1.5Gi": 0, "9Ei": 0, "Gi": 0, "1Gx": 0, "1iG": 0, "99999999999999999999": 0} {
		got, err := ParseSize(s)
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for s, want := range map[string]string{"": "-", "a b/ü": "a b/ü", "a\tb": `"a\tb"`, "\xff": `"\xff"`, "\u202e": `"\u202e"`} {
		if got := text(s); got != want {
			t.Errorf("text(%q) = %s, want %s", s, got, want)
		}
	}
}

// On a terminal progress is one line that changes; elsewhere it is told now and then.
func TestProgress(t *testing.T) {
	var b bytes.Buffer
	p := newProgress(&b)
	p.show(1, 4, "one of %d", 4)
	p.last = p.last.Add(-plainEvery)
	p.show(2, 4, "two")
	p.show(3, 4, "three")
	p.end()
	if b.String() != "two\n" {
		t.Errorf("plain: %q", b.String())
	}
	b.Reset()
	p.terminal = true
	p.show(1, 4, "one")
	p.show(9, 4, "more")
	p.show(0, 0, "no bar")
	p.end()
	want := "\r\x1b[K[#####...............] one\r\x1b[K[####################] more\r\x1b[Kno bar\r\x1b[K"
	if b.String() != want {
		t.Errorf("terminal: %q, want %q", b.String(), want)
	}
}
