package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

const (
	ownDir  = ".nfs-csi"
	maxName = 255 // NAME_MAX

	randomBytes = 6
)

// layout is the store's own directories, opened.
type layout struct {
	volumes, changes, dirs, archive, snapshots, trash, work *dir

	own atomic.Pointer[dir] // see slot
}

// layout returns the store's own directories, or nil when the export has none.
func (s *Store) layout(ctx context.Context) (*layout, error) {
	if l := s.current(); l != nil {
		return l, nil
	}
	own, err := s.openOwn(ctx)
	if err != nil || own == nil {
		return nil, err
	}
	defer own.close()
	volumes, err := own.openDir(ctx, "volumes")
	switch {
	case err == nil:
		// It is the last one that ensureLayout makes, so the others are there.
		volumes.close()
		return s.ensureLayout(ctx)
	case isAbsent(err):
		return nil, nil
	}
	return nil, notDirectory(err, ownDir+"/volumes")
}

func (s *Store) openOwn(ctx context.Context) (*dir, error) {
	own, err := s.root.openDir(ctx, ownDir)
	if isAbsent(err) {
		if err := s.root.refresh(ctx); err != nil {
			return nil, err
		}
		own, err = s.root.openDir(ctx, ownDir)
	}
	switch {
	case err == nil:
		return own, nil
	case isAbsent(err):
		return nil, nil
	}
	return nil, notDirectory(err, ownDir)
}

// notDirectory makes an error of openDir speak to the operator when something
// else is where a directory must be.
func notDirectory(err error, p string) error {
	if !isNotDir(err) {
		return err
	}
	return fmt.Errorf("%w: %q is a file or a symbolic link where a directory must be; the driver follows no symbolic link: remove or rename it", nfs.ErrForeign, p)
}

// ensureLayout returns the store's own directories and makes those that are missing.
func (s *Store) ensureLayout(ctx context.Context) (*layout, error) {
	if l := s.current(); l != nil {
		return l, nil
	}
	own, err := makeDir(ctx, s.root, ownDir)
	if err != nil {
		return nil, err
	}
	defer own.close()
	l := &layout{}
	for _, d := range []struct {
		name string
		dir  **dir
	}{
		{"work", &l.work},
		{"dirs", &l.dirs},
		{"archive", &l.archive},
		{snapshotsTitle, &l.snapshots},
		{"trash", &l.trash},
		{"changes", &l.changes},
		{"volumes", &l.volumes},
	} {
		if *d.dir, err = makeDir(ctx, own, d.name); err != nil {
			return nil, errors.Join(err, l.close())
		}
		(*d.dir).kept = true
	}
	s.mu.Lock()
	winner := s.opened
	if winner == nil {
		s.opened = l
	}
	s.mu.Unlock()
	if winner != nil {
		return winner, l.close()
	}
	return l, nil
}

func makeDir(ctx context.Context, parent *dir, name string) (*dir, error) {
	d, err := parent.openDir(ctx, name)
	if isAbsent(err) {
		if err := parent.mkdir(ctx, name, 0o700); err != nil && !isTaken(err) {
			return nil, err
		}
		d, err = parent.openDir(ctx, name)
	}
	if err != nil {
		return nil, notDirectory(err, path.Join(parent.path, name))
	}
	return d, nil
}

func (s *Store) current() *layout {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opened
}

// reopenAfter forgets the opened directories after an error that may come from
// their having been removed, so that the next operation looks anew. Operations
// that still use them fail; the last reference closes the descriptors.
func (s *Store) reopenAfter(l *layout, err error) {
	if err == nil || l == nil || !errors.Is(err, unix.ESTALE) && !isAbsent(err) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened == l {
		s.opened = nil
	}
}

func (l *layout) close() error {
	var errs []error
	for _, d := range []*dir{l.volumes, l.changes, l.dirs, l.archive, l.snapshots, l.trash, l.work, l.own.Load()} {
		if d != nil {
			errs = append(errs, d.f.Close())
		}
	}
	return errors.Join(errs...)
}

// record reads the record of that id; nil when there is none, for all that the
// NFS client's cache knows.
func (l *layout) record(ctx context.Context, id string) (*record, error) {
	return l.recordIn(ctx, l.volumes, id+recordSuffix, id)
}

// recordForSure is record, with the absence of a record asked of the server.
func (l *layout) recordForSure(ctx context.Context, id string) (*record, error) {
	r, err := l.record(ctx, id)
	if err != nil || r != nil {
		return r, err
	}
	if err := l.volumes.refresh(ctx); err != nil {
		return nil, err
	}
	return l.record(ctx, id)
}

// recordIn reads the record in that file, as it was changed last.
func (l *layout) recordIn(ctx context.Context, d *dir, name, id string) (*record, error) {
	data, file, err := readDocument(ctx, d, name)
	if err != nil {
		if isAbsent(err) {
			return nil, nil
		}
		return nil, err
	}
	return l.recordOf(ctx, d, name, id, data, file)
}

// recordOf is recordIn for what was read from the file.
func (l *layout) recordOf(ctx context.Context, d *dir, name, id string, data []byte, file info) (*record, error) {
	r, err := decodeRecord(path.Join(d.path, name), data)
	if err != nil {
		return nil, err
	}
	if r.ID != id {
		return nil, fmt.Errorf("%w: the record %q is of the volume %q", nfs.ErrForeign, path.Join(d.path, name), r.ID)
	}
	r.file, r.changes = file, volumeKey(r.ID, r.Changed)
	if file.marked() {
		return l.latest(ctx, d, name, r)
	}
	return r, nil
}

