package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

// fillEnv has this program fill the directory that it names, and do nothing else: so it is the
// NFS server that makes files on its own disk.
const (
	fillEnv = "E2E_FILL"
	// In so many directories there are so many files each.
	fillDirs, fillEach = 200, 1000
)

// fillDirectory makes empty files, each with one system call.
func fillDirectory(dir string) error {
	for d := range fillDirs {
		sub := path.Join(dir, strconv.Itoa(d))
		if err := os.Mkdir(sub, 0o755); err != nil {
			return err
		}
		fd, err := unix.Open(sub, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", sub, err)
		}
		for i := range fillEach {
			if err = unix.Mknodat(fd, strconv.Itoa(i), unix.S_IFREG|0o644, 0); err != nil {
				break
			}
		}
		if unix.Close(fd); err != nil {
			return fmt.Errorf("make a file in %s: %w", sub, err)
		}
	}
	return nil
}

// fill has the NFS server fill a volume. It has one CPU, which other cases shall have first.
func (s *scene) fill(volume string) {
	s.t.Helper()
	program, err := os.Executable()
	s.must(err)
	var out bytes.Buffer
	err = s.c.Server().Run(s.ctx, lab.Cmd{Args: []string{"nice", "-n", "19", lab.GuestPath(program)}, Env: []string{fillEnv + "=" + path.Join(s.dir, volume)}, Stderr: &out})
	if err != nil {
		s.t.Fatalf("%v\n%s", err, out.String())
	}
}

// purged returns how many files and directories of the scene's share the controller says that
// it has unlinked.
func (s *scene) purged(controller part) (count int) {
	s.t.Helper()
	for line := range strings.Lines(s.metrics(controller)) {
		if strings.HasPrefix(line, "nfs_csi_trash_purged_total{") && strings.Contains(line, s.c.Server().IPv4()+":"+s.dir) {
			f := strings.Fields(line)
			n, err := strconv.ParseFloat(f[len(f)-1], 64)
			s.must(err)
			count += int(n)
		}
	}
	return count
}

// TestDeleteManyFiles: a claim with 200,000 files goes in seconds, and the volume's directory is out
// of sight by then. The files are unlinked behind it, while other volumes come and go; an
// operator in a hurry removes them on the server, which takes seconds where the purge takes minutes.
func TestDeleteManyFiles(t *testing.T) {
	t.Parallel()
	const (
		files = fillDirs * fillEach
		// enough of them are left to the purge to see it at work.
		enough = 5000
		limit  = 15 * time.Second
	)
	s := newSceneOn(t, "many-files", quickShare) // a disk takes five times as long to make so many
	s.claim("data")
	volume := s.volume("data")
	began := time.Now()
	s.fill(volume)
	report(t, "filled", time.Since(began))

	began = time.Now()
	s.kubectl("delete", "pvc", "data")
	s.gone(volume)
	took := time.Since(began)
	report(t, "deleted", took)
	if took > limit {
		t.Errorf("it took %v to delete the claim with its volume, want %v at most", took, limit)
	}
	if got := s.stored(); len(got.directories)+len(got.records) > 0 {
		t.Errorf("on the export there are %+v", got)
	}
	controller := s.leader()
	if got := s.purged(controller); got > files/2 {
		t.Errorf("%d of %d files are unlinked already: the volume was not gone before them", got, files)
	}
	if found := s.ctlList("trash", 1)[0]; found.Name != volume || found.Claim.Name != "data" {
		t.Errorf("the trash has %+v", found)
	}
	s.claim("other")
	other := s.volume("other")
	s.kubectl("delete", "pvc", "other")
	s.gone(other)
	s.wait("files to be unlinked", func(context.Context) error {
		if got := s.purged(controller); got < enough {
			return fmt.Errorf("the metric says %d of %d", got, files)
		}
		return nil
	})
	// As docs/guides/troubleshooting.md says.
	s.server("nice -n 19 find .nfs-csi/trash -mindepth 2 -maxdepth 2 -type d -exec rm -rf {} +")
	_, err := s.ctl("purge")
	s.must(err)
	report(t, "purged", time.Since(began))
	s.trashEmptied()
	s.left()
}
