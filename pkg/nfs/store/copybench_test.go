package store

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
)

// BenchmarkCopy compares copies with cp -a on the same file system: the temporary
// directory's.
func BenchmarkCopy(b *testing.B) {
	for _, shape := range []struct {
		name string
		make func(b *testing.B, at string)
	}{
		{"10000-files-of-4KiB", func(b *testing.B, at string) { fillTree(b, at, 100, 100, 4<<10) }},
		{"one-directory-of-5000", func(b *testing.B, at string) { fillTree(b, at, 1, 5000, 100) }},
		{"2000-directories-of-3", func(b *testing.B, at string) { fillTree(b, at, 2000, 3, 1000) }},
		{"one-file-of-256MiB", func(b *testing.B, at string) { fillTree(b, at, 1, 1, 256<<20) }},
	} {
		b.Run(shape.name, func(b *testing.B) {
			bed := newCopyBed(b)
			shape.make(b, bed.source())
			// Ours is on disk when it ends; where cp -a leaves that to the kernel, on
			// local file systems, the two do not compare.
			for n := range b.N {
				cp := measure(b, func() {
					cmd := exec.CommandContext(b.Context(), "cp", "-a", bed.source(), fmt.Sprintf("%s/cp%d", bed.dir, n))
					if out, err := cmd.CombinedOutput(); err != nil {
						b.Fatalf("cp: %v: %s", err, out)
					}
				})
				ours := measure(b, func() {
					if _, err := newTreeCopy(bed.src, bed.work, fmt.Sprint("id", n), copyOptions{}).run(b.Context()); err != nil {
						b.Fatal(err)
					}
				})
				b.ReportMetric(cp.Seconds(), "cp-s")
				b.ReportMetric(ours.Seconds(), "copy-s")
				b.ReportMetric(ours.Seconds()/cp.Seconds(), "copy/cp")
			}
		})
	}
}

// measure says how long f takes and, on NFS, which calls to the server.
func measure(b *testing.B, f func()) time.Duration {
	b.Helper()
	if isNFS(b, os.TempDir()) {
		before := mountStats(b)
		defer func() {
			after := mountStats(b)
			for name, n := range before {
				if after[name] -= n; after[name] == 0 {
					delete(after, name)
				}
			}
			b.Logf("%d calls: %s", sum(after), after)
		}()
	}
	runtime.GC()
	began := time.Now()
	f()
	return time.Since(began)
}

func fillTree(b *testing.B, at string, dirs, files, size int) {
	b.Helper()
	data := []byte(strings.Repeat("0123456789abcdef", size/16+1)[:size])
	for d := range dirs {
		dir := fmt.Sprintf("%s/%d/sub", at, d)
		mustMkdir(b, dir)
		for f := range files {
			if err := os.WriteFile(fmt.Sprintf("%s/%d", dir, f), data, 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
}
