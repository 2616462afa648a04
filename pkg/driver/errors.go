package driver

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// errPrecondition: the call came before another that it needs, or the node is
// in a state that only the caller can change.
var errPrecondition = errors.New("precondition failed")

// codeOf returns the gRPC code of each error that has one of its own. It is the
// only place where errors become codes.
func codeOf(err error) codes.Code {
	for _, row := range []struct {
		cause error
		code  codes.Code
	}{
		{nfs.ErrInvalid, codes.InvalidArgument},
		{nfs.ErrNotFound, codes.NotFound},
		{nfs.ErrConflict, codes.AlreadyExists},
		{nfs.ErrBusy, codes.Aborted},
		{nfs.ErrBadToken, codes.Aborted},
		{nfs.ErrPermission, codes.PermissionDenied},
		{nfs.ErrForeign, codes.FailedPrecondition},
		{nfs.ErrNoExport, codes.FailedPrecondition},
		{errPrecondition, codes.FailedPrecondition},
		{nfs.ErrFull, codes.ResourceExhausted},
		{nfs.ErrOutOfRange, codes.OutOfRange},
		{nfs.ErrUnavailable, codes.Unavailable},
		{nfs.ErrStale, codes.Unavailable},
		// The caller's own deadline is told apart in statusError: what is left
		// is a limit of ours that passed while a server did not answer.
		{context.DeadlineExceeded, codes.Unavailable},
		{context.Canceled, codes.Unavailable},
	} {
		if errors.Is(err, row.cause) {
			return row.code
		}
	}
	return codes.Internal
}

// statusError turns the error of a handler into a gRPC status. ctx is that of
// the call: when the caller gave up, that is what the status says.
func statusError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	// The generated Unimplemented methods and the recovery answer with a status.
	if s, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		if c := s.GRPCStatus().Code(); c == codes.Unimplemented || c == codes.Internal {
			return err
		}
	}
	code := codeOf(err)
	if code == codes.Unavailable || code == codes.Internal {
		switch ctx.Err() {
		case context.DeadlineExceeded:
			code = codes.DeadlineExceeded
		case context.Canceled:
			code = codes.Canceled
		}
	}
	return status.Error(code, err.Error())
}

// mapErrors is the interceptor that applies statusError to every call.
func mapErrors(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	resp, err := handler(ctx, req)
	if err != nil {
		return nil, statusError(ctx, err)
	}
	return resp, nil
}

func invalidf(format string, args ...any) error {
	return fmt.Errorf("%w: %w", nfs.ErrInvalid, fmt.Errorf(format, args...))
}

// required returns ErrInvalid for the first of the fields that is empty.
// Fields come in pairs of name and value.
func required(pairs ...string) error {
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			return invalidf("%s is missing in the request", pairs[i])
		}
	}
	return nil
}
