// Package ctl is what "nfs-csi-driver ctl" does: it shows an operator what there is
// on the exports, and mends it. It asks a controller through its socket, or opens
// the store on a mounted export itself.
package ctl
