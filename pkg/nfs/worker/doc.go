// Package worker runs everything that may wait for an NFS server in child
// processes, so that a dead server costs its own volumes a clear error and
// nothing else.
//
// A worker is this same binary, executed again, that answers gRPC calls on a
// socketpair. It ends when the other end of the socket is closed, by whatever
// cause. A store worker mounts one export where no path leads to it, gives up
// every capability that work on files does not need, and serves a store. A mount
// worker keeps its capabilities and mounts for the node service.
//
// StorePool and MountPool run the workers: one for each export or server,
// started on demand, stopped when idle, killed when a call gets no answer in
// time. SIGKILL ends a process that waits for an NFS server, and takes its mount
// with it. After a failure a breaker answers at once, with growing pauses
// between trials.
package worker
