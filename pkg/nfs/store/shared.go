package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// The volumes that share a directory are a group, and the claim of the directory is
// the group's: "shared:<group>". Each volume has an entry, its reference, in the
// directory shared/<group>, named by its key; a create that is not done has one with
// the suffix newSuffix, and the delete that ends the group one with lastSuffix.
const (
	sharedDir   = ownDir + "/shared"
	sharedClaim = "shared:"
	newSuffix   = ".new"
	lastSuffix  = ".last"
)

func newGroup(dir string) string { return claimName(dir) + "." + randomName() }

func isGroup(s string) bool {
	hash, random, ok := strings.Cut(s, ".")
	return ok && isRandomName(random) && len(hash) == 32 && strings.Trim(hash, "0123456789abcdef") == ""
}

// groupOf returns the group whose claim has that text.
func groupOf(claim string) (group string, ok bool) {
	group, ok = strings.CutPrefix(claim, sharedClaim)
	return group, ok && isGroup(group)
}

// claim is the text of the claim of the record's directory.
func (r *record) claim() string {
	if r.Shared != "" {
		return sharedClaim + r.Shared
	}
	return r.key()
}

// sharing is what a create knows of the group that it joins.
type sharing struct {
	group   string
	founded bool    // it has made the group
	fellow  *record // of another volume in it, which has the directory already
}

// record writes it down.
func (s sharing) record(r *record) {
	r.Shared = s.group
	if s.fellow != nil { // for the last of them to remove
		r.ParentsCreated = s.fellow.ParentsCreated
	}
}

// references are what is in a group.
type references struct {
	confirmed, tentative []string // keys
	last                 string   // the key of the volume whose delete ends the group
}

// openGroup opens the directory of the group and the one it is in. ENOENT means that
// the group has ended.
func (s *Store) openGroup(ctx context.Context, group string) (groups, g *dir, err error) {
	if groups, _, err = s.walk(ctx, sharedDir, lookForSure); err != nil {
		return nil, nil, err
	}
	if err = groups.refresh(ctx); err == nil {
		g, err = groups.openDir(ctx, group)
	}
	if err == nil {
		// The client's cache may know one that another client has removed.
		if err = g.stat(ctx); errors.Is(err, unix.ESTALE) {
			err = opError("open", g.path, unix.ENOENT)
		}
	}
	if err != nil {
		g.close()
		groups.close()
		return nil, nil, err
	}
	return groups, g, nil
}

// readReferences fails with ENOENT when the group has ended.
func readReferences(ctx context.Context, g *dir) (refs references, err error) {
	if err = g.stat(ctx); err == nil {
		err = g.list(ctx, func(names []string) error {
			for _, name := range names {
				if key, ok := strings.CutSuffix(name, newSuffix); ok && idOf(key) != "" {
					refs.tentative = append(refs.tentative, key)
				} else if key, ok := strings.CutSuffix(name, lastSuffix); ok && idOf(key) != "" {
					refs.last = key
				} else if idOf(name) != "" {
					refs.confirmed = append(refs.confirmed, name)
				}
			}
			return nil
		})
	}
	return refs, absentIfStale(err, g.path)
}

// absentIfStale makes ENOENT of what the server says of a directory that was removed.
func absentIfStale(err error, p string) error {
	if errors.Is(err, unix.ESTALE) {
		return opError("open", p, unix.ENOENT)
	}
	return err
}

// join is claim for a volume that shares its directory: it adds a reference that is
// not confirmed yet to the directory's group, and makes that if there is none.
func (c *creation) join(ctx context.Context) error {
	for range raceTries {
		if err := c.l.dirs.refresh(ctx); err != nil {
			return err
		}
		text, err := c.l.claimant(ctx, c.spec.Dir)
		if err != nil {
			return err
		}
		group, shared := groupOf(text)
		switch {
		case shared:
			err = c.enter(ctx, group)
		case text == "":
			err = c.found(ctx)
		default:
			var key string
			if key, c.recordFound, err = c.holder(ctx, c.spec.Dir); err == nil && key != "" && idOf(key) != c.id {
				return c.taken(ctx, c.spec.Dir, key)
			}
			if err == nil && key != "" && c.recordFound == nil {
				return fmt.Errorf("%w: the directory %q was begun for this volume, but not to be shared", nfs.ErrConflict, c.spec.Dir)
			}
		}
		if err == nil && (c.claimed || c.recordFound != nil) {
			return nil
		}
		if err != nil && !isAbsent(err) && !isTaken(err) {
			return err
		}
	}
	return fmt.Errorf("%w: the directory was claimed and given up %d times meanwhile", nfs.ErrBusy, raceTries)
}

