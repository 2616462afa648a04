package acceptance

import (
	"strings"
	"testing"
	"time"
)

// TestArchiveRetention: an archive goes when its retention ends, one without stays.
func TestArchiveRetention(t *testing.T) {
	ctx, b := inLab(t)
	server := b.Server.IPv4()
	const retention = 5 * time.Second
	var ids []string
	for name, parameters := range map[string][]string{
		"soon": {"subDir", "retention/soon", "onDelete", "archive", "archiveRetention", retention.String()},
		"kept": {"subDir", "retention/kept", "onDelete", "archive"},
	} {
		v, err := create(ctx, b.controller, "retention-"+name, server, data, parameters...)
		if err != nil {
			t.Fatal(err)
		}
		shell(ctx, t, b.Server.Guest, `echo precious >"$1/file"`, data+"/retention/"+name)
		ids = append(ids, v.VolumeId)
	}
	began := time.Now()
	for _, id := range ids {
		if err := remove(ctx, b.controller, id); err != nil {
			t.Fatal(err)
		}
	}
	list := func() string {
		return shell(ctx, t, b.Server.Guest, `cd "$1/retention" && ls; cat archived-kept-*/file`, data)
	}
	eventually(t, time.Minute, func() (string, bool) {
		got := list()
		return got, !strings.Contains(got, "archived-soon-")
	})
	if took := time.Since(began); took < retention {
		t.Errorf("the archive was gone after %v, and was to be kept for %v", took, retention)
	}
	if got := list(); !strings.HasPrefix(got, "archived-kept-") || !strings.HasSuffix(got, "precious") {
		t.Errorf("what is left: %q", got)
	}
	shell(ctx, t, b.Server.Guest, `cd "$1" && rm -r retention .nfs-csi/archive/retention-*`, data)
}
