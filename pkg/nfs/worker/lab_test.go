package worker

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

// wantPrefix begins a line by which a test in the guest asks the host for a
// fault; the answer on its standard input is a line, empty for success.
const wantPrefix = "LAB-WANT "

// TestLab runs the tests of this package in a guest of the lab, against a real
// NFS server in another guest, whose faults it makes as they ask for them.
func TestLab(t *testing.T) {
	if os.Getenv("LAB") != "1" {
		t.Skip("starts virtual machines and needs root; run it with: LAB=1 go test ./pkg/nfs/worker/ -run TestLab")
	}
	l, err := lab.Start(t.Context(), lab.Options{Name: "worker", Log: testLog{t}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	program := filepath.Join(l.OutDir(), "worker.test")
	if err := lab.GoTestBuild(t.Context(), program, "github.com/nfs-csi/nfs-csi-driver/pkg/nfs/worker"); err != nil {
		t.Fatal(err)
	}
	server, err := l.StartServer(t.Context(), lab.ServerSpec{Exports: []lab.ExportSpec{{Path: "/export/tmpfs", FS: lab.Tmpfs, SizeMB: 256}}})
	if err != nil {
		t.Fatal(err)
	}
	client, err := l.StartGuest(t.Context(), lab.GuestSpec{Name: "client"})
	if err != nil {
		t.Fatal(err)
	}
	pattern := os.Getenv("LAB_RUN")
	if pattern == "" {
		pattern = "TestReal"
	}
	answers, answer := io.Pipe()
	defer answer.Close()
	err = client.Run(t.Context(), lab.Cmd{
		Args:   []string{"/out/worker.test", "-test.v", "-test.timeout=9m", "-test.run=" + pattern},
		Env:    []string{"LAB_SERVER=" + server.IPv4(), "LAB_EXPORT=/export/tmpfs"},
		Stdin:  answers,
		Stdout: &faults{ctx: t.Context(), log: testLog{t}, server: server, answer: answer},
		Stderr: testLog{t},
	})
	if err != nil {
		t.Errorf("the tests in the guest: %v", err)
	}
}

// faults makes the faults that are asked for in what is written to it.
type faults struct {
	ctx    context.Context
	log    io.Writer
	server *lab.Server
	answer io.Writer
	line   []byte
}

func (f *faults) Write(p []byte) (int, error) {
	f.line = append(f.line, p...)
	for {
		i := bytes.IndexByte(f.line, '\n')
		if i < 0 {
			return len(p), nil
		}
		line := string(f.line[:i])
		f.line = f.line[i+1:]
		if _, err := f.log.Write([]byte(line)); err != nil {
			return 0, err
		}
		if want, ok := strings.CutPrefix(line, wantPrefix); ok {
			// In a goroutine: the guest's output must not wait for the fault.
			go func() {
				answer := ""
				if err := f.make(want); err != nil {
					answer = strings.ReplaceAll(err.Error(), "\n", " ")
				}
				// It fails only when the guest's program has ended.
				_, _ = io.WriteString(f.answer, answer+"\n")
			}()
		}
	}
}

func (f *faults) make(want string) error {
	switch want {
	case "stop":
		return f.server.StopNFS(f.ctx)
	case "start":
		return f.server.StartNFS(f.ctx)
	case "cut":
		return f.server.CutNetwork(f.ctx)
	case "restore":
		return f.server.RestoreNetwork(f.ctx)
	}
	return fmt.Errorf("the fault %q is not known", want)
}

// fault asks the host for a fault and returns when it is there.
func fault(t *testing.T, want string) {
	t.Helper()
	fmt.Println(wantPrefix + want)
	// Exactly one line is in flight at a time, so nothing is lost in the buffer.
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if line = strings.TrimSpace(line); err != nil || line != "" {
		t.Fatalf("fault %s: %q, %v", want, line, err)
	}
}

// testLog sends lines to the test's log.
type testLog struct{ t *testing.T }

func (w testLog) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}
