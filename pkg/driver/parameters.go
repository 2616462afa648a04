package driver

import (
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// The parameters of a StorageClass, as users write them.
const (
	paramServer           = "server"
	paramShare            = "share"
	paramSubDir           = "subDir"
	paramOnDelete         = "onDelete"
	paramArchiveRetention = "archiveRetention"
	paramRestoreArchive   = "restoreArchive"
	paramShared           = "shared"
	paramMountPermissions = "mountPermissions"
	paramUID              = "uid"
	paramGID              = "gid"
)

// sidecarPrefix begins the keys that belong to the Kubernetes sidecars, such as
// those that external-provisioner adds with --extra-create-metadata.
const sidecarPrefix = "csi.storage.k8s.io/"

const (
	sidecarPVCName      = sidecarPrefix + "pvc/name"
	sidecarPVCNamespace = sidecarPrefix + "pvc/namespace"
	sidecarPVName       = sidecarPrefix + "pv/name"
)

// parameters are the parameters of one CreateVolume, read and checked as far as
// that is possible without the name of the volume.
type parameters struct {
	server, share string
	subDir        string
	onDelete      nfs.OnDelete
	retention     time.Duration // of the archive; 0 means for ever
	restore       string        // the archive to take back
	shared        bool
	mode          fs.FileMode
	modeGiven     bool // and not the default that comes without
	uid, gid      *uint32
	values        nfs.SubDirValues
}

// parseParameters reads the parameters of a StorageClass. Keys are
// case-insensitive. It fails with nfs.ErrInvalid on keys that it does not know
// and names the nearest one that it does, so that a typing error never means a
// silent default.
func parseParameters(raw map[string]string) (parameters, error) {
	p := parameters{onDelete: nfs.Delete, mode: nfs.DefaultMode}
	folded, err := foldKeys(raw)
	if err != nil {
		return p, err
	}
	for _, key := range slices.Sorted(maps.Keys(folded)) {
		value := folded[key]
		var err error
		switch key {
		case paramServer:
			p.server = value
		case paramShare:
			p.share = value
		case strings.ToLower(paramSubDir):
			p.subDir = value
		case strings.ToLower(paramOnDelete):
			p.onDelete, err = nfs.ParseOnDelete(value)
		case strings.ToLower(paramArchiveRetention):
			p.retention, err = nfs.ParseRetention(value)
		case strings.ToLower(paramRestoreArchive):
			p.restore = value
		case paramShared:
			p.shared, err = parseShared(value)
		case strings.ToLower(paramMountPermissions):
			p.mode, p.modeGiven, err = parseMode(value)
		case paramUID:
			p.uid, err = parseID(paramUID, value)
		case paramGID:
			p.gid, err = parseID(paramGID, value)
		case sidecarPVCName:
			p.values.PVCName = value
		case sidecarPVCNamespace:
			p.values.PVCNamespace = value
		case sidecarPVName:
			p.values.PVName = value
		default:
			if !strings.HasPrefix(key, sidecarPrefix) {
				err = unknownParameter(key)
			}
		}
		if err != nil {
			return p, err
		}
	}
	return p, nil
}

// parseMutableParameters reads the parameters of a VolumeAttributesClass. It fails
// with nfs.ErrInvalid on keys that cannot change, and on empty values: absent is
// what says that something stays.
func parseMutableParameters(raw map[string]string) (nfs.VolumeChange, error) {
	folded, err := foldKeys(raw)
	if err != nil {
		return nfs.VolumeChange{}, err
	}
	mutable := []string{paramOnDelete, paramArchiveRetention, paramMountPermissions, paramUID, paramGID}
	for _, key := range slices.Sorted(maps.Keys(folded)) {
		if strings.HasPrefix(key, sidecarPrefix) {
			continue
		}
		if !slices.ContainsFunc(mutable, func(k string) bool { return strings.EqualFold(k, key) }) {
			return nfs.VolumeChange{}, invalidf("parameter %q cannot change during a volume's life: a VolumeAttributesClass may have %s", key, strings.Join(mutable, ", "))
		}
		if folded[key] == "" {
			return nfs.VolumeChange{}, invalidf("parameter %q is empty: leave it out for what is to stay as it is", key)
		}
	}
	params, err := parseParameters(folded)
	if err != nil {
		return nfs.VolumeChange{}, err
	}
	change := nfs.VolumeChange{UID: params.uid, GID: params.gid}
	if _, ok := folded[strings.ToLower(paramOnDelete)]; ok {
		change.OnDelete = &params.onDelete
	}
	if _, ok := folded[strings.ToLower(paramArchiveRetention)]; ok {
		change.ArchiveRetention = &params.retention
	}
	if _, ok := folded[strings.ToLower(paramMountPermissions)]; ok {
		change.Mode = &params.mode
	}
	return change, nil
}

// change returns the parameters with those of a VolumeAttributesClass before them.
func (p parameters) change(c nfs.VolumeChange) parameters {
	if c.OnDelete != nil {
		if p.onDelete = *c.OnDelete; p.onDelete != nfs.Archive {
			p.retention = 0 // the StorageClass' does not count then
		}
	}
	if c.ArchiveRetention != nil {
		p.retention = *c.ArchiveRetention
	}
	if c.Mode != nil {
		p.mode, p.modeGiven = *c.Mode, true
	}
	if c.UID != nil {
		p.uid = c.UID
	}
	if c.GID != nil {
		p.gid = c.GID
	}
	return p
}

// export returns the export that the parameters name, with the mount flags of
// the request as its options.
func (p parameters) export(mountFlags []string) (nfs.Export, error) {
	if p.server == "" {
		return nfs.Export{}, invalidf("parameter %q is missing: it names the NFS server", paramServer)
	}
	if p.share == "" {
		return nfs.Export{}, invalidf("parameter %q is missing: it names the path that the server exports", paramShare)
	}
	return nfs.NewExport(p.server, p.share, mountFlags)
}

// ClassExport returns the export on which CreateVolume makes the volumes of a
// StorageClass with these parameters and mountOptions. It fails with
// nfs.ErrInvalid for a class of which CreateVolume makes none.
func ClassExport(parameters map[string]string, mountOptions []string) (nfs.Export, error) {
	p, err := parseParameters(parameters)
	if err != nil {
		return nfs.Export{}, err
	}
	return p.export(writable(mountOptions))
}

// HandleExport returns the export that holds the record of the volume with this
// handle. It fails with nfs.ErrInvalid where there can be no record: for handles
// that were written by hand, and for those of csi-driver-nfs.
func HandleExport(handle string) (nfs.Export, error) {
	h, err := nfs.ParseHandle(handle)
	if err != nil {
		return nfs.Export{}, err
	}
	if h.Legacy() {
		return nfs.Export{}, invalidf("volume handle %q is one of csi-driver-nfs, which keeps no records", handle)
	}
	return h.Export, nil
}

// spec returns what the volume of that name is to be.
func (p parameters) spec(name string) (nfs.VolumeSpec, error) {
	values := p.values
	if values.PVName == "" {
		values.PVName = name
		// The specification allows names that no directory can have; only a
		// name that Kubernetes gave must be what the user reads in subDir.
		if _, err := nfs.ExpandSubDir("", values); err != nil {
			values.PVName = nfs.RecordID(name)
		}
	}
	dir, err := nfs.ExpandSubDir(p.subDir, values)
	if err != nil {
		return nfs.VolumeSpec{}, err
	}
	if p.shared && p.restore != "" {
		return nfs.VolumeSpec{}, invalidf("parameters %q and %q exclude each other: an archive becomes the directory of one volume", paramShared, paramRestoreArchive)
	}
	if p.shared && (p.subDir == "" || strings.Contains(p.subDir, "${pv.metadata.name}")) {
		return nfs.VolumeSpec{}, invalidf("parameter %q needs a %q that several claims have in common, so without ${pv.metadata.name}", paramShared, paramSubDir)
	}
	if p.retention > 0 && p.onDelete != nfs.Archive {
		// Whoever writes it expects to find deleted data again.
		return nfs.VolumeSpec{}, invalidf("parameter %q needs %q %s: with %s nothing is archived", paramArchiveRetention, paramOnDelete, nfs.Archive, p.onDelete)
	}
	mode := p.mode
	if p.restore != "" && !p.modeGiven {
		mode = 0 // what the archive has
	}
	return nfs.VolumeSpec{
		Shared:           p.shared,
		RestoreArchive:   p.restore,
		Name:             name,
		Dir:              dir,
		OnDelete:         p.onDelete,
		ArchiveRetention: p.retention,
		Mode:             mode,
		UID:              p.uid,
		GID:              p.gid,
		Claim:            nfs.Claim{Namespace: values.PVCNamespace, Name: values.PVCName},
	}, nil
}

// foldKeys returns the map with lower-case keys; two keys that differ only by
// case are an error, since there is no saying which of them was meant.
func foldKeys(raw map[string]string) (map[string]string, error) {
	folded := make(map[string]string, len(raw))
	for _, key := range slices.Sorted(maps.Keys(raw)) {
		lower := strings.ToLower(key)
		if _, ok := folded[lower]; ok {
			return nil, invalidf("parameter %q is given more than once, in different case", key)
		}
		folded[lower] = raw[key]
	}
	return folded, nil
}

// parseShared reads whether other volumes may have the same directory.
func parseShared(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "true":
		return true, nil
	case "", "false":
		return false, nil
	}
	return false, invalidf("%s %q is neither true nor false", paramShared, s)
}

