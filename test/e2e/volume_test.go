package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// record is what these tests read in a volume's record on the export.
type record struct {
	Version               int
	Driver, ID, Name, Dir string
	CapacityBytes         int64
	OnDelete, Mode, State string
	ArchiveRetention      string
	Claim                 struct{ Namespace, Name string }
}

func (s *scene) record(volume string) (r record) {
	s.t.Helper()
	text := s.server("cat .nfs-csi/volumes/" + volume + ".json")
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		s.t.Fatalf("the record of %s: %v\n%s", volume, err, text)
	}
	return r
}

// gone waits until the volume is.
func (s *scene) gone(volume string) {
	s.t.Helper()
	s.wait("volume "+volume+" to go", func(ctx context.Context) error {
		out, err := s.c.Kubectl(ctx, "get", "pv", volume, "--ignore-not-found", "-o", "name")
		if err == nil && out != "" {
			err = fmt.Errorf("there is %s", strings.TrimSpace(out))
		}
		return err
	})
}

// left shows that of deleted volumes these directories are on the scene's share, and no records. That
// their names are claimed no more is the work of the purge, in the background.
func (s *scene) left(directories ...string) {
	s.t.Helper()
	got := s.stored()
	want := stored{directories: directories, claims: got.claims}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(stored{}), cmpopts.EquateEmpty()); diff != "" {
		s.t.Errorf("on the export (-want +got):\n%s", diff)
	}
	s.wait("no directory to be claimed", func(context.Context) error {
		if claims := s.stored().claims; len(claims) > 0 {
			return fmt.Errorf("there are %v", claims)
		}
		return nil
	})
}

// TestClaim: a claim becomes a directory and a record that names it, and both go with the claim.
func TestClaim(t *testing.T) {
	t.Parallel()
	s := newScene(t, "claim")
	s.claim("data")
	volume := s.volume("data")
	want := record{
		Version: 1, Driver: driverName, ID: volume, Name: volume, Dir: volume,
		CapacityBytes: 1 << 30, OnDelete: "delete", Mode: "0755", State: "ready",
	}
	want.Claim.Namespace, want.Claim.Name = s.name, "data"
	if diff := cmp.Diff(want, s.record(volume)); diff != "" {
		t.Errorf("the record differs (-want +got):\n%s", diff)
	}
	got := s.kubectl("get", "pv", volume, "-o", "jsonpath={.spec.csi.driver} {.spec.csi.volumeHandle} {.spec.persistentVolumeReclaimPolicy}")
	handle := fmt.Sprintf("v1:%s:%s::%s", s.c.Server().IPv4(), s.dir, volume)
	if want := driverName + " " + handle + " Delete"; got != want {
		t.Errorf("the PersistentVolume has %q, want %q", got, want)
	}
	// Mode and owner by default.
	if got := s.server("stat -c '%F %a %u:%g' " + volume); got != "directory 755 0:0" {
		t.Errorf("the directory is %q", got)
	}
	if got := s.server("stat -c %a .nfs-csi"); got != "700" {
		t.Errorf("the driver's own directory has mode %s", got)
	}
	s.kubectl("delete", "pvc", "data")
	s.gone(volume)
	s.left()
}

// TestReclaimDelete: the directory goes with the claim, whatever is in it, and the trash is emptied.
func TestReclaimDelete(t *testing.T) {
	t.Parallel()
	s := newScene(t, "reclaim-delete")
	s.claim("data")
	volume := s.volume("data")
	s.server("mkdir -p " + volume + "/a/b && touch " + volume + "/a/b/file && ln -s /srv " + volume + "/link")
	s.kubectl("delete", "pvc", "data")
	s.gone(volume)
	s.trashEmptied()
	s.left()
}

// TestReclaimRetain: volume, directory and record outlive the claim, and serve another one.
func TestReclaimRetain(t *testing.T) {
	t.Parallel()
	s := newScene(t, "reclaim-retain")
	volume := s.deleted("reclaim-retained", "reclaimPolicy: Retain")
	s.wait("the volume to be released", func(ctx context.Context) error {
		phase, err := s.c.Kubectl(ctx, "get", "pv", volume, "-o", "jsonpath={.status.phase}")
		if err == nil && phase != "Released" {
			err = fmt.Errorf("it is %s", phase)
		}
		return err
	})
	if got := s.server("cat " + volume + "/file"); got != "precious" {
		t.Errorf("the file holds %q", got)
	}
	if got := s.record(volume).State; got != "ready" {
		t.Errorf("the record's state is %q", got)
	}
	// What an administrator does to use it again, and then to be rid of it.
	s.kubectl("patch", "pv", volume, "--type", "merge", "-p", `{"spec":{"claimRef":null}}`)
	s.apply(strings.Replace(sceneClaim, "spec: {", "spec: {volumeName: "+volume+", ", 1), "again", "reclaim-retained")
	s.status("pvc/again", ".status.phase", "Bound")
	s.kubectl("delete", "pvc", "again")
	s.kubectl("patch", "pv", volume, "-p", `{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`)
	s.gone(volume)
}

// TestOnDeleteRetain: the directory outlives the volume, and is no longer the driver's.
func TestOnDeleteRetain(t *testing.T) {
	t.Parallel()
	s := newScene(t, "on-delete-retain")
	volume := s.deleted("kept", "  onDelete: retain")
	s.gone(volume)
	s.left(volume)
	if got := s.server("cat " + volume + "/file && rm -r " + volume); got != "precious" {
		t.Errorf("the file holds %q", got)
	}
}

