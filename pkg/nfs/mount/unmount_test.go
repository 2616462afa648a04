package mount

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// fakeSystem is a mount table and a umount2 that behaves as told.
type fakeSystem struct {
	mu     sync.Mutex
	mounts []string // "id minor place"
	calls  []string
	// answers say what umount2 does for each kind: see umount2.
	plain, force, detach string
	stuck                int
	release              chan struct{}
}

func (s *fakeSystem) mounter(t *testing.T) *Mounter {
	s.release = make(chan struct{})
	m := New(Options{UnmountTimeout: 50 * time.Millisecond})
	m.umount2, m.readMountInfo = s.umount2, s.text
	t.Cleanup(func() {
		close(s.release)
		eventually(t, "every umount2 call is forgotten once it returned", func() bool {
			m.mu.Lock()
			defer m.mu.Unlock()
			return len(m.unmounts) == 0
		})
	})
	return m
}

func (s *fakeSystem) text() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := "1 0 8:1 / / rw - ext4 d rw\n"
	for _, line := range s.mounts {
		f := strings.SplitN(line, " ", 3)
		text += fmt.Sprintf("%s 1 0:%s / %s rw - nfs4 s:/x rw\n", f[0], f[1], f[2])
	}
	return text, nil
}

// umount2 does what the answer for its flags says: "ok", "busy", "perm", "stay"
// (succeeds, but the mount stays), "hang", or "vanish" (hangs after the mount is gone).
func (s *fakeSystem) umount2(target string, flags int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if flags&unix.UMOUNT_NOFOLLOW == 0 {
		return unix.ELOOP
	}
	name, answer := "plain", s.plain
	switch {
	case flags&unix.MNT_FORCE != 0:
		name, answer = "force", s.force
	case flags&unix.MNT_DETACH != 0:
		name, answer = "detach", s.detach
	}
	s.calls = append(s.calls, name)
	remove := func() {
		for i := len(s.mounts) - 1; i >= 0; i-- {
			if strings.HasSuffix(s.mounts[i], " "+target) {
				s.mounts = append(s.mounts[:i:i], s.mounts[i+1:]...)
				return
			}
		}
	}
	switch answer {
	case "ok":
		remove()
	case "busy":
		return unix.EBUSY
	case "perm":
		return unix.EPERM
	case "vanish", "hang":
		if answer == "vanish" {
			remove()
		}
		s.stuck++
		s.mu.Unlock()
		<-s.release
		s.mu.Lock()
		s.stuck--
	}
	return nil
}

func TestUnmount(t *testing.T) {
	tests := []struct {
		name                 string
		mounts               []string
		plain, force, detach string
		want                 []string
		wantErr              error
		wantText             string
	}{
		{name: "none", mounts: []string{"5 9 /other"}},
		{name: "plain", mounts: []string{"5 9 /t"}, plain: "ok", want: []string{"plain"}},
		{name: "stacked", mounts: []string{"5 9 /t", "6 9 /t", "7 10 /t"}, plain: "ok", want: []string{"plain", "plain", "plain"}},
		{name: "in use", mounts: []string{"5 9 /t"}, plain: "busy", detach: "ok", want: []string{"plain", "detach"}},
		{name: "flushing to a dead server", mounts: []string{"5 9 /t"}, plain: "vanish", want: []string{"plain"}},
		{name: "dead server", mounts: []string{"5 9 /t"}, plain: "hang", force: "ok", want: []string{"plain", "force"}},
		{name: "dead server, busy", mounts: []string{"5 9 /t"}, plain: "hang", force: "busy", detach: "ok", want: []string{"plain", "force", "detach"}},
		{name: "dead server, other mounts of it", mounts: []string{"5 9 /t", "6 9 /other"}, plain: "hang", detach: "ok", want: []string{"plain", "detach"}},
		{name: "everything hangs", mounts: []string{"5 9 /t"}, plain: "hang", force: "hang", detach: "hang",
			want: []string{"plain", "force", "detach"}, wantErr: nfs.ErrUnavailable, wantText: "unmount /t: it is still mounted: umount2 does not return"},
		{name: "detach vanishes", mounts: []string{"5 9 /t"}, plain: "busy", detach: "vanish", want: []string{"plain", "detach"}},
		{name: "stays", mounts: []string{"5 9 /t"}, plain: "stay", want: []string{"plain"}, wantErr: nfs.ErrUnavailable, wantText: "still mounted"},
		{name: "not permitted", mounts: []string{"5 9 /t"}, plain: "perm", want: []string{"plain"}, wantErr: nfs.ErrPermission},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &fakeSystem{mounts: tt.mounts, plain: tt.plain, force: tt.force, detach: tt.detach}
			err := s.mounter(t).Unmount(t.Context(), "/t")
			if !errors.Is(err, tt.wantErr) || tt.wantErr != nil && !strings.Contains(err.Error(), tt.wantText) {
				t.Errorf("error %v, want %v that says %q", err, tt.wantErr, tt.wantText)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if diff := cmp.Diff(tt.want, s.calls); diff != "" {
				t.Errorf("calls (-want +got)\n%s", diff)
			}
		})
	}
}

