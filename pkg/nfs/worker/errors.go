package worker

import (
	"context"
	"errors"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/worker/workerpb"
)

// remoteError is an error of the worker process, rebuilt on this side.
type remoteError struct {
	message string
	cause   error // a sentinel or context error, or nil
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.cause }

// encodeError makes a handler's error into a gRPC status that keeps its text
// and its sentinel.
func encodeError(err error) error {
	code := codes.Unknown
	switch {
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	}
	st, detailErr := status.New(code, "").WithDetails(&workerpb.ErrorDetail{
		Sentinel: sentinelName(err),
		Message:  []byte(err.Error()),
	})
	if detailErr != nil {
		return status.Error(codes.Internal, detailErr.Error())
	}
	return st.Err()
}

// decodeError is the inverse of encodeError. answered is false when the error
// did not come from a handler of the worker but from the connection to it.
func decodeError(err error) (_ error, answered bool) {
	st, _ := status.FromError(err)
	for _, d := range st.Details() {
		detail, ok := d.(*workerpb.ErrorDetail)
		if !ok {
			continue
		}
		cause := nfs.Sentinels()[detail.GetSentinel()]
		if cause == nil {
			switch st.Code() {
			case codes.Canceled:
				cause = context.Canceled
			case codes.DeadlineExceeded:
				cause = context.DeadlineExceeded
			}
		}
		return &remoteError{message: string(detail.GetMessage()), cause: cause}, true
	}
	return err, false
}

// sentinelName returns the name of the sentinel that err wraps, or "". Should
// it wrap several, the first in the order of names is taken, so that the
// answer never flaps.
func sentinelName(err error) string {
	var names []string
	for name, sentinel := range nfs.Sentinels() {
		if errors.Is(err, sentinel) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return slices.Min(names)
}

// encodeErrors is the worker's interceptor.
func encodeErrors(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	resp, err := handler(ctx, req)
	if err != nil {
		return nil, encodeError(err)
	}
	return resp, nil
}
