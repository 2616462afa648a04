package mount

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

// TestLab runs every test of this package in a guest of the lab, against a real
// NFS server in another guest.
func TestLab(t *testing.T) {
	if os.Getenv("LAB") != "1" {
		t.Skip("starts virtual machines and needs root; run it with: LAB=1 go test ./pkg/nfs/mount/ -run TestLab")
	}
	l, err := lab.Start(t.Context(), lab.Options{Name: "mount", Log: testLog{t}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	program := filepath.Join(l.OutDir(), "mount.test")
	if err := lab.GoTestBuild(t.Context(), program, "github.com/nfs-csi/nfs-csi-driver/pkg/nfs/mount"); err != nil {
		t.Fatal(err)
	}
	server, err := l.StartServer(t.Context(), lab.ServerSpec{Exports: []lab.ExportSpec{
		{Path: "/export/tmpfs", FS: lab.Tmpfs, SizeMB: 256},
		{Path: "/export/denied", FS: lab.Tmpfs, SizeMB: 16, Clients: "192.0.2.7"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	client, err := l.StartGuest(t.Context(), lab.GuestSpec{Name: "client"})
	if err != nil {
		t.Fatal(err)
	}
	// LAB_RUN chooses among the tests in the guest.
	err = client.Run(t.Context(), lab.Cmd{
		Args: []string{"/out/mount.test", "-test.v", "-test.timeout=5m", "-test.run=" + os.Getenv("LAB_RUN")},
		Env: []string{"LAB_SERVER=" + server.IPv4(), "LAB_SERVER6=" + server.IPv6(), "LAB_SERVER_NAME=" + server.Name(),
			"LAB_EXPORT=/export/tmpfs", "LAB_DENIED=/export/denied"},
		Stdout: testLog{t}, Stderr: testLog{t},
	})
	if err != nil {
		t.Errorf("the tests in the guest: %v", err)
	}
}

// testLog sends lines to the test's log.
type testLog struct{ t *testing.T }

func (w testLog) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}
