package acceptance

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

// ctl runs "nfs-csi-driver ctl" on client1 and returns what it writes.
func (b *bed) ctl(ctx context.Context, args ...string) (stdout, stderr string, err error) {
	var out, errs strings.Builder
	err = b.Clients[0].Run(ctx, lab.Cmd{Args: append([]string{b.Path("nfs-csi-driver"), "ctl"}, args...), Stdout: &out, Stderr: &errs})
	return out.String(), errs.String(), err
}

type ctlRow struct {
	Kind, Path, ID, Name, Directory, Handle, Problem string
	UsedFiles                                        int64
	UsedBytes                                        int64
}

func (b *bed) ctlRows(ctx context.Context, t *testing.T, args ...string) []ctlRow {
	t.Helper()
	stdout, stderr, err := b.ctl(ctx, append(args, "-o", "json")...)
	if err != nil {
		t.Fatalf("ctl %v: %v\n%s", args, err, stderr)
	}
	var rows []ctlRow
	if err := json.Unmarshal([]byte(stdout), &rows); err != nil {
		t.Fatalf("ctl %v: %v\n%s", args, err, stdout)
	}
	return rows
}

// TestCtl: ctl shows and mends what is on a real export, through the controller's
// socket and on a mount of it, and both see the same.
func TestCtl(t *testing.T) {
	ctx, b := inLab(t)
	export := b.Server.IPv4() + ":" + looked
	client := b.Clients[0]
	shell(ctx, t, client, `mkdir -p /mnt/looked && mount -t nfs4 "$1" /mnt/looked`, export)
	t.Cleanup(func() { shell(ctx, t, client, "umount /mnt/looked") })
	ways := map[string][]string{"socket": {"--export", export}, "path": {"--path", "/mnt/looked", "--export", export}}

	b.mustCreate(ctx, t, "ctl-live", looked, "subDir", "team/live")
	archived, err := create(ctx, b.controller, "ctl-old", b.Server.IPv4(), looked, "onDelete", "archive")
	if err == nil {
		err = remove(ctx, b.controller, archived.VolumeId)
	}
	if err != nil {
		t.Fatal(err)
	}
	shell(ctx, t, b.Server.Guest, `cd "$1" && head -c 1000000 /dev/urandom >team/live/file && mkdir -p stray/deep && echo precious >stray/deep/file`, looked)
	for name, flags := range ways {
		if got := b.ctlRows(ctx, t, append([]string{"volumes", "--usage"}, flags...)...); len(got) != 1 || got[0].Directory != "team/live" ||
			got[0].UsedFiles != 2 || got[0].UsedBytes < 1000000 || got[0].UsedBytes > 1100000 || !strings.HasSuffix(got[0].Handle, ":ctl-live") {
			t.Errorf("%s: volumes: %+v", name, got)
		}
		if got := b.ctlRows(ctx, t, append([]string{"archive"}, flags...)...); len(got) != 1 || !strings.HasPrefix(got[0].Path, "archived-ctl-old-") || got[0].Problem != "" {
			t.Errorf("%s: archive: %+v", name, got)
		}
		if got := b.ctlRows(ctx, t, append([]string{"orphans"}, flags...)...); len(got) != 1 || got[0].Path != "stray" {
			t.Errorf("%s: orphans: %+v", name, got)
		}
	}

	// The archive comes back as another volume.
	old, stderr, err := b.ctl(ctx, append([]string{"restore", "ctl-old", "--name=ctl-again", "--directory=again", "--on-delete=delete", "--yes", "-o", "json"}, ways["socket"]...)...)
	if err != nil {
		t.Fatalf("restore: %v: %s", err, stderr)
	}
	var again ctlRow
	if err := json.Unmarshal([]byte(old), &again); err != nil || again.Directory != "again" || len(b.ctlRows(ctx, t, append([]string{"archive"}, ways["path"]...)...)) != 0 {
		t.Errorf("restored: %v, %s", err, old)
	}
	shell(ctx, t, b.Server.Guest, `test -d "$1"`, looked+"/again")
	if err := remove(ctx, b.controller, again.Handle); err != nil {
		t.Error(err)
	}

	// A directory of another becomes a volume, which CSI can delete.
	adopt := func(flags ...string) (string, error) {
		stdout, stderr, err := b.ctl(ctx, append([]string{"adopt", "stray", "--name=ctl-stray", "--on-delete=delete", "-o", "json"}, flags...)...)
		if err != nil {
			return "", errors.New(err.Error() + ": " + stderr)
		}
		var row ctlRow
		err = json.Unmarshal([]byte(stdout), &row)
		return row.Handle, err
	}
	var handles []string
	for _, flags := range [][]string{ways["path"], append(ways["socket"], "--yes"), append(ways["path"], "--yes")} {
		handle, err := adopt(flags...)
		if err != nil {
			t.Fatal(err)
		}
		handles = append(handles, handle)
	}
	if handles[0] != handles[1] || handles[1] != handles[2] {
		t.Errorf("handles: %q", handles)
	}
	m := b.mustMount(ctx, t, &csi.Volume{VolumeId: handles[1], VolumeContext: map[string]string{"server": b.Server.IPv4(), "share": looked, "subDir": "stray"}}, "ctl-stray", manyWriters, false)
	if got := shell(ctx, t, client, `cat "$1/deep/file"`, m.target); got != "precious" {
		t.Errorf("the adopted volume holds %q", got)
	}
	_, stderr, err = b.ctl(ctx, append([]string{"adopt", "team", "--name=ctl-team", "--yes"}, ways["socket"]...)...)
	var exit *lab.ExitError
	if !errors.As(err, &exit) || exit.Code != 1 || !strings.Contains(stderr, export) || !strings.Contains(stderr, `"team/live"`) {
		t.Errorf("adopting what holds a volume: %v: %s", err, stderr)
	}
	if err := unpublish(ctx, m); err != nil {
		t.Error(err)
	}
	if err := unstage(ctx, m); err != nil {
		t.Error(err)
	}
	if err := remove(ctx, b.controller, handles[1]); err != nil {
		t.Fatal(err)
	}
	for name, flags := range ways {
		stdout, stderr, err := b.ctl(ctx, append([]string{"purge"}, flags...)...)
		if err != nil || !strings.Contains(stdout, "WAITING") {
			t.Errorf("%s: purge: %v: %s%s", name, err, stdout, stderr)
		}
		if got := b.ctlRows(ctx, t, append([]string{"trash"}, flags...)...); len(got) != 0 {
			t.Errorf("%s: trash after the purge: %+v", name, got)
		}
	}
	if got := shell(ctx, t, b.Server.Guest, `ls "$1"`, looked); strings.Contains(got, "stray") {
		t.Errorf("the deleted directory is still there: %s", got)
	}
}
