package store

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

const (
	timeDigits  = 8
	entryDigits = timeDigits + 4*randomBytes
)

// newEntryName names what a delete puts into the slot: "<id>.<time><sum of the volume's
// key><random>" is the directory, with recordSuffix the record, with claimSuffix the
// claim on its way out. It stays the same in every slot that the entry moves to.
func newEntryName(id string, created time.Time) string {
	return fmt.Sprintf("%s.%08x%s%s", id, uint32(time.Now().Unix()), keySum(volumeKey(id, created)), randomName())
}

func keySum(key string) string { return claimName(key)[:2*randomBytes] }

// isOf says whether the entry is the delete of the volume with that key, and not of
// an earlier one that had its id.
func isOf(entry, key string) bool {
	return len(entry) > entryDigits && entry[len(entry)-entryDigits+timeDigits:][:2*randomBytes] == keySum(key)
}

// parseEntryName returns the id of the volume that was deleted; none for a tree.
func parseEntryName(name string) (id string, ok bool) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 || len(name)-i-1 != entryDigits || deletedAt(name).IsZero() || strings.Trim(name[i+1:], "0123456789abcdef") != "" {
		return "", false
	}
	return name[:i], nfs.CheckRecordID(name[:i]) == nil
}

// deletedAt returns when the delete was that has the entry's name, by the clock of
// the process that made it.
func deletedAt(name string) time.Time {
	name = strings.TrimSuffix(name, treeSuffix)
	digits := name[strings.LastIndexByte(name, '.')+1:]
	seconds, err := strconv.ParseUint(digits[:min(len(digits), timeDigits)], 16, 32)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0).UTC()
}
