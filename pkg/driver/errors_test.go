package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// TestEverySentinelHasACode sees to it that a new sentinel does not become
// Internal unnoticed.
func TestEverySentinelHasACode(t *testing.T) {
	for name, sentinel := range nfs.Sentinels() {
		if code := codeOf(fmt.Errorf("some call: %w", sentinel)); code == codes.Internal {
			t.Errorf("sentinel %q has no code of its own", name)
		}
	}
}

// TestErrorCodes checks each row of the error table through gRPC.
func TestErrorCodes(t *testing.T) {
	tests := []struct {
		name  string
		err   error
		code  codes.Code
		parts []string
	}{
		{"invalid", fmt.Errorf("%w: bad thing", nfs.ErrInvalid), codes.InvalidArgument, []string{"bad thing"}},
		{"not found", fmt.Errorf("%w: gone", nfs.ErrNotFound), codes.NotFound, []string{"gone"}},
		{"incompatible", fmt.Errorf("%w: its directory is %q", nfs.ErrConflict, "b"), codes.AlreadyExists, []string{`its directory is "b"`}},
		{"busy", nfs.ErrBusy, codes.Aborted, nil},
		{"access denied", fmt.Errorf("%w: root_squash", nfs.ErrPermission), codes.PermissionDenied, []string{"root_squash"}},
		{"no record", fmt.Errorf("%w: no record", nfs.ErrForeign), codes.FailedPrecondition, []string{"no record"}},
		{"no export", fmt.Errorf("%w: /data", nfs.ErrNoExport), codes.FailedPrecondition, []string{"/data"}},
		{"full", nfs.ErrFull, codes.ResourceExhausted, nil},
		{"out of range", nfs.ErrOutOfRange, codes.OutOfRange, nil},
		{"server down", fmt.Errorf("%w: no answer in 30s", nfs.ErrUnavailable), codes.Unavailable, []string{"no answer in 30s"}},
		{"stale", nfs.ErrStale, codes.Unavailable, nil},
		{"our own time limit", fmt.Errorf("worker: %w", context.DeadlineExceeded), codes.Unavailable, nil},
		{"other", fmt.Errorf("fsync: %w", errors.New("input/output error")), codes.Internal, []string{"fsync: input/output error"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := serve(t, Config{Stores: oneStore(&fakeStore{
				create: func(context.Context, nfs.VolumeSpec) (nfs.Volume, error) { return nfs.Volume{}, tt.err },
				delete: func(context.Context, string, string) error { return tt.err },
			})})
			_, err := c.CreateVolume(t.Context(), createRequest())
			wantStatus(t, err, tt.code, append(tt.parts, "10.0.0.1:/data", `"pvc-1"`)...)
			_, err = c.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: testHandle})
			wantStatus(t, err, tt.code, append(tt.parts, "10.0.0.1:/data", `"pvc-1"`)...)
		})
	}
}

// TestOpenErrors: what goes wrong on the way to the export names it too.
func TestOpenErrors(t *testing.T) {
	stores := &fakeStores{
		open: func(context.Context, nfs.Export) (Store, error) {
			return nil, fmt.Errorf("%w: refused", nfs.ErrPermission)
		},
		exports: func() []nfs.Export { return []nfs.Export{{Server: "10.0.0.1", Share: "/data"}} },
	}
	c := serve(t, Config{Stores: stores})
	for name, call := range map[string]func() error{
		"create": func() error { _, err := c.CreateVolume(t.Context(), createRequest()); return err },
		"delete": func() error {
			_, err := c.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: testHandle})
			return err
		},
		"get": func() error {
			_, err := c.ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: testHandle})
			return err
		},
		"list":     func() error { _, err := c.ListVolumes(t.Context(), &csi.ListVolumesRequest{}); return err },
		"capacity": func() error { _, err := c.GetCapacity(t.Context(), &csi.GetCapacityRequest{}); return err },
	} {
		t.Run(name, func(t *testing.T) {
			wantStatus(t, call(), codes.PermissionDenied, "10.0.0.1:/data", "refused")
		})
	}
}

// TestCallerGivesUp tells the caller's deadline from an export that is slow.
func TestCallerGivesUp(t *testing.T) {
	entered := make(chan struct{}, 1)
	ended := make(chan error, 1)
	c := serve(t, Config{Stores: oneStore(&fakeStore{
		delete: func(ctx context.Context, _, _ string) error {
			entered <- struct{}{}
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		},
	})})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: testHandle})
	wantStatus(t, err, codes.DeadlineExceeded)
	<-entered
	<-ended
	// Whether the server hears of the deadline or of the reset stream first is
	// a matter of luck; either way it is not the export's fault.
	eventually(t, func() (bool, string) {
		s := c.logs.String()
		return strings.Contains(s, `code="DeadlineExceeded"`) || strings.Contains(s, `code="Canceled"`), s
	})
}

func TestStatusErrorOfEndedContext(t *testing.T) {
	expired, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name string
		ctx  context.Context
		err  error
		code codes.Code
	}{
		{"deadline of the caller", expired, context.DeadlineExceeded, codes.DeadlineExceeded},
		{"deadline of the caller, told as unavailable", expired, nfs.ErrUnavailable, codes.DeadlineExceeded},
		{"the caller went away", canceled, context.Canceled, codes.Canceled},
		{"the answer was clear all the same", expired, nfs.ErrNotFound, codes.NotFound},
		{"a limit of ours", t.Context(), context.DeadlineExceeded, codes.Unavailable},
	} {
		wantStatus(t, statusError(tt.ctx, fmt.Errorf("x: %w", tt.err)), tt.code, "x: "+tt.err.Error())
	}
}

func TestPanicBecomesInternal(t *testing.T) {
	c := serve(t, Config{Stores: oneStore(&fakeStore{
		get: func(context.Context, string) (nfs.Volume, error) { panic("boom") },
	})})
	_, err := c.ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: testHandle})
	wantStatus(t, err, codes.Internal, "boom")
	eventually(t, func() (bool, string) {
		s := c.logs.String()
		return strings.Contains(s, "Panic in a call") && strings.Contains(s, "errors_test.go"), s
	})
	if _, err := c.Probe(t.Context(), &csi.ProbeRequest{}); err != nil {
		t.Errorf("the server does not answer after a panic: %v", err)
	}
}

func TestUnimplemented(t *testing.T) {
	c := serve(t, Config{Stores: &fakeStores{}, Mounter: &fakeMounts{}, NodeID: "n"})
	_, err := c.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{VolumeId: testHandle})
	wantStatus(t, err, codes.Unimplemented)
	_, err = c.ControllerPublishVolume(t.Context(), &csi.ControllerPublishVolumeRequest{VolumeId: testHandle})
	wantStatus(t, err, codes.Unimplemented)
	_, err = serve(t, Config{Stores: &fakeStores{}}).NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
	wantStatus(t, err, codes.Unimplemented)
}
