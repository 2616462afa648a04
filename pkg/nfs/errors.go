package nfs

import "errors"

// Sentinel errors. Every failure that a caller can act upon wraps exactly one
// of them; anything that wraps none is an internal error. pkg/driver maps them
// to gRPC codes in one table, pkg/nfs/worker carries them across the process
// boundary by the names in Sentinels.
var (
	// ErrInvalid: the request itself is wrong and will never work as it stands.
	ErrInvalid = errors.New("invalid request")
	// ErrNotFound: the volume or snapshot, or the source of one, does not exist.
	ErrNotFound = errors.New("not found")
	// ErrConflict: the name is taken by a volume that does not fit the request,
	// or the directory belongs to another volume.
	ErrConflict = errors.New("already exists and does not fit")
	// ErrBusy: an operation for the same volume runs now.
	ErrBusy = errors.New("operation in progress")
	// ErrPermission: the export refuses this client or user, or this process
	// lacks a privilege.
	ErrPermission = errors.New("permission denied")
	// ErrForeign: a directory without our record, or a record of another
	// instance: not ours to touch.
	ErrForeign = errors.New("not owned by this driver")
	// ErrNoExport: the server answers, but does not export the share.
	ErrNoExport = errors.New("no such export")
	// ErrFull: no space or quota left on the export.
	ErrFull = errors.New("no space left on export")
	// ErrOutOfRange: the size cannot be served.
	ErrOutOfRange = errors.New("size out of range")
	// ErrUnavailable: the server is down or slow, the handle is stale, or the
	// worker restarts; the same call may succeed later.
	ErrUnavailable = errors.New("export unavailable")
	// ErrStale: the server no longer knows the file handle behind a mount, as
	// after the directory was removed and made again; mounting anew helps.
	ErrStale = errors.New("stale file handle")
	// ErrBadToken: a listing was continued with a token that no listing gave out.
	ErrBadToken = errors.New("invalid list token")
)

// Sentinels gives every sentinel error a name that is stable on the wire.
func Sentinels() map[string]error {
	return map[string]error{
		"invalid":      ErrInvalid,
		"not-found":    ErrNotFound,
		"conflict":     ErrConflict,
		"busy":         ErrBusy,
		"permission":   ErrPermission,
		"foreign":      ErrForeign,
		"no-export":    ErrNoExport,
		"full":         ErrFull,
		"out-of-range": ErrOutOfRange,
		"unavailable":  ErrUnavailable,
		"stale":        ErrStale,
		"bad-token":    ErrBadToken,
	}
}
