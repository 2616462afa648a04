package driver

import (
	"context"
	"errors"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func TestClassExport(t *testing.T) {
	for _, tt := range []struct {
		name       string
		parameters map[string]string
		options    []string
		want       string // its key; "" for an error
	}{
		{"plain", map[string]string{"server": "a", "share": "/b"}, nil, "a:/b "},
		{"as CreateVolume reads it", map[string]string{"Server": "A", "SHARE": "/b/", "onDelete": "retain", "csi.storage.k8s.io/fstype": "nfs"}, []string{"ro", "hard", "nfsvers=4.1,nconnect=4"}, "a:/b nfsvers=4.1,nconnect=4"},
		{"no server", map[string]string{"share": "/b"}, nil, ""},
		{"unknown parameter", map[string]string{"server": "a", "share": "/b", "path": "c"}, nil, ""},
		{"bad option", map[string]string{"server": "a", "share": "/b"}, []string{"a b"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ClassExport(tt.parameters, tt.options)
			if tt.want == "" {
				if !errors.Is(err, nfs.ErrInvalid) {
					t.Errorf("got %v, %v; want ErrInvalid", got, err)
				}
				return
			}
			if err != nil || got.Key() != tt.want {
				t.Errorf("got %q, %v; want %q", got.Key(), err, tt.want)
			}
			// The volumes of the class are on that very export.
			var opened nfs.Export
			stores := oneStore(echoStore())
			open := stores.open
			stores.open = func(ctx context.Context, e nfs.Export) (Store, error) { opened = e; return open(ctx, e) }
			c := &controller{stores: stores}
			resp, err := c.CreateVolume(t.Context(), createRequest(func(r *csi.CreateVolumeRequest) {
				r.Parameters = tt.parameters
				r.VolumeCapabilities = []*csi.VolumeCapability{mountCapability(multiWriter, tt.options...)}
			}))
			if err != nil || !opened.Equal(got) {
				t.Fatalf("CreateVolume opened %q, %v", opened.Key(), err)
			}
			if e, err := HandleExport(resp.GetVolume().GetVolumeId()); err != nil || !e.Equal(got) {
				t.Errorf("the export of the handle %q is %q, %v", resp.GetVolume().GetVolumeId(), e.Key(), err)
			}
		})
	}
}

func TestHandleExportRefuses(t *testing.T) {
	for _, handle := range []string{"", "written-by-hand", "v2:a:/b::c", "10.0.0.1#data#pvc-1##", "v1:a:/b::../c"} {
		if e, err := HandleExport(handle); !errors.Is(err, nfs.ErrInvalid) {
			t.Errorf("%q: %q, %v; want ErrInvalid", handle, e.Key(), err)
		}
	}
}
