package lab

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLengthenRegisters(t *testing.T) {
	call := []byte{
		0x48, 0xc7, 0x45, 0xf8, 0x88, 0x0a, 0, 0, // movq $2696, -8(%rbp)
		0xbf, 0x05, 0x42, 0, 0, // mov $PTRACE_SETREGSET, %edi
	}
	get := []byte{0x48, 0xc7, 0x45, 0xf8, 0x88, 0x0a, 0, 0, 0xbf, 0x04, 0x42, 0, 0}
	padding := bytes.Repeat([]byte{0x90}, 64)
	kernel := bytes.Join([][]byte{padding, get, padding, call, padding}, nil)
	want := bytes.Clone(kernel)
	at := bytes.Index(want, call)
	copy(want[at+4:], []byte{0x00, 0x40, 0, 0})
	if err := lengthenRegisters(kernel); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(kernel, want) {
		t.Errorf("got  % x\nwant % x", kernel, want)
	}
	for name, kernel := range map[string][]byte{
		"no call":   append(bytes.Clone(padding), get...),
		"two calls": bytes.Join([][]byte{call, padding, call}, nil),
		"empty":     nil,
	} {
		if err := lengthenRegisters(kernel); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestGuestPath(t *testing.T) {
	for in, want := range map[string]string{
		"/usr/bin/true":   "/usr/bin/true",
		"/tmp":            "/host/tmp",
		"/tmp/x/../y":     "/host/tmp/y",
		"/tmpfiles":       "/tmpfiles",
		"/var/lib/nfs/x":  "/host/var/lib/nfs/x",
		"/var/lib/nfsx":   "/var/lib/nfsx",
		"/srv/../run/abc": "/host/run/abc",
	} {
		if got := GuestPath(in); got != want {
			t.Errorf("GuestPath(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestValidName(t *testing.T) {
	for name, ok := range map[string]bool{
		"server": true, "client-1": true, "9": true,
		"": false, "-x": false, "Server": false, "a/b": false, "a b": false, strings.Repeat("x", 33): false,
	} {
		if err := validName(name); (err == nil) != ok {
			t.Errorf("validName(%q) = %v", name, err)
		}
	}
}

func TestAddresses(t *testing.T) {
	if got, want := guestIPv4(0), "10.97.0.10"; got != want {
		t.Errorf("IPv4 %s, want %s", got, want)
	}
	if got, want := guestIPv6(0), "fd00:97::a"; got != want {
		t.Errorf("IPv6 %s, want %s", got, want)
	}
}

func TestOwner(t *testing.T) {
	start, err := processStart(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !(owner{PID: os.Getpid(), Start: start}).lives() {
		t.Error("this process does not live")
	}
	if (owner{PID: os.Getpid(), Start: start + 1}).lives() {
		t.Error("a process with another start time lives")
	}
}

func TestTail(t *testing.T) {
	var tl tail
	for range 1000 {
		_, _ = tl.Write([]byte("0123456789"))
	}
	_, _ = tl.Write([]byte("end"))
	if got := tl.String(); len(got) != tailSize || !strings.HasSuffix(got, "789end") {
		t.Errorf("tail of %d bytes ends in %q", len(got), got[len(got)-6:])
	}
	if got := lastLines("a\nb\nc\n", 2); got != "b\nc" {
		t.Errorf("last lines %q", got)
	}
}

func TestRemoveOldAgents(t *testing.T) {
	cache := t.TempDir()
	now := time.Now()
	for name, age := range map[string]time.Duration{"agent-old": 48 * time.Hour, "agent-new": time.Minute, "linux-old": 48 * time.Hour} {
		path := filepath.Join(cache, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, now, now.Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeOldAgents(cache, now.Add(-24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(cache, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{filepath.Join(cache, "agent-new"), filepath.Join(cache, "linux-old")}, left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}