// found makes the group of a directory that nobody claims.
func (c *creation) found(ctx context.Context) error {
	switch err := c.findDir(ctx, lookForSure); {
	case err == nil:
		if err := c.l.dirs.refresh(ctx); err != nil {
			return err
		}
		if text, err := c.l.claimant(ctx, c.spec.Dir); err != nil || text != "" {
			return err // it was made since
		}
		return c.foreign()
	case !isAbsent(err):
		return err
	}
	groups, _, err := c.s.walk(ctx, sharedDir, makeMissing)
	if err != nil {
		return err
	}
	defer groups.close()
	group := newGroup(c.spec.Dir)
	if err := groups.mkdir(ctx, group, 0o700); err != nil {
		return err
	}
	g, err := groups.openDir(ctx, group)
	if err == nil {
		defer g.close()
		err = g.symlink(ctx, c.spec.Dir, c.key()+newSuffix)
	}
	if err == nil {
		err = c.l.dirs.symlink(ctx, sharedClaim+group, claimName(c.spec.Dir))
	}
	if err == nil {
		c.shared.group, c.shared.founded, c.claimed = group, true, true
		return nil
	}
	if undo := c.s.removeGroup(ctx, group); undo != nil {
		return fmt.Errorf("%w; and the group %q could not be removed: %v", err, groups.path+"/"+group, undo)
	}
	return err
}

// enter adds a reference to the group. ENOENT means that it has ended, or ends now.
func (c *creation) enter(ctx context.Context, group string) error {
	groups, g, err := c.s.openGroup(ctx, group)
	if err != nil {
		return err
	}
	defer groups.close()
	defer g.close()
	reference := c.key() + newSuffix
	if err := g.symlink(ctx, c.spec.Dir, reference); err != nil {
		return absentIfStale(err, g.path)
	}
	refs, err := readReferences(ctx, g)
	if err != nil {
		return err
	}
	// The delete that ends a group has an entry in it, which it removes only when it
	// has freed the claim: so a group with neither stays as long as this reference.
	if err := c.l.dirs.refresh(ctx); err != nil {
		return err
	}
	text, err := c.l.claimant(ctx, c.spec.Dir)
	if err != nil {
		return err
	}
	if refs.last == "" && text == sharedClaim+group {
		c.shared.group, c.claimed = group, true
		return nil
	}
	if err := g.unlink(ctx, reference); err != nil && !isAbsent(err) && !errors.Is(err, unix.ESTALE) {
		return err
	}
	if err := groups.rmdir(ctx, group); err != nil && !isAbsent(err) && !isNotEmpty(err) {
		return err
	}
	if _, err := c.s.endShared(ctx, c.l, sharedClaim+group); err != nil {
		return err
	}
	return opError("join", g.path, unix.ENOENT)
}

// endShared ends the delete that ends the group which has that claim, if this process
// began it, and says whether it did. That of another process is left to it, or to the
// purge should it be dead: whoever took it over would have to wait for that process'
// slot to be empty.
func (s *Store) endShared(ctx context.Context, l *layout, claim string) (found bool, err error) {
	group, ok := groupOf(claim)
	if !ok {
		return false, nil
	}
	groups, g, err := s.openGroup(ctx, group)
	if err != nil {
		return false, ignoreAbsent(err)
	}
	defer groups.close()
	defer g.close()
	refs, err := readReferences(ctx, g)
	if err != nil || refs.last == "" {
		return false, ignoreAbsent(err)
	}
	for _, name := range s.purge.entriesFor(idOf(refs.last)) {
		if err := s.purge.complete(ctx, l, name); err != nil && !errors.Is(err, errTakenOver) {
			return true, err
		}
		found = true
	}
	return found, nil
}

// makeShared is makeDir for a directory that is shared. One that is there already is
// taken on if another volume has it, or if it is empty.
func (c *creation) makeShared(ctx context.Context) error {
	err := c.mkdir(ctx)
	if err == nil {
		c.ownsDir = true
		return nil
	}
	if !isTaken(err) {
		return err
	}
	held, err := c.parent.hold(ctx, c.base)
	if err != nil {
		return notDirectory(err, c.spec.Dir)
	}
	held.close()
	if c.shared.fellow, err = c.findFellow(ctx, c.shared.group); err != nil || c.shared.fellow != nil {
		return err
	}
	if c.ownsDir, err = c.isEmpty(ctx); err != nil || c.ownsDir {
		return err
	}
	// Another create may have been faster, and its volume be in use by now.
	if c.shared.fellow, err = c.findFellow(ctx, c.shared.group); err == nil && c.shared.fellow == nil {
		err = fmt.Errorf("%w: the shared directory holds something, though no volume that shares it is finished: a delete may be about to take it away; if not, move it away by hand", nfs.ErrBusy)
	}
	return err
}

// findFellow returns the record of a volume that shares the directory and stands; nil
// if there is none.
func (c *creation) findFellow(ctx context.Context, group string) (*record, error) {
	groups, g, err := c.s.openGroup(ctx, group)
	if err != nil {
		return nil, ignoreAbsent(err)
	}
	defer groups.close()
	defer g.close()
	refs, err := readReferences(ctx, g)
	if err != nil {
		return nil, ignoreAbsent(err)
	}
	for _, key := range refs.confirmed {
		if r, err := c.l.recordForSure(ctx, idOf(key)); err != nil || r != nil && r.key() == key && r.Dir == c.spec.Dir {
			return r, err
		}
	}
	return nil, nil
}

