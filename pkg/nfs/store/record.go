package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

const (
	// recordVersion is raised by every change that an older driver would get wrong.
	recordVersion = 1
	recordLimit   = 64 << 10 // bytes
	recordSuffix  = ".json"

	stateReady = "ready"
)

// record is the document that says what a volume is and whose. No file of it ever
// changes: a changed record is a document of its own (see latest).
type record struct {
	Version  int    `json:"version"`
	Driver   string `json:"driver"`
	Instance string `json:"instance"`
	ID       string `json:"id"`
	Name     string `json:"name"`
	Dir      string `json:"dir"`
	// ParentsCreated is how many of the innermost parents of Dir were made for
	// this volume and may go with it.
	ParentsCreated int          `json:"parentsCreated"`
	CapacityBytes  int64        `json:"capacityBytes"`
	OnDelete       nfs.OnDelete `json:"onDelete"`
	// ArchiveRetention is a duration; empty means for ever.
	ArchiveRetention string    `json:"archiveRetention,omitempty"`
	Mode             string    `json:"mode"` // octal, as chmod(1) takes it
	UID              *uint32   `json:"uid,omitempty"`
	GID              *uint32   `json:"gid,omitempty"`
	Claim            nfs.Claim `json:"claim,omitzero"`
	// Restored is the archive that the volume was made from.
	Restored restored `json:"restored,omitzero"`
	// Source is what the volume was copied from at first.
	Source recordSource `json:"source,omitzero"`
	// Shared is the group of volumes that share the directory.
	Shared  string    `json:"shared,omitempty"`
	State   string    `json:"state"`
	Created time.Time `json:"created"`
	Changed time.Time `json:"changed"`

	// file is what the record was read from.
	file info
	// changes names the directory of the volume's changes, of which this record is
	// the number-th, and none if that is 0.
	changes string
	number  uint64
}

// restored names an archive by its key, and what its volume was called.
type restored struct {
	Archive string `json:"archive,omitempty"`
	Name    string `json:"name,omitempty"`
}

// recordSource is a volume or snapshot, here or on another export.
type recordSource struct {
	// Server, Share and Options are of its export; empty when that is this one.
	Server   string   `json:"server,omitempty"`
	Share    string   `json:"share,omitempty"`
	Options  []string `json:"options,omitempty"`
	Volume   string   `json:"volume,omitempty"`   // record id, or
	Snapshot string   `json:"snapshot,omitempty"` // record id
}

func newRecordSource(s nfs.Source) recordSource {
	return recordSource{Server: s.Export.Server, Share: s.Export.Share, Options: s.Export.Options, Volume: s.Volume, Snapshot: s.Snapshot}
}

func (s recordSource) source() nfs.Source {
	return nfs.Source{Export: nfs.Export{Server: s.Server, Share: s.Share, Options: s.Options}, Volume: s.Volume, Snapshot: s.Snapshot}
}

func (s recordSource) String() string { return s.source().String() }

// is says whether that is the source of a request.
func (s recordSource) is(o nfs.Source) bool { return s.source().Same(o) }

func (s recordSource) check() error {
	if s.Volume != "" && s.Snapshot != "" ||
		s.Volume != "" && nfs.CheckRecordID(s.Volume) != nil || s.Snapshot != "" && nfs.CheckRecordID(s.Snapshot) != nil {
		return fmt.Errorf("its source is %s", s)
	}
	return nil
}

// archiveRecord says where the directory of a volume that was deleted with
// onDelete "archive" has gone, or is about to go.
type archiveRecord struct {
	Version  int       `json:"version"`
	Target   string    `json:"target"`
	Archived time.Time `json:"archived"`
	Volume   record    `json:"volume"`
}

