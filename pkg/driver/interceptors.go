package driver

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// logCalls returns the interceptor that gives every call a logger with its
// request id, method, volume and export, and logs how it ended. It logs fields
// that it picks, never a request: those may hold secrets.
func logCalls(base klog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		logger := klog.LoggerWithValues(base, callFields(req, info.FullMethod)...)
		start := time.Now()
		resp, err := handler(klog.NewContext(ctx, logger), req)

		duration, code := time.Since(start), status.Code(err)
		switch {
		case err == nil:
			logger.V(verbosity(req)).Info("Call succeeded", "duration", duration, "code", code.String())
		case code == codes.Internal || code == codes.Unknown:
			logger.Error(errors.New(status.Convert(err).Message()), "Call failed", "duration", duration, "code", code.String())
		case code == codes.Unimplemented:
			logger.V(4).Info("Call is not implemented", "duration", duration, "code", code.String())
		default:
			logger.Info("Call failed", "duration", duration, "code", code.String(), "err", status.Convert(err).Message())
		}
		return resp, err
	}
}

// verbosity is the level at which a success is logged: 2 for calls that change
// something, 4 for those that are asked again and again.
func verbosity(req any) int {
	if len(claimsOf(req)) > 0 {
		return 2
	}
	return 4
}

// callFields returns what identifies a call in the log.
func callFields(req any, method string) []any {
	fields := []any{"requestID", requestID(), "method", method[strings.LastIndex(method, "/")+1:]}
	volume, export := subject(req)
	if volume != "" {
		fields = append(fields, "volume", volume)
	}
	if export != "" {
		fields = append(fields, "export", export)
	}
	switch r := req.(type) {
	case *csi.CreateSnapshotRequest:
		fields = append(fields, "snapshot", r.GetName())
	case interface{ GetSnapshotId() string }:
		fields = append(fields, "snapshot", r.GetSnapshotId())
	}
	if r, ok := req.(interface{ GetTargetPath() string }); ok && r.GetTargetPath() != "" {
		fields = append(fields, "targetPath", r.GetTargetPath())
	}
	return fields
}

func requestID() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails, says its documentation
	return hex.EncodeToString(b[:])
}

// subject returns the volume and the export that a request is about, as far as
// it can be told without asking anybody.
func subject(req any) (volume, export string) {
	if r, ok := req.(*csi.CreateVolumeRequest); ok {
		if p, err := parseParameters(r.GetParameters()); err == nil {
			if e, err := p.export(nil); err == nil {
				export = e.String()
			}
		}
		return r.GetName(), export
	}
	switch r := req.(type) {
	case interface{ GetVolumeId() string }:
		volume = r.GetVolumeId()
	case interface{ GetSourceVolumeId() string }:
		volume = r.GetSourceVolumeId()
	case interface{ GetSnapshotId() string }:
		if h, err := nfs.ParseSnapshotHandle(r.GetSnapshotId()); err == nil {
			export = h.Export.String()
		}
		return "", export
	default:
		return "", ""
	}
	if c, ok := req.(interface{ GetVolumeContext() map[string]string }); ok {
		if l, err := locateVolume(volume, c.GetVolumeContext(), nil); err == nil {
			return volume, l.export.String()
		}
	}
	if h, err := nfs.ParseHandle(volume); err == nil {
		export = h.Export.String()
	}
	return volume, export
}

// recoverPanics turns a panic of a handler into codes.Internal: one broken call
// must not end all others.
func recoverPanics(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (_ any, err error) {
	defer func() {
		if p := recover(); p != nil {
			klog.FromContext(ctx).Error(nil, "Panic in a call", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = status.Errorf(codes.Internal, "the driver failed in this call, which is a bug: %v; its log holds the stack", p)
		}
	}()
	return handler(ctx, req)
}