// readDocument reads what publish has written.
func readDocument(ctx context.Context, d *dir, name string) (data []byte, file info, err error) {
	data, file, err = d.readFile(ctx, name, recordLimit)
	if !errors.Is(err, unix.ELOOP) {
		return data, file, err
	}
	text, err := d.readlink(ctx, name)
	if err != nil {
		return nil, info{}, err
	}
	file, err = d.lstat(ctx, name)
	return []byte(text), file, err
}

// publish writes data under the name in d, all of it or nothing, and fails with
// EEXIST when the name is taken. On file systems without hard links the document
// becomes the text of a symbolic link: that too is made in one exclusive step.
func (l *layout) publish(ctx context.Context, d *dir, name string, data []byte) error {
	temp := strings.TrimSuffix(name, recordSuffix) + "." + randomName()
	err := l.work.writeFile(ctx, temp, data)
	linked := err
	if err == nil {
		linked = l.work.link(ctx, temp, d, name)
	}
	if cleanup := l.work.unlink(context.WithoutCancel(ctx), temp); cleanup != nil && !isAbsent(cleanup) {
		klog.FromContext(ctx).Info("A temporary file stays until a later start", "file", path.Join(l.work.path, temp), "err", cleanup)
	}
	if err == nil && hasNoLinks(linked) {
		linked = d.symlink(ctx, string(data), name)
	}
	if linked != nil {
		return linked
	}
	return d.sync(ctx)
}

func hasNoLinks(err error) bool {
	const enotsupp = unix.Errno(524) // ENOTSUPP, which the NFS client passes on (linux/errno.h)
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case unix.EPERM, unix.EOPNOTSUPP, unix.EMLINK, unix.ENOSYS, enotsupp:
		return true
	}
	return false
}

// claimName is the name of the claim of a directory: a hash, since a path can be
// longer than a name.
func claimName(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return hex.EncodeToString(sum[:16])
}

// claimant returns the key of the volume that claims the directory, or "".
func (l *layout) claimant(ctx context.Context, dir string) (string, error) {
	key, err := l.dirs.readlink(ctx, claimName(dir))
	if isAbsent(err) {
		return "", nil
	}
	return key, err
}

// volumeKey tells the volumes that have had an id one after the other apart, as
// the text of their claims does: "<id>-<created in Unix nanoseconds>".
func volumeKey(id string, created time.Time) string {
	return id + "-" + strconv.FormatInt(created.UnixNano(), 10)
}

// parseKey understands what volumeKey has made. The id of anything else is none
// that a volume has.
func parseKey(key string) (id string, created time.Time) {
	i := strings.LastIndexByte(key, '-')
	if i < 0 {
		return "", created
	}
	nano, err := strconv.ParseInt(key[i+1:], 10, 64)
	if err != nil || nfs.CheckRecordID(key[:i]) != nil {
		return "", created
	}
	return key[:i], time.Unix(0, nano).UTC()
}

func idOf(key string) string {
	id, _ := parseKey(key)
	return id
}

// unclaim removes the claim of the directory if it is that of the volume with the key.
func (l *layout) unclaim(ctx context.Context, dir, key string) error {
	owner, err := l.claimant(ctx, dir)
	if err == nil && owner == "" {
		if err = l.dirs.refresh(ctx); err == nil {
			owner, err = l.claimant(ctx, dir)
		}
	}
	if err != nil || owner != key {
		return err
	}
	return ignoreAbsent(l.dirs.unlink(ctx, claimName(dir)))
}

// walkMode says what walk does about a directory that is missing.
type walkMode int

const (
	look        walkMode = iota // ENOENT, for all that the NFS client's cache knows
	lookForSure                 // ENOENT, if the server says so
	makeMissing                 // make it
)

// walk opens the directory p below the share ("" is the share), entry by entry,
// and says how many of the innermost ones it has made. When it fails, it leaves
// none of those. The caller closes the directory.
func (s *Store) walk(ctx context.Context, p string, mode walkMode) (d *dir, made int, err error) {
	d = s.root
	if p == "" {
		return d, 0, nil
	}
	for name := range strings.SplitSeq(p, "/") {
		next, isNew, err := s.step(ctx, d, name, mode)
		at := path.Join(d.path, name)
		d.close()
		if err != nil {
			if undo := s.removeParents(ctx, at, made); undo != nil {
				err = fmt.Errorf("%w; and new parents of it could not be removed: %v", err, undo)
			}
			return nil, 0, notDirectory(err, at)
		}
		if made++; !isNew {
			made = 0
		}
		d = next
	}
	return d, made, nil
}

func (s *Store) step(ctx context.Context, d *dir, name string, mode walkMode) (next *dir, isNew bool, err error) {
	next, err = d.openDir(ctx, name)
	if !isAbsent(err) || mode == look {
		return next, false, err
	}
	if mode == lookForSure {
		err = d.refresh(ctx)
	} else if err = d.mkdir(ctx, name, 0o755); err == nil {
		isNew = true
	} else if isTaken(err) {
		err = nil
	}
	if err == nil {
		next, err = d.openDir(ctx, name)
	}
	if err != nil && isNew {
		if undo := d.rmdir(ctx, name); undo != nil && !isNotEmpty(undo) && !isAbsent(undo) {
			err = fmt.Errorf("%w; and it could not be removed: %v", err, undo)
		}
	}
	return next, isNew, err
}

// parentOf is path.Dir with "" for the share.
func parentOf(p string) string {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i]
	}
	return ""
}

func randomName() string {
	var b [randomBytes]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

func isRandomName(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == randomBytes
}
