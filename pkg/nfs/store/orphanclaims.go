package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// groups finds references of volumes that are gone to shared directories, and groups of
// such volumes that nothing leads to.
func (s *search) groups(ctx context.Context) error {
	groups, _, err := s.s.walk(ctx, sharedDir, lookForSure)
	if err != nil {
		return ignoreAbsent(err)
	}
	defer groups.close()
	names, err := namesOf(ctx, groups, "")
	if err != nil {
		return err
	}
	for _, name := range names {
		if !isGroup(name) {
			continue
		}
		g, err := groups.openDir(ctx, name)
		if isAbsent(err) {
			continue
		}
		if err != nil {
			return err
		}
		refs, err := readReferences(ctx, g)
		g.close()
		if isAbsent(err) {
			continue
		}
		if err == nil {
			err = s.group(ctx, name, refs)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *search) group(ctx context.Context, name string, refs references) error {
	if s.ending[name] {
		return nil
	}
	for _, key := range refs.confirmed {
		there, err := s.isRecorded(ctx, key)
		if err != nil {
			return err
		}
		if !there {
			s.add(nfs.ItemClaim, path.Join(sharedDir, name, key),
				fmt.Sprintf("it keeps a shared directory for the volume %q, which is gone: remove it", idOf(key)))
		}
	}
	hash, _, _ := strings.Cut(name, ".")
	text, err := s.l.dirs.readlink(ctx, hash)
	if err != nil && !isAbsent(err) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	if text != sharedClaim+name && len(refs.confirmed) == 0 {
		s.add(nfs.ItemClaim, path.Join(sharedDir, name), "no directory is claimed for this group of volumes: a create or delete that was killed has left it; if nothing finishes that, remove it")
	}
	return nil
}

// noteGroup notes the group that a volume in the trash may be about to end.
func (s *search) noteGroup(ctx context.Context, name string) error {
	r, err := s.l.entryRecord(ctx, s.entries[name], &entry{name: name})
	if err == nil && r != nil {
		s.ending[r.Shared] = true
	}
	if errors.Is(err, nfs.ErrStale) || errors.Is(err, nfs.ErrForeign) { // it went, or is told of elsewhere
		return nil
	}
	return err
}

// isRecorded says whether the volume with that key has a record, or one that cannot
// be read.
func (s *search) isRecorded(ctx context.Context, key string) (bool, error) {
	r, err := s.l.recordForSure(ctx, idOf(key))
	if errors.Is(err, nfs.ErrForeign) {
		return true, nil
	}
	return err == nil && r != nil && r.key() == key, err
}

// brokenClaim says what keeps a volume that has a record and a directory from being
// the one that has it; "" if nothing does.
func (s *search) brokenClaim(ctx context.Context, id, dir string) (problem string, err error) {
	r, err := s.l.recordForSure(ctx, id)
	if err != nil || r == nil || r.Dir != dir {
		return "", err
	}
	claim := path.Join(s.l.dirs.path, claimName(dir))
	text, err := s.l.claimant(ctx, dir)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Sprintf("the claim of the directory %q is no symbolic link: replace %s by one with the text %q", dir, claim, r.claim()), nil
	}
	if err != nil {
		return "", err
	}
	switch {
	case text == "":
		return fmt.Sprintf("the claim of the directory %q is missing: make the symbolic link %s with the text %q", dir, claim, r.claim()), nil
	case text != r.claim():
		return fmt.Sprintf("the directory %q is claimed by %q: see whose it is, and delete the other volume or give the symbolic link %s the text %q", dir, text, claim, r.claim()), nil
	case r.Shared == "":
		return "", nil
	}
	reference := path.Join(sharedDir, r.Shared, r.key())
	missing := fmt.Sprintf("nothing keeps the shared directory %q for the volume: make the symbolic link %s with the text %q", dir, reference, dir)
	groups, g, err := s.s.openGroup(ctx, r.Shared)
	if isAbsent(err) {
		return missing, nil
	}
	if err != nil {
		return "", err
	}
	defer groups.close()
	defer g.close()
	refs, err := readReferences(ctx, g)
	if err != nil && !isAbsent(err) || slices.Contains(refs.confirmed, r.key()) {
		return "", err
	}
	return missing, nil
}

// unfinished says for whom a claim with that text is, and what to do about it; "" if
// that needs no explanation.
func (s *search) unfinished(ctx context.Context, claim, text string) (who string, err error) {
	if group, ok := groupOf(text); ok {
		if s.ending[group] {
			return "", nil
		}
		return fmt.Sprintf("volumes that share it, none of which has a record: their creation has not finished; if nothing finishes it, remove %s and %s",
			path.Join(s.l.dirs.path, claim), path.Join(sharedDir, group)), nil
	}
	id := idOf(text)
	if id != "" {
		r, err := s.l.recordForSure(ctx, id)
		if err != nil && !errors.Is(err, nfs.ErrForeign) {
			return "", err
		}
		if err != nil || r != nil && claimName(r.Dir) == claim || s.underway[id] { // made meanwhile, or about to go
			return "", nil
		}
	}
	return fmt.Sprintf("the volume %q, which has no record: its creation has not finished; if nothing finishes it, remove %s", cmp.Or(id, text), path.Join(s.l.dirs.path, claim)), nil
}

// leftClaims finds the claims of volumes that have no record and no directory.
func (s *search) leftClaims(ctx context.Context) error {
	names, err := namesOf(ctx, s.l.dirs, "")
	if err != nil {
		return err
	}
	for _, name := range names {
		if s.claims[name] {
			continue
		}
		text, err := s.l.dirs.readlink(ctx, name)
		switch {
		case isAbsent(err):
			continue
		case errors.Is(err, unix.EINVAL):
			s.add(nfs.ItemClaim, path.Join(s.l.dirs.path, name), "it is no symbolic link, so it was not put there by this driver: remove it")
			continue
		case err != nil:
			return err
		}
		problem, err := s.unfinished(ctx, name, text)
		if err != nil {
			return err
		}
		if problem != "" {
			s.add(nfs.ItemClaim, path.Join(s.l.dirs.path, name), "it keeps a directory for "+problem)
		}
	}
	return nil
}

// leftChanges finds the changes of volumes that are gone: of an update that came late
// and was killed.
func (s *search) leftChanges(ctx context.Context) error {
	names, err := namesOf(ctx, s.l.changes, "")
	if err != nil {
		return err
	}
	for _, name := range names {
		id := idOf(name)
		if id == "" || s.underway[id] {
			continue
		}
		r, err := s.l.recordForSure(ctx, id)
		if err != nil && !errors.Is(err, nfs.ErrForeign) {
			return err
		}
		if err != nil || r != nil && r.changes == name {
			continue
		}
		s.add(nfs.ItemRecord, path.Join(s.l.changes.path, name), fmt.Sprintf("it holds changes of the volume %q, which is gone, so nobody reads them: remove it", id))
	}
	return nil
}
