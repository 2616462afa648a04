package mount

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	mountutils "k8s.io/mount-utils"
)

const mountInfoPath = "/proc/self/mountinfo"

// List returns the mounts of this mount namespace in the order of mountinfo: of
// several at one place, the last is on top. No server is asked.
//
// It does not use mountutils.ParseMountInfo, which leaves the kernel's escapes in
// the paths and takes a path with a no-break space, which the kernel does not
// escape, for several fields.
func (m *Mounter) List() ([]mountutils.MountInfo, error) {
	text, err := m.readMountInfo()
	if err != nil {
		return nil, fmt.Errorf("read the mounts of this machine: %w", err)
	}
	return parseMountInfo(text)
}

// readMountInfo reads mountinfo whole, with open, read and close alone. This is
// done several times for each pod, and os.ReadFile makes three times as many
// system calls, most of them for a poller that mountinfo has no use for.
func readMountInfo() (string, error) {
	fail := func(err error) error { return &os.PathError{Op: "read", Path: mountInfoPath, Err: err} }
	fd, err := unix.Open(mountInfoPath, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fail(err)
	}
	defer unix.Close(fd)
	// The kernel gives about a page at a time.
	const page = 4 << 10
	text := make([]byte, 0, 2*page)
	for {
		n, err := unix.Read(fd, text[len(text):cap(text)])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return "", fail(err)
		case n == 0:
			return string(text), nil
		}
		text = slices.Grow(text[:len(text)+n], page)
	}
}

// readSettledMountInfo reads until nothing changes. Before Linux 5.8 a mount that
// goes away while it is read can hide another one.
func readSettledMountInfo() (string, error) {
	text, err := readMountInfo()
	if err != nil {
		return "", err
	}
	for range 20 {
		again, err := readMountInfo()
		if err != nil || again == text {
			return again, err
		}
		text = again
	}
	return "", fmt.Errorf("%s does not stop changing", mountInfoPath)
}

func mountInfoSkips() bool {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return true
	}
	release := unix.ByteSliceToString(name.Release[:])
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return true
	}
	return major < 5 || major == 5 && minor < 8
}

// parseMountInfo reads the text of /proc/<pid>/mountinfo (proc_pid_mountinfo(5)).
func parseMountInfo(text string) ([]mountutils.MountInfo, error) {
	var infos []mountutils.MountInfo
	for line := range strings.Lines(text) {
		info, err := parseMountInfoLine(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("mountinfo line %q: %w", line, err)
		}
		infos = append(infos, info)
	}
	return infos, nil
}

func parseMountInfoLine(line string) (mountutils.MountInfo, error) {
	var info mountutils.MountInfo
	own, super, ok := strings.Cut(line, " - ")
	if !ok {
		return info, fmt.Errorf("there is no separator")
	}
	fields, superFields := strings.Split(own, " "), strings.SplitN(super, " ", 3)
	if len(fields) < 6 || len(superFields) != 3 {
		return info, fmt.Errorf("there are too few fields")
	}
	major, minor, _ := strings.Cut(fields[2], ":")
	for _, n := range []struct {
		text string
		to   *int
	}{{fields[0], &info.ID}, {fields[1], &info.ParentID}, {major, &info.Major}, {minor, &info.Minor}} {
		var err error
		if *n.to, err = strconv.Atoi(n.text); err != nil {
			return info, fmt.Errorf("%q is not a number", n.text)
		}
	}
	info.Root = strings.TrimSuffix(unescape(fields[3]), deletedSuffix)
	info.MountPoint = strings.TrimSuffix(unescape(fields[4]), deletedSuffix)
	info.MountOptions = splitOptions(fields[5])
	info.OptionalFields = fields[6:]
	info.FsType = unescape(superFields[0])
	info.Source = unescape(superFields[1])
	info.SuperOptions = splitOptions(superFields[2])
	return info, nil
}

// deletedSuffix marks a directory that is gone (fs/d_path.c); no path holds "//".
const deletedSuffix = "//deleted"

// unescape undoes the kernel's octal escapes (lib/string_helpers.c, ESCAPE_OCTAL).
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// splitOptions splits at commas that are not in quotes, as those of an SELinux
// context may be.
func splitOptions(s string) []string {
	if !strings.Contains(s, `"`) {
		return strings.Split(s, ",")
	}
	quoted := false
	return strings.FieldsFunc(s, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return r == ',' && !quoted
	})
}

// Find returns the mount on top at the target, an absolute path as mountinfo
// shows it: with every symbolic link resolved.
func Find(infos []mountutils.MountInfo, target string) (mountutils.MountInfo, bool) {
	target = path.Clean(target)
	for i := len(infos) - 1; i >= 0; i-- {
		if infos[i].MountPoint == target {
			return infos[i], true
		}
	}
	return mountutils.MountInfo{}, false
}

// find is Find for a target whose parent may lead through symbolic links, as the
// kubelet's root directory does on some machines. The target itself is not
// touched.
func (m *Mounter) find(infos []mountutils.MountInfo, target string) (mountutils.MountInfo, bool) {
	return Find(infos, resolveParent(infos, target))
}

// resolveParent resolves the symbolic links in the parent of the target, unless
// an NFS mount lies on the way: looking there could wait for a dead server, and
// what cannot be resolved is no mount point that mountinfo would show.
func resolveParent(infos []mountutils.MountInfo, target string) string {
	target = path.Clean(target)
	if _, ok := Find(infos, target); ok {
		return target
	}
	parent := path.Dir(target)
	for _, info := range infos {
		if strings.HasPrefix(info.FsType, fsType) && within(parent, info.MountPoint) {
			return target
		}
	}
	resolved, err := filepath.EvalSymlinks(parent)
	if err != nil {
		return target
	}
	return path.Join(resolved, path.Base(target))
}

func within(p, base string) bool {
	return p == base || strings.HasPrefix(p, strings.TrimSuffix(base, "/")+"/")
}
