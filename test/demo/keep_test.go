package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// TestMain is also the demo that TestDetach runs.
func TestMain(m *testing.M) {
	if role := os.Getenv("DEMO_ROLE"); role != "" {
		os.Exit(actDemo(role, os.Getenv("DEMO_STATE")))
	}
	goleak.VerifyTestMain(m)
}

// actDemo does what a demo with a leash does, without a cluster.
func actDemo(role, path string) int {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	l := newLeash(os.Stdin)
	ctx = l.context(ctx)
	fmt.Println("the story")
	switch role {
	case "fail":
		fmt.Fprintln(os.Stderr, "it failed")
		return 3
	case "wait":
		<-ctx.Done()
		fmt.Println("stopped")
		return 4
	}
	if err := (state{PID: os.Getpid(), Kept: "the words"}).write(path); err != nil {
		return 5
	}
	l.dropped.Store(true)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 5
	}
	for _, fd := range []int{unix.Stdout, unix.Stderr} {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return 5
		}
	}
	<-ctx.Done()
	return 0
}

func TestDetach(t *testing.T) {
	for _, tt := range []struct {
		role   string
		output string
		exit   int // 0 when the cluster is kept
	}{
		{"fail", "the story\nit failed\n", 3},
		{"wait", "the story\nstopped\n", 4},
		{"keep", "the story\n", 0},
	} {
		t.Run(tt.role, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			demo := exec.Command(os.Args[0])
			path := filepath.Join(t.TempDir(), "state")
			demo.Env = append(os.Environ(), "DEMO_ROLE="+tt.role, "DEMO_STATE="+path)
			out := &watched{says: "the story\n", then: func() {
				if tt.role == "wait" {
					cancel()
				}
			}}
			err := detach(ctx, demo, path, out)
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				t.Error("it took a minute")
			}
			var exit *exec.ExitError
			if tt.exit != 0 && (!errors.As(err, &exit) || exit.ExitCode() != tt.exit) {
				t.Errorf("detach returned %v, want exit status %d", err, tt.exit)
			}
			if got := out.shown.String(); got != tt.output {
				t.Errorf("it showed %q, want %q", got, tt.output)
			}
			if tt.exit != 0 {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			// The leash is closed, and it runs on until it is told to end.
			if err := demo.Process.Signal(syscall.SIGTERM); err != nil {
				t.Errorf("the demo does not run any more: %v", err)
			}
			if err := demo.Wait(); err != nil {
				t.Errorf("told to end: %v", err)
			}
		})
	}
}

// watched calls then when a text has been written to it.
type watched struct {
	shown bytes.Buffer
	says  string
	then  func()
}

func (w *watched) Write(p []byte) (int, error) {
	n, err := w.shown.Write(p)
	if strings.Contains(w.shown.String(), w.says) {
		w.then()
	}
	return n, err
}

func TestClaim(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	release, err := claim(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(words ...string) {
		t.Helper()
		_, err := claim(path)
		for _, w := range words {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("a second claim: %v, want %q in it", err, w)
			}
		}
	}
	refused("another demo runs", fmt.Sprint(os.Getpid()), "make demo-stop")
	if err := (state{PID: os.Getpid(), Kept: "export KUBECONFIG"}).write(path); err != nil {
		t.Fatal(err)
	}
	refused("is up", "make demo-stop", "export KUBECONFIG")
	release()
	release, err = claim(path)
	if err != nil {
		t.Fatalf("a claim after the demo's end: %v", err)
	}
	defer release()
	refused("another demo runs")
}

func TestLeash(t *testing.T) {
	for _, dropped := range []bool{false, true} {
		held, end := io.Pipe()
		outer, cancel := context.WithTimeout(t.Context(), time.Minute)
		l := newLeash(held)
		ctx := l.context(outer)
		l.dropped.Store(dropped)
		if ctx.Err() != nil {
			t.Fatal("it ends before the leash")
		}
		end.Close()
		if dropped {
			cancel()
		}
		<-ctx.Done()
		if got := outer.Err() != nil; got != dropped {
			t.Errorf("dropped %t: the outer context has ended: %t", dropped, got)
		}
		cancel()
	}
}

func TestShell(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "socket")
	began := make(chan struct{})
	closeShell, err := serveShell(socket, func(ctx context.Context, args ...string) (string, error) {
		switch args[0] {
		case "ls":
			return strings.Join(args, "\n"), nil
		case "hang":
			close(began)
			<-ctx.Done()
			return "", ctx.Err()
		}
		return "some output\n", errors.New("exit code 2: no such program")
	})
	if err != nil {
		t.Fatal(err)
	}
	defer closeShell()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	if err := ask(ctx, socket, []string{"ls", "-l", "a file"}, &out); err != nil || out.String() != "ls\n-l\na file" {
		t.Errorf("ls: %q, %v", out.String(), err)
	}
	out.Reset()
	if err := ask(ctx, socket, []string{"else"}, &out); err == nil || err.Error() != "exit code 2: no such program" || out.String() != "some output\n" {
		t.Errorf("a command that fails: %q, %v", out.String(), err)
	}
	stopped, stop := context.WithCancel(ctx)
	go func() {
		<-began
		stop()
	}()
	if err := ask(stopped, socket, []string{"hang"}, &out); !errors.Is(err, context.Canceled) {
		t.Errorf("a command that is interrupted: %v", err)
	}
}

func TestCommandRefuses(t *testing.T) {
	for _, args := range [][]string{{}, {"-version", "v1", "more"}} {
		if err := command(t.Context(), args); err == nil || !strings.Contains(err.Error(), "make demo") {
			t.Errorf("demo %v: %v", args, err)
		}
	}
}
