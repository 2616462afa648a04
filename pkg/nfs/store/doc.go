// Package store keeps volumes on one export: it makes, finds, lists and deletes
// them, and remembers each in a record beside the data. It knows an opened root
// directory and nothing of mounts, CSI or Kubernetes.
//
// Everything that is the store's own lies in one directory of the export:
//
//	.nfs-csi/                              mode 0700
//	  volumes/<id>.json                    the record of a volume
//	  dirs/<hash of the directory's path>  the claim of a directory: a symbolic link whose text is the id
//	  archive/<id>-<created>.json          the record of an archived volume
//	  trash/                               what is deleted already and is removed in the background
//	  work/                                records being written
//
// # Several processes, and any of them killed
//
// Any number of stores may work on one export, and each may die between any two
// file operations. Nothing is kept in memory that matters, and every decision is
// one exclusive operation of the file system: the symlink(2) of the claim decides
// who may make a directory, its mkdir(2) that it was not there before, and the
// link(2) of the record that the volume exists, all or nothing.
//
// Create: claim, directory, owner and mode, record. Whoever retries finds a claim
// with its own id, and takes on the directory if it is empty still. A create that
// was killed and is never tried again leaves its claim and, at most, an empty
// directory; parents made by a create that was killed, or that lost a race, stay
// when the volume goes.
//
// Delete: the directory is renamed to the trash (or the archive's name), empty
// parents go, the record is unlinked, and with that the volume is deleted. The
// claim is left to the purge: the name of the entry in the trash says which it is,
// and where no directory went there, an empty one is made to say it. A create waits
// for a claim whose volume has no record.
//
// Between two processes that delete one volume, the slow one could move what a
// third has made there since. It cannot while the record stands, since the claim
// goes after the record; so who finds the record gone after the move brings the
// directory back to the one that claims it now. For that the purge lets things that
// another process put in the trash lie for a minute, and whoever misses the
// directory of a recorded volume looks again for half a second.
package store
