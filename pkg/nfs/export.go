package nfs

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
)

// Export is the identity of a mounted export: one server, one share and the
// options of the mount.
type Export struct {
	// Server is a host name, an IP address, or a comma-separated list of
	// addresses of one and the same server, tried in order at mount.
	// IPv6 addresses have no brackets here.
	Server string
	// Share is the absolute, clean path that the server exports.
	Share string
	// Options are mount options as mount(8) takes them after -o, one per
	// element, without those that say how the kernel behaves by default.
	Options []string
}

// defaultOptions are those that change nothing, so that two mounts that differ
// only in them are the same export.
var defaultOptions = map[string]bool{"defaults": true, "rw": true, "hard": true}

// NewExport returns the normalised export, or ErrInvalid with what is wrong.
// Options may hold several options in one element, separated by commas.
func NewExport(server, share string, options []string) (Export, error) {
	addresses, err := parseServer(server)
	if err != nil {
		return Export{}, err
	}
	if err := checkShare(share); err != nil {
		return Export{}, err
	}
	opts, err := normaliseOptions(options)
	if err != nil {
		return Export{}, err
	}
	return Export{Server: strings.Join(addresses, ","), Share: path.Clean(share), Options: opts}, nil
}

// ParseExport reads "server:/share" or "server:/share option,option", the way
// fstab(5) writes them: IPv6 addresses in brackets, a space in the share as \040.
func ParseExport(s string) (Export, error) {
	device, options, _ := strings.Cut(strings.TrimSpace(s), " ")
	server, share, ok := strings.Cut(device, ":/")
	if strings.HasPrefix(device, "[") {
		// An address list may hold several bracketed addresses, and "[::]:/"
		// has ":/" only after its bracket.
		if i := strings.LastIndex(device, "]:/"); i >= 0 {
			server, share, ok = device[:i+1], device[i+3:], true
		}
	}
	if !ok {
		return Export{}, fmt.Errorf("%w: export %q is not of the form server:/share", ErrInvalid, s)
	}
	var opts []string
	if options = strings.TrimSpace(options); options != "" {
		opts = []string{options}
	}
	return NewExport(server, "/"+strings.ReplaceAll(share, `\040`, " "), opts)
}

// Addresses returns the addresses of the server in the order they are tried.
func (e Export) Addresses() []string { return strings.Split(e.Server, ",") }

// Source returns what a mount of the directory dir below the share has as its
// source: "server:/share/dir", IPv6 addresses in brackets. address is one of
// Addresses, dir is relative and may be empty.
func (e Export) Source(address, dir string) string {
	if strings.Contains(address, ":") {
		address = "[" + address + "]"
	}
	return address + ":" + path.Join(e.Share, dir)
}

// String returns "server:/share", the name of the export in messages and logs.
func (e Export) String() string {
	addresses := e.Addresses()
	for i, a := range addresses {
		if strings.Contains(a, ":") {
			addresses[i] = "[" + a + "]"
		}
	}
	return strings.Join(addresses, ",") + ":" + e.Share
}

// Key identifies the export among others; it is unique per server, share and options.
func (e Export) Key() string {
	return e.String() + " " + strings.Join(e.Options, ",")
}

// Equal reports whether both are the same export.
func (e Export) Equal(o Export) bool {
	return e.SameShare(o) && slices.Equal(e.Options, o.Options)
}

// SameShare reports whether both are the same share of the same server, however they
// are mounted.
func (e Export) SameShare(o Export) bool {
	return e.Server == o.Server && e.Share == o.Share
}

func parseServer(server string) ([]string, error) {
	var addresses []string
	for a := range strings.SplitSeq(server, ",") {
		a = strings.TrimSpace(a)
		if strings.HasPrefix(a, "[") && strings.HasSuffix(a, "]") {
			a = a[1 : len(a)-1]
			if ip, err := netip.ParseAddr(a); err != nil || !ip.Is6() {
				return nil, fmt.Errorf("%w: server %q: %q is not an IPv6 address", ErrInvalid, server, a)
			}
		}
		if err := checkAddress(a); err != nil {
			return nil, fmt.Errorf("%w: server %q: %w", ErrInvalid, server, err)
		}
		if ip, err := netip.ParseAddr(a); err == nil {
			a = ip.String()
		} else {
			a = strings.ToLower(a)
		}
		addresses = append(addresses, a)
	}
	return addresses, nil
}

func checkAddress(a string) error {
	if _, err := netip.ParseAddr(a); err == nil {
		return nil
	}
	if a == "" {
		return fmt.Errorf("the address is empty")
	}
	if len(a) > 253 {
		return fmt.Errorf("the host name is longer than 253 bytes")
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(a, "."), ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("%q is neither an IP address nor a host name", a)
		}
		for _, c := range []byte(label) {
			if !isAlphanumeric(c) && c != '-' && c != '_' {
				return fmt.Errorf("%q is neither an IP address nor a host name", a)
			}
		}
	}
	return nil
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// checkShare refuses what no server exports: paths that are relative, climb,
// or hold bytes that break the text of mount options and mountinfo.
func checkShare(share string) error {
	if !strings.HasPrefix(share, "/") {
		return fmt.Errorf("%w: share %q is not an absolute path", ErrInvalid, share)
	}
	if len(share) > 4000 {
		return fmt.Errorf("%w: the share is longer than 4000 bytes", ErrInvalid)
	}
	if share == "/" {
		return nil
	}
	for element := range strings.SplitSeq(strings.Trim(path.Clean(share), "/"), "/") {
		if err := checkElement(element); err != nil {
			return fmt.Errorf("%w: share %q: %w", ErrInvalid, share, err)
		}
	}
	if slices.Contains(strings.Split(share, "/"), "..") {
		return fmt.Errorf("%w: share %q holds \"..\"", ErrInvalid, share)
	}
	return nil
}

func normaliseOptions(options []string) ([]string, error) {
	var out []string
	for _, o := range options {
		for o := range strings.SplitSeq(o, ",") {
			o = strings.TrimSpace(o)
			if o == "" || defaultOptions[o] {
				continue
			}
			if strings.ContainsFunc(o, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '"' || r == '\\' }) {
				return nil, fmt.Errorf("%w: mount option %q holds a space, quote, backslash or control character", ErrInvalid, o)
			}
			if !slices.Contains(out, o) {
				out = append(out, o)
			}
		}
	}
	return out, nil
}
