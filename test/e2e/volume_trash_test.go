package e2e

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"
)

// TestTrashIsResumed: the controllers are killed while they unlink two deleted volumes; those that
// come after them go on, with nobody calling. Only a StorageClass names the one export, and only
// a PersistentVolume the other.
//
// It is the last of the cases that run alone, by the name of its file, so that the time for which it
// waits is that of the parallel ones.
func TestTrashIsResumed(t *testing.T) {
	const files = 5000
	s := newScene(t, "resumed")
	by := map[string]string{"class": s.dir, "volume": s.dir + "-by-volume"}
	s.server("mkdir -p " + by["volume"])
	s.apply(`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: resumed-by-volume, labels: {scene: resumed}}
provisioner: %s
parameters: {server: %q, share: %s}
`, driverName, s.c.Server().IPv4(), by["volume"])
	s.claim("by-class")
	s.claim("by-volume", "resumed-by-volume")
	s.claim("kept", "resumed-by-volume")
	s.bound(3)
	deleted := map[string]string{"class": s.volume("by-class"), "volume": s.volume("by-volume")}
	s.kubectl("delete", "storageclass", "resumed-by-volume")

	fill := "cd %s/%s && i=0; while [ $i -lt %d ]; do : >$i; i=$((i+1)); done"
	s.server(fmt.Sprintf("("+fill+"); "+fill, by["class"], deleted["class"], files, by["volume"], deleted["volume"], files))
	s.kubectl("delete", "pvc", "by-class", "by-volume", "--wait=false")
	s.wait("the two volumes to be deleted", func(ctx context.Context) error {
		out, err := s.c.Kubectl(ctx, "get", "pv", "--ignore-not-found", "-o", "name", deleted["class"], deleted["volume"])
		if err == nil && out != "" {
			err = fmt.Errorf("there is %s", out)
		}
		return err
	})
	_, err := s.c.Kubectl(s.ctx, "-n", namespace, "delete", "pod", "-l", "app.kubernetes.io/component=controller", "--grace-period=0", "--force")
	s.must(err)

	left := func(share string) int {
		s.t.Helper()
		n, err := strconv.Atoi(s.server("find " + share + "/.nfs-csi/trash -type f | wc -l"))
		s.must(err)
		return n
	}
	before := map[string]int{}
	s.wait("nobody to unlink any more", func(context.Context) error {
		for name, share := range by {
			last, had := before[name]
			before[name] = left(share)
			if !had || before[name] != last {
				return fmt.Errorf("of %s there are %d files, and were %d", name, before[name], last)
			}
		}
		return nil
	})
	for name, n := range before {
		if n < 1000 {
			t.Fatalf("%d files are left of the export that a %s names: killed too late to show anything", n, name)
		}
	}
	began := time.Now()
	_, err = s.c.Kubectl(s.ctx, "-n", namespace, "rollout", "status", "deployment", "-l", "app.kubernetes.io/component=controller", "--timeout=90s")
	s.must(err)
	// What another process has put into the trash is taken over after 20 seconds.
	t.Parallel()
	ctx, cancel := context.WithTimeout(s.ctx, 3*time.Minute)
	defer cancel()
	s.must(s.c.WaitFor(ctx, "the trash to be empty", func(context.Context) error {
		for name, share := range by {
			if n := left(share); n > 0 {
				return fmt.Errorf("on the export that a %s names there are %d files of %d", name, n, before[name])
			}
		}
		return nil
	}))
	t.Logf("%d and %d files were unlinked within %s of the restart", before["class"], before["volume"], time.Since(began).Round(time.Second))
}