// Callers that come again while a umount2 hangs must not pile up goroutines.
func TestUnmountHangsAreBounded(t *testing.T) {
	s := &fakeSystem{mounts: []string{"5 9 /t"}, plain: "hang", force: "hang", detach: "hang"}
	m := s.mounter(t)
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			for range 2 {
				if err := m.Unmount(context.Background(), "/t"); !errors.Is(err, nfs.ErrUnavailable) {
					t.Errorf("error %v, want ErrUnavailable", err)
				}
			}
		})
	}
	wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stuck != 3 || len(s.calls) != 3 {
		t.Errorf("%d calls hang of %q, want one of each kind", s.stuck, s.calls)
	}
}

// A new mount at a target whose last umount2 still flushes must go away too.
func TestUnmountAgainWhileFlushing(t *testing.T) {
	s := &fakeSystem{mounts: []string{"5 9 /t"}, plain: "vanish", detach: "ok"}
	m := s.mounter(t)
	if err := m.Unmount(t.Context(), "/t"); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.mounts = []string{"6 10 /t", "7 10 /pod"}
	s.mu.Unlock()
	if err := m.Unmount(t.Context(), "/t"); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if diff := cmp.Diff([]string{"7 10 /pod"}, s.mounts); diff != "" {
		t.Errorf("mounts (-want +got)\n%s", diff)
	}
}

// What becomes of the umount2 of an earlier mount says nothing of a new one.
func TestUnmountOfNewMountIsItsOwn(t *testing.T) {
	s := &fakeSystem{mounts: []string{"5 9 /t"}, plain: "vanish"}
	m := s.mounter(t)
	if err := m.Unmount(t.Context(), "/t"); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.mounts, s.calls, s.plain, s.force, s.detach = []string{"6 10 /t"}, nil, "ok", "stay", "stay"
	s.mu.Unlock()
	if err := m.Unmount(t.Context(), "/t"); err != nil {
		t.Error(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if diff := cmp.Diff([]string{"plain"}, s.calls); diff != "" {
		t.Errorf("calls (-want +got)\n%s", diff)
	}
}

func TestUnmountObeysContext(t *testing.T) {
	s := &fakeSystem{mounts: []string{"5 9 /t"}, plain: "hang", force: "hang", detach: "hang"}
	m := s.mounter(t)
	m.options.UnmountTimeout = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := m.Unmount(ctx, "/t"); !errors.Is(err, nfs.ErrUnavailable) {
		t.Errorf("error %v, want ErrUnavailable", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if diff := cmp.Diff([]string{"plain", "force", "detach"}, s.calls); diff != "" {
		t.Errorf("the time was not shared between the steps (-want +got)\n%s", diff)
	}
}
