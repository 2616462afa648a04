// Package mount mounts NFS exports with the kernel's own interface and no
// helper program: fsopen(2), fsconfig(2), fsmount(2) and move_mount(2), or
// mount(2) where the kernel or a seccomp profile lacks those. It also binds,
// unmounts and reads mountinfo. What mount.nfs(8) does in user space is done
// here: names become addresses, versions are negotiated, options that the
// kernel does not know are handled or refused.
//
// System calls that mount, or ask a server for its space, block inside the
// kernel while the server does not answer, and nothing but the end of the
// process interrupts them. The context is obeyed by name resolution and address
// probing and looked at between system calls; a caller that must not hang runs
// Mount, Detached, Bind and Usage in a process that it can kill. Unmount and
// the readers of mountinfo never wait for a server.
package mount
