package driver

import (
	"fmt"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// accessMode is the access mode of a volume capability.
type accessMode = csi.VolumeCapability_AccessMode_Mode

// readOnlyMode reports whether the mode allows no writing at all.
func readOnlyMode(mode accessMode) bool {
	return mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY ||
		mode == csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
}

// singleTarget reports whether the mode allows only one target path per node:
// the rows with FAILED_PRECONDITION of the second table of NodePublishVolume in
// the CSI specification.
func singleTarget(mode accessMode) bool {
	return mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER ||
		mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY ||
		mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
}

// checkCapability refuses, with nfs.ErrInvalid, what no NFS volume can do.
func checkCapability(c *csi.VolumeCapability) error {
	if c == nil {
		return invalidf("volume_capability is missing in the request")
	}
	switch c.GetAccessType().(type) {
	case *csi.VolumeCapability_Mount:
	case *csi.VolumeCapability_Block:
		return invalidf("block volumes are not supported: an NFS volume is a file system; use volumeMode Filesystem")
	default:
		return invalidf("the volume capability has no access type")
	}
	if c.GetMount().GetVolumeMountGroup() != "" {
		return invalidf("volume_mount_group is not supported; use the parameter %q", paramGID)
	}
	mode := c.GetAccessMode().GetMode()
	if _, known := csi.VolumeCapability_AccessMode_Mode_name[int32(mode)]; !known || mode == csi.VolumeCapability_AccessMode_UNKNOWN {
		return invalidf("the volume capability has no known access mode (%v)", mode)
	}
	return nil
}

// checkCapabilities checks all capabilities of a volume and returns their mount
// flags, which must agree: one volume is mounted in one way.
func checkCapabilities(capabilities []*csi.VolumeCapability) ([]string, error) {
	if len(capabilities) == 0 {
		return nil, invalidf("volume_capabilities are missing in the request")
	}
	for _, c := range capabilities {
		if err := checkCapability(c); err != nil {
			return nil, err
		}
	}
	flags := capabilities[0].GetMount().GetMountFlags()
	for _, c := range capabilities[1:] {
		if other := c.GetMount().GetMountFlags(); !slices.Equal(flags, other) {
			// The flags themselves may be sensitive, as the specification says.
			return nil, invalidf("the mount options of the volume capabilities differ")
		}
	}
	return flags, nil
}

// writable returns the mount flags without "ro": the controller must write to
// an export even where the pods may only read.
func writable(flags []string) []string {
	var out []string
	for _, f := range flags {
		for option := range strings.SplitSeq(f, ",") {
			if strings.TrimSpace(option) != "ro" {
				out = append(out, option)
			}
		}
	}
	return out
}

// capacityBounds checks the capacity range of a request.
func capacityBounds(r *csi.CapacityRange) (minBytes, maxBytes int64, err error) {
	minBytes, maxBytes = r.GetRequiredBytes(), r.GetLimitBytes()
	if minBytes < 0 || maxBytes < 0 {
		return 0, 0, invalidf("capacity_range holds a negative size")
	}
	if maxBytes > 0 && maxBytes < minBytes {
		return 0, 0, fmt.Errorf("%w: the limit of %d bytes is less than the %d required", nfs.ErrOutOfRange, maxBytes, minBytes)
	}
	return minBytes, maxBytes, nil
}

// checkName refuses the names that the CSI specification bans: longer than 128
// bytes, or with control characters that are no white space.
func checkName(name string) error {
	if err := required("name", name); err != nil {
		return err
	}
	if len(name) > 128 {
		return invalidf("the name is %d bytes long; the limit is 128", len(name))
	}
	if strings.ContainsFunc(name, bannedRune) {
		return invalidf("the name %q holds a control character", name)
	}
	return nil
}

func bannedRune(r rune) bool {
	return r <= 0x08 || r == 0x0b || r == 0x0c || 0x0e <= r && r <= 0x1f || 0x7f <= r && r <= 0x9f
}
