#!/bin/sh
# Serves /export with the kernel's NFS server, versions 3 and 4, until it is told to stop.
set -eu

share=${NFS_SHARE:-/export}
options=${NFS_OPTIONS:-rw,sync,no_subtree_check,no_root_squash,fsid=1}
# What NFSv4 clients see as "/". A container's own root cannot be it: overlayfs
# has no file handles.
root=/srv/nfs

modprobe nfsd 2>/dev/null || true
mkdir -p "$share" "$root" /run/rpcbind /etc/nfs.conf.d /var/lib/nfs/rpc_pipefs /var/lib/nfs/v4recovery
if ! mountpoint -q /proc/fs/nfsd; then
	mount -t nfsd nfsd /proc/fs/nfsd || {
		echo "nfs-server: this kernel has no NFS server; run 'modprobe nfsd' on the host, and this container privileged" >&2
		exit 1
	}
fi
mount -t tmpfs -o mode=0755 tmpfs "$root"
mkdir -p "$root$share"
mount --bind "$share" "$root$share"
printf '[exports]\nrootdir=%s\n' "$root" >/etc/nfs.conf.d/container.conf

touch /var/lib/nfs/etab /var/lib/nfs/rmtab
echo "$share *($options)" >/etc/exports

stop() {
	rpc.nfsd 0
	exportfs -ua
	exit 0
}
trap stop TERM INT

rpcbind -w || true
exportfs -a
rpc.nfsd --grace-time 10 --lease-time 10 8
rpc.mountd --foreground &
echo "nfs-server: serves $share ($options)"
wait
