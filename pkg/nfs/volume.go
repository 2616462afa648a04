package nfs

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"strings"
	"time"
)

// OnDelete says what becomes of a volume's directory when the volume is deleted.
type OnDelete string

// The ways to delete a volume.
const (
	// Delete moves the directory to the trash, to be unlinked in the background.
	Delete OnDelete = "delete"
	// Retain leaves the directory where it is and forgets the volume.
	Retain OnDelete = "retain"
	// Archive renames the directory to "archived-<name>-<time>-<id>" beside it.
	Archive OnDelete = "archive"
)

// ParseOnDelete reads an onDelete parameter; the empty string means Delete.
func ParseOnDelete(s string) (OnDelete, error) {
	switch o := OnDelete(strings.ToLower(s)); o {
	case "":
		return Delete, nil
	case Delete, Retain, Archive:
		return o, nil
	}
	return "", fmt.Errorf("%w: onDelete %q is none of delete, retain, archive", ErrInvalid, s)
}

// DefaultMode is the mode of a volume's directory when nothing else is asked for.
const DefaultMode fs.FileMode = 0o755

// VolumeSpec is what a volume is asked to be. Two creates of one name are the
// same request if, and only if, their specs are Compatible.
type VolumeSpec struct {
	// Name is the name that the orchestrator gave the volume; the key of idempotency.
	Name string
	// Dir is the volume's directory, relative to the share, clean, checked by CheckSubDir.
	Dir string
	// MinBytes and MaxBytes bound the capacity; MaxBytes 0 means no bound.
	// The capacity that a new volume gets is MinBytes.
	MinBytes, MaxBytes int64
	OnDelete           OnDelete
	// ArchiveRetention is how long the volume's archive is kept, should it become
	// one; 0 means for ever.
	ArchiveRetention time.Duration
	// Mode holds the permission, setuid, setgid and sticky bits as fs.FileMode has
	// them. With a Source, 0 keeps those of the source.
	Mode fs.FileMode
	// UID and GID own the directory; nil leaves what the server gives.
	UID, GID *uint32
	// Claim names the PVC behind the volume, if it is known.
	Claim Claim
	// RestoreArchive is the id or the original name of the archived volume whose
	// directory this one takes over; empty for a new directory. Mode 0 then leaves
	// the mode as it is.
	RestoreArchive string
	// Source is what the volume is a copy of at first, if of anything.
	Source Source
	// Shared lets other volumes that say so have the same directory. It is made with
	// the first, which gives it owner and mode, and goes as the last of them says.
	Shared bool
}

// Claim is the PersistentVolumeClaim that a volume was made for.
type Claim struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
}

// Volume is a volume as its record tells it.
type Volume struct {
	// ID is the record id, unique on its export.
	ID string
	// Name is the name that the orchestrator gave it.
	Name string
	// Dir is its directory, relative to the share.
	Dir string
	// CapacityBytes is the size that was asked for; 0 when none was.
	CapacityBytes    int64
	OnDelete         OnDelete
	ArchiveRetention time.Duration
	Mode             fs.FileMode
	UID, GID         *uint32
	Claim            Claim
	// RestoredArchive and RestoredName are the id and the original name of the archive
	// that the volume was made from, if it was.
	RestoredArchive, RestoredName string
	Source                        Source
	Shared                        bool
	Created                       time.Time
}

// Incompatible says in words why the existing volume v does not answer a
// request for spec, or "" when it does.
func (v Volume) Incompatible(spec VolumeSpec) string {
	switch {
	case v.Name != spec.Name:
		return fmt.Sprintf("it was made for the name %q", v.Name)
	case v.Dir != spec.Dir:
		return fmt.Sprintf("its directory is %q, not %q", v.Dir, spec.Dir)
	case v.CapacityBytes < spec.MinBytes:
		return fmt.Sprintf("its capacity is %d bytes, less than the %d required", v.CapacityBytes, spec.MinBytes)
	case spec.MaxBytes > 0 && v.CapacityBytes > spec.MaxBytes:
		return fmt.Sprintf("its capacity is %d bytes, more than the limit of %d", v.CapacityBytes, spec.MaxBytes)
	case v.OnDelete != spec.OnDelete:
		return fmt.Sprintf("its onDelete is %q, not %q", v.OnDelete, spec.OnDelete)
	case (v.RestoredArchive == "") != (spec.RestoreArchive == ""), spec.RestoreArchive != "" && spec.RestoreArchive != v.RestoredArchive && spec.RestoreArchive != v.RestoredName:
		return fmt.Sprintf("it was made from the archive %q, not from %q", v.RestoredArchive, spec.RestoreArchive)
	case v.Shared != spec.Shared:
		return fmt.Sprintf("for the parameter shared it has %v, not %v", v.Shared, spec.Shared)
	case v.ArchiveRetention != spec.ArchiveRetention:
		return fmt.Sprintf("its archiveRetention is %s, not %s", retentionText(v.ArchiveRetention), retentionText(spec.ArchiveRetention))
	case v.Mode != spec.Mode:
		return fmt.Sprintf("its mountPermissions are %#o, not %#o", UnixMode(v.Mode), UnixMode(spec.Mode))
	case !equalID(v.UID, spec.UID):
		return "its uid differs"
	case !equalID(v.GID, spec.GID):
		return "its gid differs"
	case !v.Source.Same(spec.Source):
		return fmt.Sprintf("it was made from %s, not from %s", v.Source.words(), spec.Source.words())
	}
	return ""
}

