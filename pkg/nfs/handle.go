package nfs

import (
	"fmt"
	"strings"
)

// Handle is what the orchestrator keeps of a volume: enough to delete it with
// no Secret and no StorageClass.
type Handle struct {
	Export Export
	// ID is the record id.
	ID string
	// Dir is set only for handles of csi-driver-nfs, which carry the directory
	// instead of relying on a record.
	Dir string
	// legacy holds the fields that only the other driver's handles have.
	legacy legacyFields
}

type legacyFields struct {
	set            bool
	uuid, onDelete string
}

// Legacy reports whether the handle was made by kubernetes-csi/csi-driver-nfs.
func (h Handle) Legacy() bool { return h.legacy.set }

const handleVersion = "v1"

// String formats the handle; ParseHandle(h.String()) gives h again. The form is
// "v1:<server>:<share>:<options>:<id>", each part percent-encoded.
func (h Handle) String() string {
	if h.legacy.set {
		return strings.Join([]string{h.Export.Server, strings.TrimPrefix(h.Export.Share, "/"), h.Dir, h.legacy.uuid, h.legacy.onDelete}, "#")
	}
	return formatHandle(handleVersion, h.Export, h.ID)
}

func formatHandle(version string, export Export, id string) string {
	return strings.Join([]string{
		version,
		escape(export.Server),
		escape(export.Share),
		escape(strings.Join(export.Options, ",")),
		escape(id),
	}, ":")
}

// ParseHandle reads a handle of this driver, or one of csi-driver-nfs. It
// refuses, with ErrInvalid, unknown versions and everything that String would
// have written differently.
func ParseHandle(s string) (Handle, error) {
	if strings.Contains(s, "#") {
		return parseLegacyHandle(s)
	}
	export, id, err := parseHandle("volume", handleVersion, s)
	if err != nil {
		return Handle{}, err
	}
	return Handle{Export: export, ID: id}, nil
}

// parseHandle is the inverse of formatHandle.
func parseHandle(kind, version, s string) (Export, string, error) {
	fail := func(err error) (Export, string, error) { return Export{}, "", err }
	parts := strings.Split(s, ":")
	if parts[0] != version {
		return fail(fmt.Errorf("%w: %s handle %q is of no version that this driver knows", ErrInvalid, kind, s))
	}
	if len(parts) != 5 {
		return fail(fmt.Errorf("%w: %s handle %q has %d parts, not 5", ErrInvalid, kind, s, len(parts)))
	}
	for i, p := range parts {
		u, err := unescape(p)
		if err != nil {
			return fail(fmt.Errorf("%w: %s handle %q: %w", ErrInvalid, kind, s, err))
		}
		parts[i] = u
	}
	var options []string
	if parts[3] != "" {
		options = []string{parts[3]}
	}
	export, err := NewExport(parts[1], parts[2], options)
	if err != nil {
		return fail(fmt.Errorf("%s handle %q: %w", kind, s, err))
	}
	if err := CheckRecordID(parts[4]); err != nil {
		return fail(fmt.Errorf("%s handle %q: %w", kind, s, err))
	}
	if proper := formatHandle(version, export, parts[4]); proper != s {
		return fail(fmt.Errorf("%w: %s handle %q is not in its one proper form %q", ErrInvalid, kind, s, proper))
	}
	return export, parts[4], nil
}

// parseLegacyHandle reads "server#share#subDir#uuid#onDelete", the handle of
// kubernetes-csi/csi-driver-nfs, whose later parts may be missing. Its names
// are not escaped, so a handle with any further "#" is ambiguous and refused.
func parseLegacyHandle(s string) (Handle, error) {
	parts := strings.Split(s, "#")
	if len(parts) < 3 || len(parts) > 5 {
		return Handle{}, fmt.Errorf("%w: volume handle %q is not server#share#subDir#uuid#onDelete", ErrInvalid, s)
	}
	for len(parts) < 5 {
		parts = append(parts, "")
	}
	share := "/" + strings.Trim(parts[1], "/")
	export, err := NewExport(parts[0], share, nil)
	if err != nil {
		return Handle{}, fmt.Errorf("volume handle %q: %w", s, err)
	}
	dir := strings.TrimSuffix(parts[2], "/")
	if err := CheckSubDir(dir); err != nil {
		return Handle{}, fmt.Errorf("volume handle %q: %w", s, err)
	}
	if _, err := ParseOnDelete(parts[4]); err != nil {
		return Handle{}, fmt.Errorf("volume handle %q: %w", s, err)
	}
	// The other driver keeps the volume's name in the uuid part, unless the
	// directory already has that name.
	name := parts[3]
	if name == "" {
		name = dir
	}
	return Handle{
		Export: export,
		ID:     RecordID(name),
		Dir:    dir,
		legacy: legacyFields{set: true, uuid: parts[3], onDelete: parts[4]},
	}, nil
}

const upperhex = "0123456789ABCDEF"

// escape percent-encodes every byte but the unreserved ones of RFC 3986, "/" and ",".
func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if isAlphanumeric(c) || strings.IndexByte("-._~/,=", c) >= 0 {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(upperhex[c>>4])
		b.WriteByte(upperhex[c&15])
	}
	return b.String()
}

func unescape(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", fmt.Errorf("cut-off escape at its end")
		}
		hi, lo := strings.IndexByte(upperhex, s[i+1]), strings.IndexByte(upperhex, s[i+2])
		if hi < 0 || lo < 0 {
			return "", fmt.Errorf("bad escape %q", s[i:i+3])
		}
		b.WriteByte(byte(hi<<4 | lo))
		i += 2
	}
	return b.String(), nil
}
