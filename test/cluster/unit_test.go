package cluster

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

// TestExamplesUseTheNodesImage: the examples are applied as they are, and there is no registry.
func TestExamplesUseTheNodesImage(t *testing.T) {
	files, err := filepath.Glob("../../deploy/kubernetes/examples/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	images := 0
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			_, name, ok := strings.Cut(line, " image: ")
			if !ok {
				continue
			}
			images++
			if got := "docker.io/library/" + strings.TrimSpace(name); got != BusyboxImage {
				t.Errorf("%s uses %s, nodes have %s", f, got, BusyboxImage)
			}
		}
	}
	if images == 0 {
		t.Errorf("no image in %v", files)
	}
}

func TestImageIsADockerArchive(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	write(t, program, "contents of the program")
	i := image{name: "example.org/a/b:1", entrypoint: []string{"/program"}, files: map[string]file{
		"program": {mode: 0o755, host: program},
		"tmp":     {mode: fs.ModeDir | fs.ModeSticky | 0o777},
		"link":    {mode: fs.ModeSymlink | 0o777, link: "program"},
		"text":    {mode: 0o640, text: "words"},
	}}
	saved, err := i.save(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(saved)
	if err != nil {
		t.Fatal(err)
	}
	archive := untar(t, data)

	var manifest []struct {
		Config           string
		RepoTags, Layers []string
	}
	unmarshal(t, archive["manifest.json"].contents, &manifest)
	if len(manifest) != 1 || len(manifest[0].Layers) != 1 || !cmp.Equal(manifest[0].RepoTags, []string{i.name}) {
		t.Fatalf("manifest %+v", manifest)
	}
	var config struct {
		Architecture, OS string
		Config           struct{ Entrypoint []string }
		RootFS           struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	unmarshal(t, archive[manifest[0].Config].contents, &config)
	layer := archive[manifest[0].Layers[0]].contents
	if want := []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}; !cmp.Equal(config.RootFS.DiffIDs, want) {
		t.Errorf("layers %v in the configuration, want %v", config.RootFS.DiffIDs, want)
	}
	if config.OS != "linux" || config.Architecture != "amd64" || !cmp.Equal(config.Config.Entrypoint, i.entrypoint) {
		t.Errorf("configuration %+v", config)
	}
	got := make(map[string]string)
	for name, e := range untar(t, layer) {
		got[name] = fmt.Sprintf("%c %o %s%s", e.header.Typeflag, e.header.Mode, e.header.Linkname, e.contents)
	}
	want := map[string]string{
		"program": "0 755 contents of the program",
		"tmp/":    "5 1777 ",
		"link":    "2 777 program",
		"text":    "0 640 words",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files of the layer (-want +got):\n%s", diff)
	}
}

type entry struct {
	header   *tar.Header
	contents []byte
}

func untar(t *testing.T, data []byte) map[string]entry {
	t.Helper()
	entries := make(map[string]entry)
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		contents, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		entries[h.Name] = entry{h, contents}
	}
}

func unmarshal(t *testing.T, data []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatalf("%v: %q", err, data)
	}
}

func TestCertificates(t *testing.T) {
	a, err := newAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	server := issue(t, a, "server", "10.96.0.1", "kubernetes")
	client := issue(t, a, "client")
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	for _, tt := range []struct {
		name  string
		cert  *x509.Certificate
		host  string
		usage x509.ExtKeyUsage
		ok    bool
	}{
		{"address", server, "10.96.0.1", x509.ExtKeyUsageServerAuth, true},
		{"name", server, "kubernetes", x509.ExtKeyUsageServerAuth, true},
		{"other name", server, "example.org", x509.ExtKeyUsageServerAuth, false},
		{"client", client, "", x509.ExtKeyUsageClientAuth, true},
		{"client as server", client, "", x509.ExtKeyUsageServerAuth, false},
	} {
		_, err := tt.cert.Verify(x509.VerifyOptions{Roots: pool, DNSName: tt.host, KeyUsages: []x509.ExtKeyUsage{tt.usage}})
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v, want success: %t", tt.name, err, tt.ok)
		}
	}
	want := []string{"user of client", "group"}
	if diff := cmp.Diff(want, append([]string{client.Subject.CommonName}, client.Subject.Organization...)); diff != "" {
		t.Errorf("who the client is (-want +got):\n%s", diff)
	}
}

func issue(t *testing.T, a *authority, name string, hosts ...string) *x509.Certificate {
	t.Helper()
	cert, key, err := a.issue(name, "user of "+name, "group", hosts...)
	if err != nil {
		t.Fatal(err)
	}
	p, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return p.Leaf
}

func TestPollTellsWhatWasMissing(t *testing.T) {
	missing, hopeless := errors.New("no such thing yet"), errors.New("never")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	calls := 0
	err := poll(ctx, func(ctx context.Context) error {
		if calls++; calls == 2 {
			cancel()
			return ctx.Err()
		}
		return missing
	})
	if !errors.Is(err, context.Canceled) || !errors.Is(err, missing) {
		t.Errorf("poll that was cut off: %v, want %v in it", err, missing)
	}
	calls = 0
	if err := poll(t.Context(), func(context.Context) error { calls++; return Hopeless(hopeless) }); !errors.Is(err, hopeless) || calls != 1 {
		t.Errorf("hopeless poll: %v after %d calls", err, calls)
	}
	calls = 0
	if err := poll(t.Context(), func(context.Context) error {
		if calls++; calls < 3 {
			return missing
		}
		return nil
	}); err != nil || calls != 3 {
		t.Errorf("poll: %v after %d calls", err, calls)
	}
}

func TestBuildsWaitForEachOther(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lab.LockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := lab.LockFile(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("lock that is held: %v", err)
	}
	unlock()
	unlock, err = lab.LockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

// TestPins reads the modules that pin the programs, and needs no network: versions are in go.mod.
func TestPins(t *testing.T) {
	source, err := buildDir()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range components() {
		data, err := os.ReadFile(filepath.Join(source, c.dir, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"\t" + c.module + " v", strings.TrimSuffix(c.module+"/"+c.pkg, "/") + "\n"} {
			if !strings.Contains(string(data), want) {
				t.Errorf("%s/go.mod does not have %q for %s", c.dir, want, c.name)
			}
		}
	}
}

func TestForwarderCarriesBothWays(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("entering a network namespace needs root")
	}
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := echo.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(conn, conn)
			conn.Close()
		}
	}()
	defer func() { echo.Close(); <-served }()
	// The test's own namespace serves as well as a lab's.
	f, err := newForwarder("/proc/thread-self/ns/net", echo.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	conn, err := net.Dial("tcp", f.address())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v; want hello", got, err)
	}
	open, err := net.Dial("tcp", f.address())
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	f.close() // ends connections, too
	if n, err := open.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes from a forwarder that is closed", n)
	}
}