func retentionText(d time.Duration) string {
	if d == 0 {
		return "for ever"
	}
	return d.String()
}

// VolumeChange is what is to change about a volume; zero fields stay as they are.
type VolumeChange struct {
	// MinBytes is the capacity that the volume is to have at least, and MaxBytes,
	// unless it is 0, what it may have at most. A volume never shrinks.
	MinBytes, MaxBytes int64
	OnDelete           *OnDelete
	// ArchiveRetention needs a volume whose OnDelete is, or becomes, Archive; another
	// OnDelete ends it. 0 means for ever.
	ArchiveRetention *time.Duration
	// Mode, UID and GID are also given to the directory, each if it is not nil.
	Mode     *fs.FileMode
	UID, GID *uint32
}

// Apply returns the volume as the change makes it. It fails with ErrOutOfRange
// when the volume would have more than MaxBytes, and with ErrInvalid when there is
// nothing that its ArchiveRetention could count for.
func (c VolumeChange) Apply(v Volume) (Volume, error) {
	if v.CapacityBytes = max(v.CapacityBytes, c.MinBytes); c.MaxBytes > 0 && v.CapacityBytes > c.MaxBytes {
		return v, fmt.Errorf("%w: the volume has %d bytes and cannot shrink to the limit of %d", ErrOutOfRange, v.CapacityBytes, c.MaxBytes)
	}
	if c.OnDelete != nil {
		v.OnDelete = *c.OnDelete
	}
	if c.ArchiveRetention != nil {
		v.ArchiveRetention = *c.ArchiveRetention
		if v.OnDelete != Archive {
			return v, fmt.Errorf("%w: archiveRetention needs onDelete archive: with %s nothing is archived", ErrInvalid, v.OnDelete)
		}
	}
	if v.OnDelete != Archive {
		v.ArchiveRetention = 0
	}
	if c.Mode != nil {
		v.Mode = *c.Mode
	}
	if c.UID != nil {
		v.UID = c.UID
	}
	if c.GID != nil {
		v.GID = c.GID
	}
	return v, nil
}

func equalID(a, b *uint32) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

// UnixMode returns the mode bits as chmod(2) takes them.
func UnixMode(m fs.FileMode) uint32 {
	u := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		u |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		u |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		u |= 0o1000
	}
	return u
}

// FileMode is the inverse of UnixMode; bits above 07777 are dropped.
func FileMode(u uint32) fs.FileMode {
	m := fs.FileMode(u & 0o777)
	if u&0o4000 != 0 {
		m |= fs.ModeSetuid
	}
	if u&0o2000 != 0 {
		m |= fs.ModeSetgid
	}
	if u&0o1000 != 0 {
		m |= fs.ModeSticky
	}
	return m
}

// RecordID returns the id of the record of a volume of that name: the name
// itself where it is a plain DNS-like name of at most 63 bytes (as the
// provisioner's "pvc-<uuid>" is), else "x-" and a hash of it. Both can be a
// file name; no two names share an id.
func RecordID(name string) string {
	if isPlainName(name) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "x-" + hex.EncodeToString(sum[:16])
}

func isPlainName(name string) bool {
	if name == "" || len(name) > 63 || strings.HasPrefix(name, "x-") {
		return false
	}
	for i, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z' || '0' <= c && c <= '9':
		case (c == '-' || c == '.') && i > 0 && i < len(name)-1:
		default:
			return false
		}
	}
	return true
}

// CheckRecordID refuses ids that RecordID never gives.
func CheckRecordID(id string) error {
	if isPlainName(id) {
		return nil
	}
	if hash, ok := strings.CutPrefix(id, "x-"); ok && len(hash) == 32 && strings.Trim(hash, "0123456789abcdef") == "" {
		return nil
	}
	return fmt.Errorf("%w: %q is not a record id", ErrInvalid, id)
}

// Usage is the space of the file system behind an export or a mounted volume.
type Usage struct {
	TotalBytes, AvailableBytes, UsedBytes    int64
	TotalInodes, AvailableInodes, UsedInodes int64
}
