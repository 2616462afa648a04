// Package nfs holds the domain of the driver: exports, volumes, their handles
// and the errors that every layer speaks in. It knows nothing of protobuf,
// Kubernetes, mounts or file systems.
package nfs
