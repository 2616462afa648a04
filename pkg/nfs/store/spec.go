package store

import (
	"fmt"
	"io/fs"
	"unicode/utf8"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func checkSpec(spec nfs.VolumeSpec) error {
	if err := nfs.CheckSubDir(spec.Dir); err != nil {
		return err
	}
	onDelete, err := nfs.ParseOnDelete(string(spec.OnDelete))
	switch {
	case err != nil:
		return err
	case onDelete != spec.OnDelete:
		return fmt.Errorf("%w: onDelete is %q", nfs.ErrInvalid, spec.OnDelete)
	case spec.Name == "" || !utf8.ValidString(spec.Name):
		return fmt.Errorf("%w: the volume's name %q is empty or not valid UTF-8", nfs.ErrInvalid, spec.Name)
	case spec.MinBytes < 0 || spec.MaxBytes < 0 || spec.MaxBytes > 0 && spec.MaxBytes < spec.MinBytes:
		return fmt.Errorf("%w: %d to %d bytes is no range of capacities", nfs.ErrInvalid, spec.MinBytes, spec.MaxBytes)
	case spec.Shared && spec.RestoreArchive != "":
		return fmt.Errorf("%w: an archive cannot be taken back as a shared directory: leave out shared or restoreArchive", nfs.ErrInvalid)
	case spec.Shared && !spec.Source.IsZero():
		return fmt.Errorf("%w: a shared directory cannot be made as a copy: leave out shared or the content source", nfs.ErrInvalid)
	case spec.ArchiveRetention < 0:
		return fmt.Errorf("%w: archiveRetention %s is negative", nfs.ErrInvalid, spec.ArchiveRetention)
	case spec.Source.Volume != "" && spec.Source.Snapshot != "":
		return fmt.Errorf("%w: a volume is copied from a volume or from a snapshot, not both", nfs.ErrInvalid)
	case spec.RestoreArchive != "" && !spec.Source.IsZero():
		return fmt.Errorf("%w: a volume is made from an archive or as a copy, not both: leave out restoreArchive or the content source", nfs.ErrInvalid)
	case spec.Source.Volume != "" && nfs.CheckRecordID(spec.Source.Volume) != nil, spec.Source.Snapshot != "" && nfs.CheckRecordID(spec.Source.Snapshot) != nil:
		return fmt.Errorf("%w: the source %s is none", nfs.ErrInvalid, spec.Source)
	case spec.Mode&^(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0:
		return fmt.Errorf("%w: mode %v has more than permission, set-id and sticky bits", nfs.ErrInvalid, spec.Mode)
	}
	return nil
}
