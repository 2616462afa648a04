package acceptance

import (
	"fmt"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nfs-csi/nfs-csi-driver/test/testbed"
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

// TestTakeBack: of two controllers that want one archive, for volumes of different
// names, one gets it, whole; and again, when it is asked again.
func TestTakeBack(t *testing.T) {
	ctx, b := inLab(t)
	second, err := b.StartDriver(ctx, b.Clients[1], "controller", "-v=4")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := second.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	server := b.Server.IPv4()
	v := b.mustCreate(ctx, t, "taken-0", data, "subDir", "taken/0", "onDelete", "archive", "uid", "1234", "mountPermissions", "02751")
	shell(ctx, t, b.Server.Guest, `echo precious >"$1/file"`, data+"/taken/0")
	if err := remove(ctx, b.controller, v.VolumeId); err != nil {
		t.Fatal(err)
	}
	from := "taken-0"
	for _, name := range []string{"taken-1", "taken-2", "taken-3"} {
		var wg sync.WaitGroup
		errs := make([]error, 2)
		names := []string{name + "-a", name + "-b"}
		ids := make([]string, 2)
		for i, d := range []*testbed.Driver{b.controller, second} {
			wg.Go(func() {
				v, err := create(ctx, d, names[i], server, data, "subDir", "taken/"+names[i], "onDelete", "archive", "restoreArchive", from)
				if errs[i] = err; err == nil {
					ids[i] = v.VolumeId
				}
			})
		}
		wg.Wait()
		winner := 0
		if errs[0] != nil {
			winner = 1
		}
		if code := status.Code(errs[1-winner]); errs[winner] != nil || code != codes.NotFound && code != codes.AlreadyExists {
			t.Fatalf("%s: %v and %v; want one volume, and NotFound or AlreadyExists", name, errs[0], errs[1])
		}
		if got := shell(ctx, t, b.Server.Guest, `cd "$1" && cat file && stat -c '%u %a' .`, path.Join(data, "taken", names[winner])); got != "precious\n1234 2751" {
			t.Errorf("%s: the directory holds and is %q", name, got)
		}
		// The other controller gives the same answer to the same request.
		again, err := create(ctx, second, names[winner], server, data, "subDir", "taken/"+names[winner], "onDelete", "archive", "restoreArchive", from)
		if err != nil || again.VolumeId != ids[winner] {
			t.Errorf("%s again: %v, %v", name, again, err)
		}
		if err := remove(ctx, b.controller, ids[winner]); err != nil {
			t.Fatal(err)
		}
		from = names[winner]
	}
	_, err = create(ctx, b.controller, "taken-4", server, data, "restoreArchive", "taken-0")
	wantCode(t, err, codes.NotFound, server+":"+data, "taken-0")
	left := shell(ctx, t, b.Server.Guest, `cd "$1" && ls taken .nfs-csi/archive | grep taken-; rm -r taken .nfs-csi/archive/taken-*`, data)
	if n := len(strings.Fields(left)); n != 2 {
		t.Errorf("left are %q, want the last archive and its record", left)
	}
}

// TestShared: two controllers make and delete volumes that share a directory, which
// stays, whole, until the last of them goes.
func TestShared(t *testing.T) {
	ctx, b := inLab(t)
	second, err := b.StartDriver(ctx, b.Clients[1], "controller", "-v=4")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := second.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	server := b.Server.IPv4()
	first, err := create(ctx, b.controller, "shared-first", server, data, "subDir", "shared/data", "shared", "true", "mountPermissions", "0777")
	if err != nil {
		t.Fatal(err)
	}
	shell(ctx, t, b.Server.Guest, `echo precious >"$1/file"`, data+"/shared/data")
	var wg sync.WaitGroup
	for i, d := range []*testbed.Driver{b.controller, second} {
		wg.Go(func() {
			for n := range 5 {
				name := fmt.Sprintf("shared-%d-%d", i, n)
				v, err := create(ctx, d, name, server, data, "subDir", "shared/data", "shared", "true")
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				if got := v.VolumeContext["subDir"]; got != "shared/data" {
					t.Errorf("%s is %q", name, got)
				}
				if err := remove(ctx, d, v.VolumeId); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	wg.Wait()
	_, err = create(ctx, second, "shared-not", server, data, "subDir", "shared/data")
	wantCode(t, err, codes.AlreadyExists, server+":"+data, "shared")
	if got := shell(ctx, t, b.Server.Guest, `cd "$1" && cat file && stat -c %a .`, data+"/shared/data"); got != "precious\n777" {
		t.Errorf("the directory holds and is %q", got)
	}
	if err := remove(ctx, second, first.VolumeId); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func() (string, bool) {
		got := shell(ctx, t, b.Server.Guest, `cd "$1" && ls -d shared .nfs-csi/shared/* 2>/dev/null; true`, data)
		return got, got == ""
	})
}