// parseMode reads octal permissions; "" and "0" mean the default, as they do
// for users of csi-driver-nfs.
func parseMode(s string) (mode fs.FileMode, given bool, err error) {
	if s == "" {
		return nfs.DefaultMode, false, nil
	}
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n > 0o7777 {
		return 0, false, invalidf("%s %q is not an octal mode between 0 and 7777", paramMountPermissions, s)
	}
	if n == 0 {
		return nfs.DefaultMode, false, nil
	}
	return nfs.FileMode(uint32(n)), true, nil
}

// parseID reads a numeric user or group id. The highest number is (uid_t)-1,
// which chown(2) takes for "leave it".
func parseID(param, s string) (*uint32, error) {
	if s == "" {
		return nil, nil
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == math.MaxUint32 {
		return nil, invalidf("%s %q is not a number between 0 and %d", param, s, uint32(math.MaxUint32-1))
	}
	id := uint32(n)
	return &id, nil
}

func unknownParameter(key string) error {
	known := []string{paramServer, paramShare, paramSubDir, paramOnDelete, paramArchiveRetention, paramRestoreArchive, paramShared, paramMountPermissions, paramUID, paramGID}
	nearest := slices.MinFunc(known, func(a, b string) int {
		return editDistance(key, strings.ToLower(a)) - editDistance(key, strings.ToLower(b))
	})
	return invalidf("unknown parameter %q: the nearest known one is %q; known are %s", key, nearest, strings.Join(known, ", "))
}

// editDistance is the Levenshtein distance in bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitute := diagonal
			if a[i] != b[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(row[j+1]+1, row[j]+1, substitute)
		}
	}
	return row[len(b)]
}