// TestOnDeleteArchive: the directory is kept under another name.
func TestOnDeleteArchive(t *testing.T) {
	t.Parallel()
	s := newScene(t, "on-delete-archive")
	volume := s.deleted("archived", "  onDelete: archive")
	s.gone(volume)
	left := s.stored()
	if len(left.directories) != 1 || !strings.HasPrefix(left.directories[0], "archived-"+volume+"-") || len(left.records)+len(left.claims) > 0 {
		t.Fatalf("on the export there are %+v, want one archive", left)
	}
	if got := s.server("cat " + left.directories[0] + "/file"); got != "precious" {
		t.Errorf("the archive's file holds %q", got)
	}
	var archive struct {
		Target string
		Volume record
	}
	if err := json.Unmarshal([]byte(s.server("cat .nfs-csi/archive/*.json")), &archive); err != nil {
		t.Fatal(err)
	}
	if archive.Target != left.directories[0] || archive.Volume.Claim.Name != "data" {
		t.Errorf("the archive's record is %+v", archive)
	}
	s.server("rm -r archived-* .nfs-csi/archive/*")
}

// TestArchiveRetentionAndTakeBack: an archive becomes a claim's volume again, also on
// another node, and goes when its retention ends.
func TestArchiveRetentionAndTakeBack(t *testing.T) {
	t.Parallel()
	s := newScene(t, "take-back")
	s.class("archived-a-while", "  onDelete: archive\n  archiveRetention: 1h")
	s.claim("data", "archived-a-while")
	volume := s.volume("data")
	s.pod("writer", s.c.Nodes()[0].Name(), "data")
	s.sh("writer", "echo precious >/data/file")
	s.kubectl("delete", "pod", "writer", "--wait")
	s.kubectl("delete", "pvc", "data")
	s.gone(volume)

	s.class("taken-back", "  restoreArchive: "+volume+"\n  onDelete: archive\n  archiveRetention: 5s")
	s.claim("back", "taken-back")
	taken := s.volume("back")
	s.pod("reader", s.c.Nodes()[1].Name(), "back")
	if got := s.sh("reader", "cat /data/file"); got != "precious" {
		t.Errorf("the file holds %q", got)
	}
	if got := s.stored(); !slices.Equal(got.directories, []string{taken}) {
		t.Errorf("the directories are %q, want the volume's alone", got.directories)
	}
	s.claim("late", "taken-back")
	s.event("late", "NotFound", volume)
	s.kubectl("delete", "pvc", "late")
	s.kubectl("delete", "pod", "reader", "--wait")
	s.kubectl("delete", "pvc", "back")
	s.gone(taken)
	s.wait("the archive to expire", func(context.Context) error {
		if left := s.server("ls; ls .nfs-csi/archive; " + listTrash); left != "" {
			return fmt.Errorf("there is %s", left)
		}
		return nil
	})
	s.left()
}

// TestSubDir: a class names directories after claims, and parents that were made go with the last.
func TestSubDir(t *testing.T) {
	t.Parallel()
	s := newScene(t, "sub-dir")
	s.class("named", "  subDir: ${pvc.metadata.namespace}/${pvc.metadata.name}")
	s.claim("one", "named")
	volume := s.volume("one")
	if got := s.server("find . -mindepth 1 -name .nfs-csi -prune -o -print | sort"); got != "./sub-dir\n./sub-dir/one" {
		t.Errorf("the directories are %q", got)
	}
	if got := s.record(volume).Dir; got != "sub-dir/one" {
		t.Errorf("the record's directory is %q", got)
	}
	s.pod("app", s.c.Nodes()[0].Name(), "one")
	s.sh("app", "echo hello >/data/file")
	if got := s.server("cat sub-dir/one/file"); got != "hello" {
		t.Errorf("the file holds %q", got)
	}
	s.kubectl("delete", "pod", "app", "--wait")
	s.kubectl("delete", "pvc", "one")
	s.gone(volume)
	if got := s.stored().directories; len(got) > 0 {
		t.Errorf("left are %q", got)
	}
}

// TestManyClaims: a hundred claims at once are all bound, and all go.
func TestManyClaims(t *testing.T) {
	const count = 100
	s := newScene(t, "many-claims")
	var manifests strings.Builder
	for i := range count {
		fmt.Fprintf(&manifests, sceneClaim, fmt.Sprintf("data-%d", i), s.name)
	}
	began := time.Now()
	s.apply("%s", manifests.String())
	volumes := s.bound(count)
	report(t, "bound", time.Since(began))
	got := s.stored()
	if len(got.records) != count || len(got.claims) != count {
		t.Errorf("on the export there are %d records and %d claims of directories, want %d", len(got.records), len(got.claims), count)
	}
	if diff := cmp.Diff(volumes, got.directories); diff != "" {
		t.Errorf("directories (-want +got):\n%s", diff)
	}

	began = time.Now()
	s.kubectl("delete", "pvc", "--all", "--wait=false")
	s.wait("all volumes to go", func(ctx context.Context) error {
		out, err := s.c.Kubectl(ctx, "get", "pv", "--ignore-not-found", "-o", "name")
		if err != nil {
			return err
		}
		left := 0
		for _, v := range volumes {
			if strings.Contains(out, v) {
				left++
			}
		}
		if left > 0 {
			return fmt.Errorf("%d are left", left)
		}
		return nil
	})
	report(t, "deleted", time.Since(began))
	s.left()
}

// report prints a time, and puts it into the JUnit report as a property.
func report(t *testing.T, what string, d time.Duration) {
	d = d.Round(10 * time.Millisecond)
	t.Logf("%s after %v", what, d)
	t.Attr(what, d.String())
}
