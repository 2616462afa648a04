// Package driver serves the Container Storage Interface (specification v1.13.0):
// the Identity, Controller and Node services, the kubelet's plugin registration,
// health and metrics. It translates between protobuf and the domain of pkg/nfs.
//
// A handler checks its request, calls the domain and answers. What all of them
// need is in interceptors: logging, metrics, recovery from panics, one operation
// at a time for each volume, and the one table that turns errors into gRPC codes.
package driver
