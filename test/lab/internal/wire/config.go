package wire

// ConfigVariable names the environment variable (set on the guest's kernel command line) that
// holds the host path of the guest's Config.
const ConfigVariable = "LABCONFIG"

// Config is what a guest is told at boot.
type Config struct {
	Hostname string
	IPv4     string // address/prefix
	IPv6     string // address/prefix
	Hosts    string // contents of /etc/hosts
	Mounts   []HostMount
}

// HostMount shows a host directory in the guest.
type HostMount struct {
	Host     string
	Guest    string
	Writable bool
}

// Builtin commands of the agent.
const (
	BuiltinWriteFile = "write-file" // path mode; contents from standard input
	BuiltinCopyFile  = "copy-file"  // source destination mode
	BuiltinServe     = "nfs-serve"  // JSON of ServerConfig: mounts, exports, daemons
	BuiltinNFSStart  = "nfs-start"
	BuiltinNFSStop   = "nfs-stop"
	BuiltinPowerOff  = "poweroff"
)

// ServerConfig is what the NFS server's guest exports.
type ServerConfig struct {
	Exports      []Export
	Threads      int
	GraceSeconds int
	StateDir     string // survives a restart of the guest
}

// Export is one exported file system. Device is empty for tmpfs.
type Export struct {
	Path    string
	FS      string
	Device  string
	SizeMB  int
	Clients string
	Options string
}
