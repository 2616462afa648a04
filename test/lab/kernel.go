package lab

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// guestKernel returns the path of the kernel that guests run.
//
// On processors with AMX that is a copy with one number changed. User Mode Linux 6.1 hands a
// process's extended registers to ptrace(PTRACE_SETREGSET) with a fixed length of 2696 bytes, what
// AVX-512 needs, and the host refuses anything shorter than all that the processor has: 11008
// bytes with AMX. Every guest would panic at its first process. A longer length is cut by the host
// to what it wants; the bytes that are read behind the registers are of components that the saved
// header says are unused, so the host ignores them.
func guestKernel() (string, error) {
	path, err := findTool("linux.uml")
	if err != nil {
		return "", err
	}
	if !hasCPUFlag("amx_tile") {
		return path, nil
	}
	kernel, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the guests' kernel: %w", err)
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	copied := filepath.Join(cache, fmt.Sprintf("linux-%x", sha256.Sum256(kernel))[:len("linux-")+16])
	if _, err := os.Stat(copied); err == nil {
		return copied, nil
	}
	if err := lengthenRegisters(kernel); err != nil {
		return "", fmt.Errorf("this processor has AMX, whose registers %s cannot save: %w", path, err)
	}
	tmp, err := os.CreateTemp(cache, "linux-new-")
	if err != nil {
		return "", fmt.Errorf("copy the guests' kernel: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(kernel)
	err = errors.Join(err, tmp.Chmod(0o755), tmp.Close())
	if err != nil {
		return "", fmt.Errorf("copy the guests' kernel: %w", err)
	}
	if err := os.Rename(tmp.Name(), copied); err != nil {
		return "", fmt.Errorf("copy the guests' kernel: %w", err)
	}
	return copied, nil
}

// lengthenRegisters changes the length in the kernel's one call of PTRACE_SETREGSET:
//
//	movq $2696, iov_len
//	mov  $PTRACE_SETREGSET, %edi
func lengthenRegisters(kernel []byte) error {
	const (
		oldLength = 2696
		newLength = 16384
		reach     = 32 // the two instructions are close to each other
	)
	request := []byte{0xbf, 0x05, 0x42, 0, 0}
	length := binary.LittleEndian.AppendUint32(nil, oldLength)
	var found []int
	for at := 0; ; {
		i := bytes.Index(kernel[at:], request)
		if i < 0 {
			break
		}
		call := at + i
		at = call + len(request)
		from := max(0, call-reach)
		if j := bytes.LastIndex(kernel[from:call], length); j >= 0 {
			found = append(found, from+j)
		}
	}
	if len(found) != 1 {
		return fmt.Errorf("found %d places that set registers, want 1", len(found))
	}
	binary.LittleEndian.PutUint32(kernel[found[0]:], newLength)
	return nil
}

func hasCPUFlag(flag string) bool {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(info)) {
		if name, flags, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "flags" {
			return strings.Contains(" "+strings.TrimSpace(flags)+" ", " "+flag+" ")
		}
	}
	return false
}
