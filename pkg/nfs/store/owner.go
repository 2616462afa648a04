package store

import (
	"context"
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// ownership is what the owner and mode of a directory are to be.
type ownership struct {
	uid, gid *uint32 // nil stays as it is
	mode     uint32
}

// calls says what it takes to give that to a directory.
func (o ownership) calls(st info) (chown, chmod bool) {
	chown = o.uid != nil && *o.uid != st.uid || o.gid != nil && *o.gid != st.gid
	return chown, st.mode&0o7777 != o.mode || chown && o.mode&0o7000 != 0
}

// setOwner gives a directory that was just made its owner and mode, where they
// are not what is asked for already.
func setOwner(ctx context.Context, parent *dir, base string, spec nfs.VolumeSpec) error {
	st, err := parent.lstat(ctx, base)
	if err != nil {
		return err
	}
	want := ownership{uid: spec.UID, gid: spec.GID, mode: nfs.UnixMode(spec.Mode)}
	if want.mode == 0 && (spec.RestoreArchive != "" || !spec.Source.IsZero()) {
		want.mode = st.mode & 0o7777
	}
	if chown, chmod := want.calls(st); !chown && !chmod {
		return nil
	}
	d, err := parent.openDir(ctx, base)
	if err != nil {
		return notDirectory(err, path.Join(parent.path, base))
	}
	defer d.close()
	return want.give(ctx, d, st)
}

// give makes it so of the opened directory, which is as st says.
func (o ownership) give(ctx context.Context, d *dir, st info) error {
	chown, chmod := o.calls(st)
	if chown {
		uid, gid := -1, -1
		if o.uid != nil && *o.uid != st.uid {
			uid = int(*o.uid)
		}
		if o.gid != nil && *o.gid != st.gid {
			gid = int(*o.gid)
		}
		if err := d.chown(ctx, uid, gid); err != nil {
			return refusedOwner(err, fmt.Sprintf("the export does not let this client give the directory to uid %s, gid %s", idText(o.uid), idText(o.gid)))
		}
	}
	if chmod {
		if err := d.chmod(ctx, o.mode); err != nil {
			return refusedOwner(err, fmt.Sprintf("the export does not let this client set the mode %s", formatMode(o.mode)))
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
