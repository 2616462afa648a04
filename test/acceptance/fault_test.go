package acceptance

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nfs-csi/nfs-csi-driver/test/testbed"
)

// slack is what a bounded call may take beyond its bound on a loaded machine.
const slack = 15 * time.Second

// within fails when f takes longer than the bound and the slack.
func within(t *testing.T, bound time.Duration, what string, f func() error) error {
	t.Helper()
	began := time.Now()
	err := f()
	if took := time.Since(began); took > bound+slack {
		t.Errorf("%s took %s, the bound is %s", what, took.Round(time.Millisecond), bound)
	}
	return err
}

// TestDeadServer: a server that is cut off costs its own volumes clear errors in
// time; pods end, other servers' volumes work, and all heals when it is back.
func TestDeadServer(t *testing.T) {
	ctx, b := inLab(t)
	dead := b.mustStartServer(ctx, t, "dead", data)
	doomed, err := create(ctx, b.controller, "doomed", dead.IPv4(), data)
	if err != nil {
		t.Fatal(err)
	}
	other := b.mustCreate(ctx, t, "unharmed", data)
	m := mounted{node: b.node, volume: doomed, staging: "/var/lib/kubelet/staging/doomed", target: "/var/lib/kubelet/pods/doomed/mount"}
	shell(ctx, t, b.Clients[0], `mkdir -p "$1" "${2%/*}"`, m.staging, m.target)
	if err := stage(ctx, m, manyWriters); err != nil {
		t.Fatal(err)
	}
	if err := publish(ctx, m, manyWriters, false); err != nil {
		t.Fatal(err)
	}
	shell(ctx, t, b.Clients[0], `echo data >"$1/file"`, m.target)

	if err := dead.CutNetwork(ctx); err != nil {
		t.Fatal(err)
	}
	t.Run("delete fails in time and names the export", func(t *testing.T) {
		err := within(t, operationTimeout, "DeleteVolume", func() error { return remove(ctx, b.controller, doomed.VolumeId) })
		wantUnavailable(t, err)
		err = within(t, operationTimeout, "the second DeleteVolume", func() error { return remove(ctx, b.controller, doomed.VolumeId) })
		wantUnavailable(t, err, dead.IPv4()+":"+data)
	})
	t.Run("stats fail in time", func(t *testing.T) {
		err := within(t, operationTimeout, "NodeGetVolumeStats", func() error { return stats(ctx, m) })
		wantUnavailable(t, err)
	})
	t.Run("other server's volumes are not harmed", func(t *testing.T) {
		n := b.mustMount(ctx, t, other, "unharmed", manyWriters, false)
		shell(ctx, t, b.Clients[0], `echo x >"$1/x"`, n.target)
		err := within(t, 0, "NodeGetVolumeStats", func() error { return stats(ctx, n) })
		if err != nil {
			t.Error(err)
		}
		b.mustCreate(ctx, t, "unharmed-too", data)
	})
	t.Run("driver is alive", func(t *testing.T) {
		for _, d := range []*testbed.Driver{b.controller, b.node} {
			var r csi.ProbeResponse
			if err := d.Call(ctx, "Identity/Probe", &csi.ProbeRequest{}, &r); err != nil || !r.Ready.GetValue() {
				t.Errorf("probe: %v, %v", &r, err)
			}
		}
	})
	t.Run("pod ends", func(t *testing.T) {
		err := within(t, operationTimeout, "NodeUnpublishVolume", func() error { return unpublish(ctx, m) })
		if err != nil {
			t.Error(err)
		}
		err = within(t, operationTimeout, "NodeUnstageVolume", func() error { return unstage(ctx, m) })
		if err != nil {
			t.Error(err)
		}
		if got := shell(ctx, t, b.Clients[0], `grep -c doomed /proc/self/mountinfo; true`); got != "0" {
			t.Errorf("%s mounts of the dead server's volume are left", got)
		}
	})
	if err := dead.RestoreNetwork(ctx); err != nil {
		t.Fatal(err)
	}
	t.Run("heals", func(t *testing.T) {
		eventually(t, time.Minute, func() (string, bool) {
			err := remove(ctx, b.controller, doomed.VolumeId)
			return fmt.Sprint(err), err == nil
		})
		if got := shell(ctx, t, dead.Guest, `ls "$1"`, data); strings.Contains(got, "doomed") {
			t.Errorf("the deleted volume is still there: %s", got)
		}
	})
}