// volumeLocation is where the data of a volume is.
type volumeLocation struct {
	export nfs.Export
	// dir is relative to the share; empty for a static volume that is a whole share.
	dir string
}

func (l volumeLocation) String() string {
	if l.dir == "" {
		return l.export.String()
	}
	return fmt.Sprintf("%s, directory %q", l.export, l.dir)
}

// locateVolume finds the volume by its context: that of CreateVolume, or the
// volumeAttributes of a PersistentVolume written by hand. Keys are
// case-insensitive and others than server, share and subDir are ignored. The
// handles of csi-driver-nfs name the directory themselves, so their context
// may be missing.
func locateVolume(volumeID string, volumeContext map[string]string, mountFlags []string) (volumeLocation, error) {
	attributes, err := foldKeys(volumeContext)
	if err != nil {
		return volumeLocation{}, fmt.Errorf("volume context of %q: %w", volumeID, err)
	}
	server, share := attributes[paramServer], attributes[paramShare]
	subDir := strings.Trim(attributes[strings.ToLower(paramSubDir)], "/")
	if server == "" && share == "" {
		h, err := nfs.ParseHandle(volumeID)
		if err == nil && h.Legacy() {
			server, share, subDir = h.Export.Server, h.Export.Share, h.Dir
		}
	}
	if server == "" || share == "" {
		return volumeLocation{}, invalidf("volume %q: its context must name %q and %q; a PersistentVolume has them in spec.csi.volumeAttributes",
			volumeID, paramServer, paramShare)
	}
	export, err := nfs.NewExport(server, share, mountFlags)
	if err != nil {
		return volumeLocation{}, fmt.Errorf("volume %q: %w", volumeID, err)
	}
	if subDir != "" {
		if err := nfs.CheckSubDir(subDir); err != nil {
			return volumeLocation{}, fmt.Errorf("volume %q: %w", volumeID, err)
		}
	}
	return volumeLocation{export: export, dir: subDir}, nil
}

// volumeContext is what locateVolume needs to find the volume again.
func volumeContext(export nfs.Export, dir string) map[string]string {
	return map[string]string{paramServer: export.Server, paramShare: export.Share, paramSubDir: dir}
}
