// Package cluster runs a real Kubernetes cluster in the lab (package lab): the control plane on
// the host, in the lab's network namespace, and every node and the NFS server in a guest of its
// own. There is nothing simulated between a pod and its volume: kubelet, containerd, runc and the
// kernel's NFS client do what they do on any node.
//
// What a cluster lacks: DNS, and service addresses other than the API server's own. Pods reach
// each other, the NFS server and the API server by address. Guests know each other by name, so
// that host-network pods and the kubelet resolve "server".
//
// The programs are built from Go modules, once per version, into the user's cache directory; see
// the module in the directory build. The first Start therefore takes many minutes and says so.
package cluster