func wantUnavailable(t *testing.T, err error, texts ...string) {
	t.Helper()
	if code := status.Code(err); code != codes.Unavailable && code != codes.DeadlineExceeded {
		t.Fatalf("got %v: %v\nwant Unavailable or DeadlineExceeded", code, err)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("the message %q does not say %q", err, text)
		}
	}
}

// TestServerAddresses: the second of a server's addresses serves when the first is dead.
func TestServerAddresses(t *testing.T) {
	ctx, b := inLab(t)
	for name, server := range map[string]string{
		"dead-first": "10.97.0.250," + b.Server.IPv4(),
		"ipv6":       b.Server.IPv6(),
		"hostname":   b.Server.Name(),
	} {
		t.Run(name, func(t *testing.T) {
			v, err := create(ctx, b.controller, "address-"+name, server, data)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := remove(ctx, b.controller, v.VolumeId); err != nil {
					t.Error(err)
				}
			})
			m := b.mustMount(ctx, t, v, "address-"+name, manyWriters, false)
			shell(ctx, t, b.Clients[0], `echo x >"$1/x"`, m.target)
			if err := stage(ctx, m, manyWriters); err != nil {
				t.Errorf("stage again: %v", err)
			}
		})
	}
}

// TestTwoControllers: two controllers on one export answer one name with one volume.
func TestTwoControllers(t *testing.T) {
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
	for i := range 10 {
		name := fmt.Sprintf("race-%d", i)
		var ids [2]string
		var errs [2]error
		var wg sync.WaitGroup
		for j, d := range []*testbed.Driver{b.controller, second} {
			wg.Go(func() {
				var r csi.CreateVolumeResponse
				errs[j] = d.Call(ctx, "Controller/CreateVolume", &csi.CreateVolumeRequest{
					Name:               name,
					VolumeCapabilities: []*csi.VolumeCapability{manyWriters},
					Parameters:         map[string]string{"server": b.Server.IPv4(), "share": data, "subDir": "race/" + name},
				}, &r)
				ids[j] = r.Volume.GetVolumeId()
			})
		}
		wg.Wait()
		if errs[0] != nil || errs[1] != nil || ids[0] != ids[1] {
			t.Fatalf("%s: %q and %q, %v and %v", name, ids[0], ids[1], errs[0], errs[1])
		}
		// What one made, the other sees at once and deletes.
		if err := remove(ctx, second, ids[0]); err != nil {
			t.Fatal(err)
		}
		if err := remove(ctx, b.controller, ids[0]); err != nil {
			t.Fatal(err)
		}
	}
	if got := shell(ctx, t, b.Server.Guest, `ls -A "$1/race" "$1/.nfs-csi/dirs" 2>/dev/null | grep race-; true`, data); got != "" {
		t.Errorf("left behind: %s", got)
	}
}

// TestControllerKilled: no process outlives a killed controller, and the next one
// goes on with the trash by itself.
func TestControllerKilled(t *testing.T) {
	ctx, b := inLab(t)
	client := b.Clients[1]
	arguments := []string{"-v=4", "--purge-rate=50", "--export=" + b.Server.IPv4() + ":" + nested}
	first, err := b.StartDriver(ctx, client, "controller", arguments...)
	if err != nil {
		t.Fatal(err)
	}
	v, err := create(ctx, first, "killed", b.Server.IPv4(), nested)
	if err != nil {
		t.Fatal(err)
	}
	shell(ctx, t, b.Server.Guest, `cd "$1/killed" && seq 2000 | xargs touch`, nested)
	if err := remove(ctx, first, v.VolumeId); err != nil {
		t.Fatal(err)
	}
	// What goes while find looks is no error.
	const inTrash = `cd "$1/.nfs-csi/trash" && { find . -mindepth 2 2>/dev/null; true; }`
	if got := shell(ctx, t, b.Server.Guest, inTrash, nested); got == "" {
		t.Fatal("the trash was emptied before the controller could be killed")
	}
	if err := first.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() (string, bool) {
		got := shell(ctx, t, client, `pgrep -fa 'nfs-csi-driver' | grep -v pgrep; true`)
		return got, !strings.Contains(got, "worker") && !strings.Contains(got, "controller")
	})
	second, err := b.StartDriver(ctx, client, "controller", "-v=4", "--export="+b.Server.IPv4()+":"+nested)
	if err != nil {
		t.Fatal(err)
	}
	// What another process put there is taken over after 20 seconds.
	eventually(t, 3*time.Minute, func() (string, bool) {
		got := shell(ctx, t, b.Server.Guest, inTrash, nested)
		return got, got == ""
	})
	if err := second.Stop(ctx); err != nil {
		t.Error(err)
	}
}
