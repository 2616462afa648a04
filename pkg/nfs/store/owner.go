package store

import (
	"context"
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// setOwner gives a directory that was just made its owner and mode, where they
// are not what is asked for already.
func setOwner(ctx context.Context, parent *dir, base string, spec nfs.VolumeSpec) error {
	st, err := parent.lstat(ctx, base)
	if err != nil {
		return err
	}
	uid, gid := -1, -1
	if spec.UID != nil && *spec.UID != st.uid {
		uid = int(*spec.UID)
	}
	if spec.GID != nil && *spec.GID != st.gid {
		gid = int(*spec.GID)
	}
	mode := nfs.UnixMode(spec.Mode)
	chown := uid != -1 || gid != -1
	chmod := st.mode&0o7777 != mode || chown && mode&0o7000 != 0
	if !chown && !chmod {
		return nil
	}
	d, err := parent.openDir(ctx, base)
	if err != nil {
		return notDirectory(err, path.Join(parent.path, base))
	}
	defer d.close()
	if chown {
		if err := d.chown(ctx, uid, gid); err != nil {
			return refusedOwner(err, fmt.Sprintf("the export does not let this client give the directory to uid %s, gid %s", idText(spec.UID), idText(spec.GID)))
		}
	}
	if chmod {
		if err := d.chmod(ctx, mode); err != nil {
			return refusedOwner(err, fmt.Sprintf("the export does not let this client set the mode %s", formatMode(mode)))
		}
	}
	return nil
}

func refusedOwner(err error, what string) error {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return err
	}
	return fmt.Errorf("%s, most likely because it is exported with root_squash: export it with no_root_squash, or leave out uid, gid and mountPermissions: %w", what, err)
}

func idText(id *uint32) string {
	if id == nil {
		return "unchanged"
	}
	return fmt.Sprint(*id)
}
