package driver

import (
	"context"
	"net"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/admin"
	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs/admin/adminpb"
)

// AdminServer serves what "nfs-csi-driver ctl" asks of a controller, on a socket of
// its own: the sidecars, which have the CSI socket, cannot adopt directories.
type AdminServer struct {
	grpc   *grpc.Server
	logger klog.Logger
}

// NewAdminServer returns a server of the exports.
func NewAdminServer(exports *admin.Server, logger klog.Logger) *AdminServer {
	s := &AdminServer{
		grpc:   grpc.NewServer(grpc.ChainUnaryInterceptor(logCalls(logger), mapErrors, recoverPanics)),
		logger: logger,
	}
	adminpb.RegisterAdminServer(s.grpc, exports)
	return s
}

// Serve serves on the listener until ctx ends, as Server.Serve does.
func (s *AdminServer) Serve(ctx context.Context, listener net.Listener) error {
	s.logger.Info("Serving ctl", "address", listener.Addr().String())
	return serveUntil(ctx, s.grpc, listener, DefaultDrainTimeout, func() {})
}

// PersistentVolume returns the manifest of a PersistentVolume for an existing volume,
// in the form that encoders take. Its reclaim policy is Retain; with Delete, it is
// deleted like one that was provisioned.
func PersistentVolume(driverName string, export nfs.Export, v nfs.Volume) map[string]any {
	spec := map[string]any{
		"accessModes":                   []string{"ReadWriteMany"},
		"capacity":                      map[string]any{"storage": v.CapacityBytes},
		"persistentVolumeReclaimPolicy": "Retain",
		"storageClassName":              "",
		"csi": map[string]any{
			"driver":           driverName,
			"volumeHandle":     nfs.Handle{Export: export, ID: v.ID}.String(),
			"volumeAttributes": volumeContext(export, v.Dir),
		},
	}
	if len(export.Options) > 0 {
		spec["mountOptions"] = export.Options
	}
	if v.Claim.Name != "" {
		spec["claimRef"] = map[string]any{"namespace": v.Claim.Namespace, "name": v.Claim.Name}
	}
	return map[string]any{
		"apiVersion": "v1",
		"kind":       "PersistentVolume",
		// Without the annotation no provisioner would delete it, whatever the policy.
		"metadata": map[string]any{"name": v.Name, "annotations": map[string]string{"pv.kubernetes.io/provisioned-by": driverName}},
		"spec":     spec,
	}
}
