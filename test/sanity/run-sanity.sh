#!/bin/sh
# Starts the driver's controller and node, and runs csi-sanity against both.
# Arguments are passed on to csi-sanity.
set -eu

: "${NFS_SERVER:?set NFS_SERVER to the address of the NFS server}"
: "${NFS_SHARE:?set NFS_SHARE to the path that it exports}"

dir=$(mktemp -d)
mkdir -p /out
printf 'server: "%s"\nshare: "%s"\n' "$NFS_SERVER" "$NFS_SHARE" >"$dir/parameters.yaml"
printf 'onDelete: delete\nmountPermissions: "0770"\n' >"$dir/mutable.yaml"

nfs-csi-driver controller --endpoint="unix://$dir/controller.sock" >/out/controller.log 2>&1 &
controller=$!
nfs-csi-driver node --endpoint="unix://$dir/node.sock" --node-id="$(hostname)" >/out/node.log 2>&1 &
node=$!
trap 'kill "$controller" "$node" 2>/dev/null; wait' EXIT

csi-sanity \
	--csi.endpoint="unix://$dir/node.sock" \
	--csi.controllerendpoint="unix://$dir/controller.sock" \
	--csi.testvolumeparameters="$dir/parameters.yaml" \
	--csi.testvolumemutableparameters="$dir/mutable.yaml" \
	--csi.mountdir="$dir/mount" \
	--csi.stagingdir="$dir/staging" \
	--ginkgo.junit-report=/out/sanity.xml \
	"$@"
