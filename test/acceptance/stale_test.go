package acceptance

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

// TestStaleMount: when a volume's directory was removed on the server and is
// back, as after a restore from a backup, a new pod gets the new directory; the
// pod that runs keeps its mount, and its target still goes away at the end.
func TestStaleMount(t *testing.T) {
	ctx, b := inLab(t)
	v, err := create(ctx, b.controller, "restored", b.Server.IPv4(), data)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The first try may find that the directory is not the one that the
		// controller's mount has cached, and leaves it alone.
		eventually(t, time.Minute, func() (string, bool) {
			err := remove(ctx, b.controller, v.VolumeId)
			return fmt.Sprint(err), err == nil
		})
	})
	running := b.mustMount(ctx, t, v, "restored", manyWriters, false)
	shell(ctx, t, b.Clients[0], `echo before >"$1/file"`, running.target)

	fresh := running
	fresh.target = "/var/lib/kubelet/pods/restored/second"
	shell(ctx, t, b.Server.Guest, `rm -r "$1/restored"`, data)
	wantCode(t, publish(ctx, fresh, manyWriters, false), codes.NotFound, data, "restored")

	shell(ctx, t, b.Server.Guest, `mkdir "$1/restored" && echo after >"$1/restored/file"`, data)
	wantCode(t, publish(ctx, fresh, manyWriters, false), codes.FailedPrecondition, "NodeStageVolume comes first")
	if err := stage(ctx, fresh, manyWriters); err != nil {
		t.Fatal(err)
	}
	if err := publish(ctx, fresh, manyWriters, false); err != nil {
		t.Fatal(err)
	}
	if got := shell(ctx, t, b.Clients[0], `cat "$1/file"`, fresh.target); got != "after" {
		t.Errorf("a new pod reads %q", got)
	}

	// Once more, with the directory back before anybody looks.
	shell(ctx, t, b.Server.Guest, `mv "$1/restored" "$1/restored.old" && rm -r "$1/restored.old" && mkdir "$1/restored" && echo again >"$1/restored/file"`, data)
	third := running
	third.target = "/var/lib/kubelet/pods/restored/third"
	if err := publish(ctx, third, manyWriters, false); err != nil {
		t.Fatal(err)
	}
	if got := shell(ctx, t, b.Clients[0], `cat "$1/file"`, third.target); got != "again" {
		t.Errorf("the next pod reads %q", got)
	}
	for _, m := range []mounted{fresh, third} {
		if err := unpublish(ctx, m); err != nil {
			t.Error(err)
		}
	}
}
