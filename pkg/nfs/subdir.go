package nfs

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// reservedPrefixes begin the names, at any level, that belong to the driver
// (".nfs-csi", "archived-") or to the NFS client (".nfs<number>", a file that was
// removed while open).
var reservedPrefixes = []string{".nfs", "archived-"}

// SubDirValues are what the template variables of subDir stand for.
type SubDirValues struct {
	PVCName, PVCNamespace, PVName string
}

// DefaultSubDir is the template that is used when none is given.
const DefaultSubDir = "${pv.metadata.name}"

// ExpandSubDir returns the directory that the template gives, relative to the
// share. Each variable's value is one path element: a value that is empty, ".",
// "..", or holds a slash is refused, so no PVC can name a directory outside
// of where the template puts it.
func ExpandSubDir(template string, values SubDirValues) (string, error) {
	if template == "" {
		template = DefaultSubDir
	}
	var dir strings.Builder
	for rest := template; ; {
		before, after, found := strings.Cut(rest, "${")
		dir.WriteString(before)
		if !found {
			break
		}
		variable, tail, closed := strings.Cut(after, "}")
		if !closed {
			return "", fmt.Errorf("%w: subDir %q: \"${\" is never closed", ErrInvalid, template)
		}
		value, err := values.lookup(variable)
		if err != nil {
			return "", fmt.Errorf("%w: subDir %q: %w", ErrInvalid, template, err)
		}
		dir.WriteString(value)
		rest = tail
	}
	if err := CheckSubDir(dir.String()); err != nil {
		return "", fmt.Errorf("subDir template %q: %w", template, err)
	}
	return dir.String(), nil
}

func (v SubDirValues) lookup(variable string) (string, error) {
	var value string
	switch variable {
	case "pvc.metadata.name":
		value = v.PVCName
	case "pvc.metadata.namespace":
		value = v.PVCNamespace
	case "pv.metadata.name":
		value = v.PVName
	default:
		return "", fmt.Errorf("unknown variable ${%s}; known are ${pvc.metadata.name}, ${pvc.metadata.namespace}, ${pv.metadata.name}", variable)
	}
	if value == "" {
		return "", fmt.Errorf("${%s} has no value; does the provisioner run with --extra-create-metadata?", variable)
	}
	if strings.Contains(value, "/") {
		return "", fmt.Errorf("the value %q of ${%s} holds a slash", value, variable)
	}
	if err := checkElement(value); err != nil {
		return "", fmt.Errorf("the value of ${%s}: %w", variable, err)
	}
	return value, nil
}

// CheckSubDir refuses, with ErrInvalid, what cannot be the directory of a
// volume: anything that is not one or more plain path elements, names the share
// itself, or uses a name that belongs to the driver or the NFS client.
func CheckSubDir(dir string) error {
	if len(dir) > 3000 {
		return fmt.Errorf("%w: subDir is longer than 3000 bytes", ErrInvalid)
	}
	for element := range strings.SplitSeq(dir, "/") {
		if err := checkElement(element); err != nil {
			return fmt.Errorf("%w: subDir %q: %w", ErrInvalid, dir, err)
		}
		for _, p := range reservedPrefixes {
			if strings.HasPrefix(strings.ToLower(element), p) {
				return fmt.Errorf("%w: subDir %q: names that begin with %q are reserved", ErrInvalid, dir, p)
			}
		}
	}
	return nil
}

func checkElement(e string) error {
	switch {
	case e == "":
		return fmt.Errorf("a path element is empty")
	case e == "." || e == "..":
		return fmt.Errorf("%q is not a directory name", e)
	case len(e) > 255:
		return fmt.Errorf("a path element is longer than 255 bytes")
	case !utf8.ValidString(e):
		return fmt.Errorf("%q is not valid UTF-8", e)
	case strings.ContainsFunc(e, unicode.IsControl):
		return fmt.Errorf("%q holds a control character", e)
	}
	return nil
}