func newRecord(opts Options, spec nfs.VolumeSpec, parentsCreated int, created time.Time) *record {
	return &record{
		Version:          recordVersion,
		Driver:           opts.DriverName,
		Instance:         opts.InstanceID,
		ID:               nfs.RecordID(spec.Name),
		Name:             spec.Name,
		Dir:              spec.Dir,
		ParentsCreated:   parentsCreated,
		CapacityBytes:    spec.MinBytes,
		OnDelete:         spec.OnDelete,
		ArchiveRetention: formatRetention(spec.ArchiveRetention),
		Mode:             formatMode(nfs.UnixMode(spec.Mode)),
		UID:              spec.UID,
		GID:              spec.GID,
		Claim:            spec.Claim,
		State:            stateReady,
		Created:          created,
		Changed:          time.Now().UTC(),
		Source:           newRecordSource(spec.Source),
	}
}

func formatRetention(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return d.String()
}

func formatMode(mode uint32) string { return fmt.Sprintf("%04o", mode) }

func parseMode(s string) (uint32, error) {
	mode, err := strconv.ParseUint(s, 8, 32)
	if err != nil || formatMode(uint32(mode)) != s || mode > 0o7777 {
		return 0, fmt.Errorf("mode %q is not four octal digits", s)
	}
	return uint32(mode), nil
}

func (r *record) key() string { return volumeKey(r.ID, r.Created) }

// volume returns what a checked record says.
func (r *record) volume() nfs.Volume {
	// check has seen to both.
	mode, _ := parseMode(r.Mode)
	retention, _ := nfs.ParseRetention(r.ArchiveRetention)
	return nfs.Volume{
		ID:               r.ID,
		Name:             r.Name,
		Dir:              r.Dir,
		CapacityBytes:    r.CapacityBytes,
		OnDelete:         r.OnDelete,
		ArchiveRetention: retention,
		Mode:             nfs.FileMode(mode),
		UID:              r.UID,
		GID:              r.GID,
		Claim:            r.Claim,
		RestoredArchive:  r.Restored.Archive,
		Shared:           r.Shared != "",
		RestoredName:     r.Restored.Name,
		Created:          r.Created,
		Source:           r.Source.source(),
	}
}

// changed returns the record as the next change makes it.
func (r *record) changed(to nfs.Volume) *record {
	now := *r
	now.ArchiveRetention = formatRetention(to.ArchiveRetention)
	now.CapacityBytes, now.OnDelete, now.Mode, now.UID, now.GID = to.CapacityBytes, to.OnDelete, formatMode(nfs.UnixMode(to.Mode)), to.UID, to.GID
	now.Changed = time.Now().UTC()
	return &now
}

// spec returns the request that the volume answers.
func (r *record) spec() nfs.VolumeSpec {
	v := r.volume()
	return nfs.VolumeSpec{Name: v.Name, Dir: v.Dir, MinBytes: v.CapacityBytes, OnDelete: v.OnDelete, ArchiveRetention: v.ArchiveRetention, Mode: v.Mode, UID: v.UID, GID: v.GID, Claim: v.Claim, RestoreArchive: v.RestoredArchive, Source: v.Source, Shared: v.Shared}
}

// check refuses what no store has written.
func (r *record) check() error {
	if r.Version != recordVersion {
		return fmt.Errorf("its format version is %d and this driver knows %d: use the driver that wrote it, or a newer one", r.Version, recordVersion)
	}
	if !utf8.ValidString(r.Name) || r.Name == "" || r.ID != nfs.RecordID(r.Name) {
		return fmt.Errorf("id %q is not that of the name %q", r.ID, r.Name)
	}
	if err := nfs.CheckSubDir(r.Dir); err != nil {
		return fmt.Errorf("dir: %s", err.Error()) // without its sentinel
	}
	if _, err := parseMode(r.Mode); err != nil {
		return err
	}
	if retention, err := nfs.ParseRetention(r.ArchiveRetention); err != nil || formatRetention(retention) != r.ArchiveRetention {
		return fmt.Errorf("archiveRetention is %q", r.ArchiveRetention)
	}
	switch onDelete, err := nfs.ParseOnDelete(string(r.OnDelete)); {
	case err != nil || onDelete != r.OnDelete:
		return fmt.Errorf("onDelete is %q", r.OnDelete)
	case r.Driver == "":
		return fmt.Errorf("no driver is named")
	case r.ParentsCreated < 0 || r.ParentsCreated > strings.Count(r.Dir, "/"):
		return fmt.Errorf("parentsCreated is %d", r.ParentsCreated)
	case r.CapacityBytes < 0:
		return fmt.Errorf("capacityBytes is %d", r.CapacityBytes)
	case r.Restored.Archive != "" && idOf(r.Restored.Archive) == "":
		return fmt.Errorf("restored.archive is %q", r.Restored.Archive)
	case r.Source.check() != nil:
		return r.Source.check()
	case r.Shared != "" && !isGroup(r.Shared):
		return fmt.Errorf("shared is %q", r.Shared)
	case r.State != stateReady:
		return fmt.Errorf("state is %q", r.State)
	case r.Created.IsZero():
		return fmt.Errorf("it has no time of creation")
	}
	return nil
}

