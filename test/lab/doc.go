// Package lab starts real NFS servers and clients on a machine whose kernel has neither: guests of
// User Mode Linux, a Linux kernel that runs as an ordinary process, on one private network.
//
// A lab is a network namespace with a bridge; no packet leaves it. A guest's root is the host's
// file system, read-only, under an overlay that is gone afterwards: what was built on the host is
// there under the same path (under /tmp, /run and /dev the guest has its own; see GuestPath).
// Commands run in a guest through an agent on its serial line, so a guest that is cut off the
// network stays controllable. Every guest has the lab's OutDir at /out to bring results back.
//
// A lab needs root on Linux/amd64 and a few Debian packages; Check says what is missing.
package lab