// confirm makes the volume's reference one that keeps the directory, now that its
// record stands. Until then a delete may end the group: the rename decides. It fails
// with ENOENT when the group has ended.
func (c *creation) confirm(ctx context.Context, r *record) error {
	groups, g, err := c.s.openGroup(ctx, r.Shared)
	if err != nil {
		return err
	}
	defer groups.close()
	defer g.close()
	if _, err := g.lstat(ctx, r.key()); !isAbsent(err) {
		return absentIfStale(err, g.path)
	}
	err = g.rename(ctx, r.key()+newSuffix, g, r.key())
	if err == nil {
		return g.sync(ctx)
	}
	if _, again := g.lstat(ctx, r.key()); again == nil { // another run was faster
		return nil
	}
	return absentIfStale(err, g.path)
}

// settleShared is settle for a volume that shares its directory.
func (c *creation) settleShared(ctx context.Context) error {
	r, err := c.l.recordForSure(ctx, c.id)
	if err == nil && (r == nil || r.key() != c.key() || r.Shared == "") {
		err = fmt.Errorf("%w: the volume was deleted as soon as it was made", nfs.ErrBusy)
	}
	if err == nil {
		err = c.confirm(ctx, r)
	}
	if isAbsent(err) {
		// Nobody was told that the volume exists: without its directory it can be made anew.
		if err := c.s.deleteRecorded(ctx, c.l, r); err != nil {
			return err
		}
		if err := c.removeLate(ctx); err != nil {
			return err
		}
		return fmt.Errorf("%w: the last volume that shared the directory was deleted meanwhile", nfs.ErrBusy)
	}
	if err != nil {
		return err
	}
	if err := c.findDir(ctx, lookForSure); !isAbsent(err) || c.record == nil && !c.remake {
		return err
	}
	// It was empty, and removed for an empty parent.
	if err := c.mkdir(ctx); isTaken(err) {
		return nil
	} else if err != nil {
		return err
	}
	return setOwner(ctx, c.parent, c.base, c.spec)
}

// remakeShared makes the group's directory again, which was empty and removed for an
// empty parent.
func (s *Store) remakeShared(ctx context.Context, l *layout, dir, group string) error {
	c := newCreation(s, l, nfs.VolumeSpec{Dir: dir})
	r, err := c.findFellow(ctx, group)
	if err != nil || r == nil {
		return err // their own creates will find it missing
	}
	c = newCreation(s, l, r.spec())
	c.created, c.remake = r.Created, true
	defer c.close()
	return c.settleShared(ctx)
}

// forgo takes back the reference of a run that another was faster than.
func (c *creation) forgo(ctx context.Context) error {
	if c.shared.group == "" {
		return nil
	}
	groups, g, err := c.s.openGroup(ctx, c.shared.group)
	if err != nil {
		return ignoreAbsent(err)
	}
	defer groups.close()
	defer g.close()
	return ignoreAbsent(absentIfStale(g.unlink(ctx, c.key()+newSuffix), g.path))
}

// retract undoes a create that has failed for good. If it has made the group or the
// directory, that is by the same steps as a delete, which may end the group; if not,
// others see to it.
func (c *creation) retract(ctx context.Context) error {
	r, err := c.l.recordForSure(ctx, c.id)
	if err != nil || r != nil && r.key() == c.key() {
		return err
	}
	spec := c.spec
	spec.OnDelete = nfs.Retain
	if c.ownsDir {
		spec.OnDelete = nfs.Delete
		empty, err := c.isEmpty(ctx)
		if err != nil {
			return err
		}
		if !empty {
			return c.forgo(ctx)
		}
	} else if !c.shared.founded {
		return c.forgo(ctx)
	}
	undone := newRecord(c.s.opts, spec, c.newParents, c.created)
	c.shared.record(undone)
	data, err := encode(undone)
	if err != nil {
		return err
	}
	own, err := c.l.slot(ctx)
	if err != nil {
		return err
	}
	p := c.s.purge
	e := p.begin(c.id, c.created)
	defer p.release(e)
	if err = c.l.work.writeFile(ctx, e.name, data); err == nil {
		err = c.l.work.rename(ctx, e.name, own, e.name+recordSuffix)
	}
	if err != nil {
		p.forget(e)
		return err
	}
	if err := p.completeEntry(context.WithoutCancel(ctx), c.l, e); err != nil {
		return err
	}
	return c.removeLate(ctx)
}

// removeLate removes the directory if it was made after the group had ended, and so
// belongs to none.
func (c *creation) removeLate(ctx context.Context) error {
	if !c.ownsDir {
		return nil
	}
	if err := c.l.dirs.refresh(ctx); err != nil {
		return err
	}
	gone, err := c.s.removeEmpty(ctx, c.l, c.parent, c.spec.Dir, "")
	if err != nil || !gone {
		return err
	}
	return c.s.removeParents(ctx, c.spec.Dir, c.newParents)
}

// isEmpty says whether nothing is in the directory, as when it is missing.
func (c *creation) isEmpty(ctx context.Context) (empty bool, err error) {
	d, err := c.parent.openDir(ctx, c.base)
	if err != nil {
		return true, ignoreAbsent(err)
	}
	defer d.close()
	return d.isEmpty(ctx)
}
