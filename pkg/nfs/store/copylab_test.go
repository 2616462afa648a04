package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

// labMounts are the exports and versions that copies are tested on, and with what.
// What takes a guest of the lab its time is to make files, and to look at them, so the
// trees are small. Other tests are for LAB_RUN, the large trees for LAB_FULL.
var labMounts = []struct{ name, export, options, tests string }{
	{"ext4-4.2", "/export/ext4", "vers=4.2", "TestCopy(Fidelity|Resumed|Inheritance|FullDisk|RootSquash|MountPoint)$|TestKillCopy|TestCallsOnNFS|" + jobsOnNFS},
	{"xfs-4.2", "/export/xfs", "vers=4.2", "TestCopy(Fidelity|Methods)$"},
	{"ext4-4.1", "/export/ext4", "vers=4.1", "TestCopy(Fidelity|Resumed)$"},
	{"xfs-3", "/export/xfs", "vers=3,nolock", "TestCopyFidelity$|TestSnapshot$|TestClone$"},
}

const jobsOnNFS = "Test(Snapshot|Clone)(|UnderWay|HandedOver)$|TestLeaseSwap|TestJobGivenUp"

// TestLabCopy runs the tests of copies in a guest of the lab, with the temporary
// directory on real NFS. LAB_RUN chooses among the tests, LAB_BENCH among the
// benchmarks, which run instead, LAB_MOUNT among the mounts.
func TestLabCopy(t *testing.T) {
	if os.Getenv("LAB") != "1" {
		t.Skip("starts virtual machines and needs root; run it with: LAB=1 go test ./pkg/nfs/store/ -run TestLabCopy")
	}
	l, err := lab.Start(t.Context(), lab.Options{Name: "copy", Log: labLog{t}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	program := filepath.Join(l.OutDir(), "store.test")
	if err := lab.GoTestBuild(t.Context(), program, "github.com/nfs-csi/nfs-csi-driver/pkg/nfs/store"); err != nil {
		t.Fatal(err)
	}
	server, err := l.StartServer(t.Context(), lab.ServerSpec{Exports: []lab.ExportSpec{
		{Path: "/export/ext4", FS: lab.Ext4, SizeMB: 2048},
		{Path: "/export/xfs", FS: lab.XFS, SizeMB: 2048},
		{Path: "/export/squash", FS: lab.Tmpfs, SizeMB: 64, Options: "rw,sync,no_subtree_check,root_squash"},
		{Path: "/export/small", FS: lab.Ext4, SizeMB: 24},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := server.Output(t.Context(), "chmod", "0777", "/export/squash"); err != nil {
		t.Fatal(err)
	}
	client, err := l.StartGuest(t.Context(), lab.GuestSpec{Name: "client", MemoryMB: 2048})
	if err != nil {
		t.Fatal(err)
	}
	few := "1"
	if os.Getenv("LAB_FULL") != "" {
		few = ""
	}
	for _, m := range labMounts {
		if want := os.Getenv("LAB_MOUNT"); want != "" && want != m.name {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			args := "-test.run='" + m.tests + "'"
			if run := os.Getenv("LAB_RUN"); run != "" {
				args = "-test.run='" + run + "'"
			}
			if bench := os.Getenv("LAB_BENCH"); bench != "" {
				args = "-test.run=NONE -test.benchtime=1x -test.bench='" + bench + "'"
			}
			script := strings.Join([]string{
				"set -e; mkdir -p /mnt/nfs /mnt/small /mnt/squash",
				"mount -t nfs -o " + m.options + " server:" + m.export + " /mnt/nfs",
				"mount -t nfs -o " + m.options + " server:/export/small /mnt/small",
				"mount -t nfs -o " + m.options + " server:/export/squash /mnt/squash",
				"mkdir -p /mnt/nfs/" + m.name,
				"set +e; TMPDIR=/mnt/nfs/" + m.name + " /out/store.test -test.v -test.timeout=9m " + args,
				"status=$?; umount /mnt/nfs /mnt/small /mnt/squash; exit $status",
			}, "\n")
			err := client.Run(t.Context(), lab.Cmd{
				Args: []string{"sh", "-c", script}, Stdout: labLog{t}, Stderr: labLog{t},
				Env: []string{"COPY_TEST_SMALL=/mnt/small", "COPY_TEST_SQUASH=/mnt/squash",
					"COPY_TEST_GUEST=1", "COPY_TEST_FEW=" + few},
			})
			if err != nil {
				t.Errorf("the tests in the guest: %v", err)
			}
		})
	}
}

// labLog sends lines to the test's log.
type labLog struct{ t *testing.T }

func (w labLog) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}