// due is when the archive expires, never if that is zero. written is when its file
// was made: no clock that is wrong, of a client or of the server, lets it expire early.
func (r *archiveRecord) due(written time.Time) time.Time {
	retention := r.Volume.volume().ArchiveRetention
	if retention == 0 {
		return time.Time{}
	}
	if written.Before(r.Archived) {
		written = r.Archived
	}
	return written.Add(retention)
}

func (r *archiveRecord) check() error {
	if r.Version != recordVersion {
		return fmt.Errorf("its format version is %d and this driver knows %d", r.Version, recordVersion)
	}
	if err := r.Volume.check(); err != nil {
		return fmt.Errorf("volume: %w", err)
	}
	if !strings.HasPrefix(r.Target, archivePrefix) || strings.ContainsAny(r.Target, "/\x00") || len(r.Target) > maxName {
		return fmt.Errorf("target %q is not the name of an archive", r.Target)
	}
	return nil
}

// encode returns the file content of a record or archive record.
func encode(v any) ([]byte, error) {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the record: %w", err)
	}
	if data = append(data, '\n'); len(data) > recordLimit {
		return nil, fmt.Errorf("%w: the volume's record would take %d bytes, more than the limit of %d", nfs.ErrInvalid, len(data), recordLimit)
	}
	return data, nil
}

// decodeRecord is strict: what it does not know, it must not act upon. It says
// ErrForeign, with the file's path, of anything but a record that encode wrote.
func decodeRecord(path string, data []byte) (*record, error) {
	r := new(record)
	if err := decode(path, data, r); err != nil {
		return nil, err
	}
	return r, nil
}

func decodeArchive(path string, data []byte) (*archiveRecord, error) {
	r := new(archiveRecord)
	if err := decode(path, data, r); err != nil {
		return nil, err
	}
	return r, nil
}

func decode(path string, data []byte, into interface{ check() error }) error {
	// The version first: of a newer format nothing else may be understood.
	var head struct {
		Version *int `json:"version"`
	}
	err := json.Unmarshal(data, &head)
	switch {
	case err == nil && head.Version == nil:
		err = errors.New("it has no format version")
	case err == nil && *head.Version != recordVersion:
		err = fmt.Errorf("its format version is %d and this driver knows %d: use the driver that wrote it, or a newer one", *head.Version, recordVersion)
	case err == nil:
		d := json.NewDecoder(bytes.NewReader(data))
		d.DisallowUnknownFields()
		if err = d.Decode(into); err == nil {
			if _, more := d.Token(); !errors.Is(more, io.EOF) {
				err = errors.New("something follows it")
			}
		}
	}
	if err == nil {
		err = into.check()
	}
	if err != nil {
		return fmt.Errorf("%w: the record %q cannot be read and is left alone: %v", nfs.ErrForeign, path, err)
	}
	return nil
}

// checkOwner refuses the record of another driver or another instance of it.
func (o Options) checkOwner(r *record) error {
	if r.Driver == o.DriverName && r.Instance == o.InstanceID {
		return nil
	}
	return fmt.Errorf("%w: the volume %q in directory %q belongs to instance %q of driver %q, and this is instance %q of %q; delete it there, or give this driver that name and instance id",
		nfs.ErrForeign, r.Name, r.Dir, r.Instance, r.Driver, o.InstanceID, o.DriverName)
}
