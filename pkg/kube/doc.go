// Package kube is the little that the driver asks of a Kubernetes API server:
// which exports StorageClasses and PersistentVolumes name, and to take a taint
// off a node. Nothing in the driver waits for it.
//
// It speaks the API's JSON over net/http. With client-go every worker, which is
// the same program, would have 4 to 6 MiB more of resident memory, for lists,
// watches and a patch that are a few lines each.
package kube
