package driver

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// TestLog: every call leaves a line that says what, on which volume and export,
// how long and how it ended, and never a secret, at any verbosity.
func TestLog(t *testing.T) {
	const secret = "hunter2"
	secrets := map[string]string{"password": secret}
	store := echoStore()
	store.delete = func(context.Context, string, string) error { return fmt.Errorf("%w: no answer", nfs.ErrUnavailable) }
	c := serve(t, Config{
		Stores:  oneStore(store),
		Mounter: &fakeMounts{},
		NodeID:  "n",
	})
	_, err := c.CreateVolume(t.Context(), createRequest(func(r *csi.CreateVolumeRequest) { r.Secrets = secrets }))
	if err != nil {
		t.Fatal(err)
	}
	// The rest fails in one way or another; failures are logged as well.
	_, _ = c.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: testHandle, Secrets: secrets})
	_, _ = c.ValidateVolumeCapabilities(t.Context(), &csi.ValidateVolumeCapabilitiesRequest{VolumeId: "x", Secrets: secrets})
	_, _ = c.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: testHandle, Secrets: secrets})
	_, _ = c.NodePublishVolume(t.Context(), &csi.NodePublishVolumeRequest{
		VolumeId: testHandle, Secrets: secrets, TargetPath: "/pods/1",
		VolumeCapability: mountCapability(multiWriter), PublishContext: map[string]string{"token": secret},
	})
	// fakeMounts has no list, so this one panics.
	_, _ = c.NodePublishVolume(t.Context(), &csi.NodePublishVolumeRequest{
		VolumeId: testHandle, Secrets: secrets, StagingTargetPath: "/s", TargetPath: "/pods/1", VolumeCapability: mountCapability(multiWriter),
		VolumeContext: map[string]string{"server": "10.0.0.1", "share": "/data", "csi.storage.k8s.io/serviceAccount.tokens": secret},
	})

	wantLines := []string{
		`"Call succeeded" requestID= method="CreateVolume" volume="pvc-1" export="10.0.0.1:/data" duration= code="OK"`,
		`"Call failed" requestID= method="DeleteVolume" volume="v1:10.0.0.1:/data::pvc-1" export="10.0.0.1:/data" duration= code="Unavailable" err=`,
		`"Panic in a call" requestID= method="NodePublishVolume" volume="v1:10.0.0.1:/data::pvc-1" export="10.0.0.1:/data" targetPath="/pods/1" panic=`,
	}
	logs := c.logs.String()
	if strings.Contains(logs, secret) {
		t.Errorf("a secret is in the log:\n%s", logs)
	}
	for _, want := range wantLines {
		if !containsFields(logs, strings.Fields(want)) {
			t.Errorf("no line of the log has %s:\n%s", want, logs)
		}
	}
}

// containsFields reports whether one line holds all the fields; one that ends
// in "=" has any value.
func containsFields(logs string, fields []string) bool {
	for line := range strings.Lines(logs) {
		all := true
		for _, f := range fields {
			all = all && strings.Contains(line, f)
		}
		if all {
			return true
		}
	}
	return false
}
