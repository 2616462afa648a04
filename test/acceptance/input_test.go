package acceptance

import (
	"context"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

// tree lists everything below a share but the driver's own, with what a careless
// driver would change: type, mode, owner, size.
const tree = `cd "$1" && find . -path ./.nfs-csi -prune -o -printf '%y %m %U:%G %s %p %l\n' | sort`

// TestCreateRefused: what the server or the export refuses is told by code and
// message, and leaves nothing behind.
func TestCreateRefused(t *testing.T) {
	ctx, b := inLab(t)
	server := b.Server.IPv4()
	shell(ctx, t, b.Server.Guest, `chmod 777 "$1"; dd if=/dev/zero of="$2/filler" bs=4k 2>/dev/null; true`, squash, small)
	for _, tc := range []struct {
		name, server, share string
		parameters          []string
		code                codes.Code
		says                []string
	}{
		{"nobody at the address", "10.97.0.250", data, nil, codes.Unavailable, []string{"10.97.0.250:" + data}},
		{"nothing listens", b.Clients[1].IPv4(), data, nil, codes.Unavailable, []string{b.Clients[1].IPv4() + ":" + data, "refused"}},
		{"unknown host name", "no-such-host.invalid", data, nil, codes.Unavailable, []string{"no-such-host.invalid"}},
		{"wrong share", server, "/srv/nowhere", nil, codes.FailedPrecondition, []string{server + ":/srv/nowhere"}},
		// NFSv4 hides what a client may not see, so it cannot be told from a wrong share.
		{"refused client", server, refused, nil, codes.FailedPrecondition, []string{server + ":" + refused, "lists this client"}},
		{"read-only export", server, readRO, nil, codes.PermissionDenied, []string{server + ":" + readRO, "read-only"}},
		{"root_squash against chown", server, squash, []string{"uid", "1000"}, codes.PermissionDenied, []string{server + ":" + squash, "root_squash"}},
		{"full export", server, small, nil, codes.ResourceExhausted, []string{server + ":" + small}},
		{"whole share", server, data, []string{"subDir", "/"}, codes.InvalidArgument, []string{"subDir"}},
		{"share by a dot", server, data, []string{"subDir", "."}, codes.InvalidArgument, []string{"subDir"}},
		{"above the share", server, data, []string{"subDir", "../x"}, codes.InvalidArgument, []string{"subDir"}},
		{"driver's own directory", server, data, []string{"subDir", ".nfs-csi/volumes"}, codes.InvalidArgument, []string{"reserved"}},
		{"misspelt parameter", server, data, []string{"subdirr", "x"}, codes.InvalidArgument, []string{"subDir"}},
		{"mode that is none", server, data, []string{"mountPermissions", "rwx"}, codes.InvalidArgument, []string{"mountPermissions"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := shell(ctx, t, b.Server.Guest, tree, "/srv")
			_, err := create(ctx, b.controller, "refused-"+strings.ReplaceAll(tc.name, " ", "-"), tc.server, tc.share, tc.parameters...)
			wantCode(t, err, tc.code, tc.says...)
			if after := shell(ctx, t, b.Server.Guest, tree, "/srv"); withoutOwn(after) != withoutOwn(before) {
				t.Errorf("the refused create changed the exports:\nbefore\n%s\nafter\n%s", before, after)
			}
		})
	}
}

// withoutOwn drops the driver's own directories, and the sizes and link counts
// of directories, from a listing.
func withoutOwn(listing string) string {
	var lines []string
	for line := range strings.Lines(listing) {
		if !strings.Contains(line, "/.nfs-csi") && !strings.HasPrefix(line, "d ") {
			lines = append(lines, line)
			continue
		}
		if f := strings.Fields(line); !strings.Contains(line, "/.nfs-csi") && len(f) > 4 {
			lines = append(lines, strings.Join(append(f[:3], f[4:]...), " ")+"\n")
		}
	}
	slices.Sort(lines) // again, since the sizes that they were sorted by are gone
	return strings.Join(lines, "")
}

// TestRefusedByVersion3: NFSv3 says that it is the client that is refused.
func TestRefusedByVersion3(t *testing.T) {
	ctx, b := inLab(t)
	err := b.createWith(ctx, "refused-by-3", refused, "nfsvers=3")
	wantCode(t, err, codes.PermissionDenied, b.Server.IPv4()+":"+refused)
}

// TestMountOptionUnknown: the kernel's own words reach the operator.
func TestMountOptionUnknown(t *testing.T) {
	ctx, b := inLab(t)
	err := b.createWith(ctx, "bogus-option", data, "bogus=1")
	wantCode(t, err, codes.InvalidArgument, "bogus")
}

// createWith asks for a volume with a mount option.
func (b *bed) createWith(ctx context.Context, name, share, option string) error {
	return b.controller.Call(ctx, "Controller/CreateVolume", &csi.CreateVolumeRequest{
		Name:               name,
		VolumeCapabilities: []*csi.VolumeCapability{capability(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER, option)},
		Parameters:         map[string]string{"server": b.Server.IPv4(), "share": share},
	}, &csi.CreateVolumeResponse{})
}

// TestNames: shares and directories with odd names work from create to delete.
func TestNames(t *testing.T) {
	ctx, b := inLab(t)
	for name, tc := range map[string]struct{ share, dir string }{
		"odd-share":     {odd, "plain"},
		"odd-dir":       {data, "team #1/50% of ü, \"quoted\""},
		"odd-both":      {odd, "a b/#x%20"},
		"longest-names": {data, strings.Repeat("n", 255) + "/" + strings.Repeat("ü", 127)},
	} {
		t.Run(name, func(t *testing.T) {
			v := b.mustCreate(ctx, t, "names-"+name, tc.share, "subDir", tc.dir)
			m := b.mustMount(ctx, t, v, name, manyWriters, false)
			shell(ctx, t, b.Clients[0], `echo hello >"$1/file"`, m.target)
			if got := shell(ctx, t, b.Server.Guest, `cat "$1"`, path.Join(tc.share, tc.dir, "file")); got != "hello" {
				t.Errorf("the server holds %q", got)
			}
			// A repeated stage and publish find their own mounts again.
			if err := stage(ctx, m, manyWriters); err != nil {
				t.Errorf("stage again: %v", err)
			}
			if err := publish(ctx, m, manyWriters, false); err != nil {
				t.Errorf("publish again: %v", err)
			}
		})
	}
}

// TestVersions: each NFS version is mounted as asked for.
func TestVersions(t *testing.T) {
	ctx, b := inLab(t)
	for version, shown := range map[string]string{"3,nolock": "vers=3", "4.0": "vers=4.0", "4.1": "vers=4.1", "4.2": "vers=4.2"} {
		t.Run(version, func(t *testing.T) {
			name := "vers-" + strings.NewReplacer(",", "-", ".", "-").Replace(version)
			c := capability(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER, "nfsvers="+version)
			request := &csi.CreateVolumeRequest{
				Name:               name,
				VolumeCapabilities: []*csi.VolumeCapability{c},
				Parameters:         map[string]string{"server": b.Server.IPv4(), "share": data},
			}
			var response csi.CreateVolumeResponse
			if err := b.controller.Call(ctx, "Controller/CreateVolume", request, &response); err != nil {
				t.Fatal(err)
			}
			m := b.mustMount(ctx, t, response.Volume, name, c, false)
			if got := shell(ctx, t, b.Clients[0], `findmnt -n -o OPTIONS "$1"`, m.target); !strings.Contains(got, shown+",") {
				t.Errorf("mounted with %s, want %s", got, shown)
			}
			shell(ctx, t, b.Clients[0], `echo x >"$1/x" && rm "$1/x"`, m.target)
			t.Cleanup(func() {
				if err := remove(ctx, b.controller, response.Volume.VolumeId); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestReadOnly: a reader cannot write, whichever way it was said.
func TestReadOnly(t *testing.T) {
	ctx, b := inLab(t)
	v := b.mustCreate(ctx, t, "read-only", data)
	for name, tc := range map[string]struct {
		mode     csi.VolumeCapability_AccessMode_Mode
		readOnly bool
	}{
		"many readers":   {csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY, false},
		"single reader":  {csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY, false},
		"readonly field": {csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER, true},
	} {
		t.Run(name, func(t *testing.T) {
			m := b.mustMount(ctx, t, v, "ro-"+strings.ReplaceAll(name, " ", "-"), capability(tc.mode), tc.readOnly)
			if got := shell(ctx, t, b.Clients[0], `touch "$1/x" 2>&1; true`, m.target); !strings.Contains(got, "Read-only file system") {
				t.Errorf("a write said %q", got)
			}
		})
	}
	m := b.mustMount(ctx, t, v, "rw", manyWriters, false)
	shell(ctx, t, b.Clients[0], `touch "$1/x"`, m.target)
}

// TestOwnership: only the driver's own directories are ever taken, changed or removed.
func TestOwnership(t *testing.T) {
	ctx, b := inLab(t)
	server := b.Server.IPv4()
	shell(ctx, t, b.Server.Guest, `cd "$1" && mkdir -p foreign/full outside && echo precious >foreign/full/file && mkdir -m 750 foreign/empty &&
		echo precious >outside/file && ln -s outside link && chmod 751 .`, nested)
	before := shell(ctx, t, b.Server.Guest, tree, nested)
	for name, tc := range map[string]struct {
		dir  string
		code codes.Code
	}{
		"full directory":   {"foreign/full", codes.FailedPrecondition},
		"empty directory":  {"foreign/empty", codes.FailedPrecondition},
		"link":             {"link", codes.FailedPrecondition},
		"beneath a link":   {"link/volume", codes.FailedPrecondition},
		"beneath a file":   {"outside/file/volume", codes.FailedPrecondition},
		"file":             {"outside/file", codes.FailedPrecondition},
		"parent of others": {"foreign", codes.FailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := create(ctx, b.controller, "own-"+strings.ReplaceAll(name, " ", "-"), server, nested, "subDir", tc.dir, "mountPermissions", "0777")
			wantCode(t, err, tc.code, server+":"+nested)
		})
	}
	t.Run("inside another volume", func(t *testing.T) {
		b.mustCreate(ctx, t, "own-outer", nested, "subDir", "outer")
		_, err := create(ctx, b.controller, "own-inner", server, nested, "subDir", "outer/inner")
		wantCode(t, err, codes.AlreadyExists, "own-outer")
	})
	t.Run("directory of another volume", func(t *testing.T) {
		b.mustCreate(ctx, t, "own-first", nested, "subDir", "same")
		_, err := create(ctx, b.controller, "own-second", server, nested, "subDir", "same")
		wantCode(t, err, codes.AlreadyExists, "own-first")
	})
	t.Run("directory of another driver", func(t *testing.T) {
		err := remove(ctx, b.controller, server+"#"+strings.TrimPrefix(nested, "/")+"#foreign/full##delete")
		wantCode(t, err, codes.FailedPrecondition, "foreign/full")
	})
	t.Run("permissions are the volume's alone", func(t *testing.T) {
		v := b.mustCreate(ctx, t, "own-mode", nested, "subDir", "mode/dir", "mountPermissions", "2770", "uid", "1000", "gid", "2000")
		if got := shell(ctx, t, b.Server.Guest, `stat -c '%a %u:%g' "$1/mode/dir"`, nested); got != "2770 1000:2000" {
			t.Errorf("%s is %s", v.VolumeId, got)
		}
	})
	if after := shell(ctx, t, b.Server.Guest, tree, nested); withoutOwn(after) != withoutOwn(before) {
		t.Errorf("directories of others changed:\nbefore\n%s\nafter\n%s", before, after)
	}
}

// TestOnDelete: retained and archived volumes keep their data, however often the
// same name comes and goes.
func TestOnDelete(t *testing.T) {
	ctx, b := inLab(t)
	server := b.Server.IPv4()
	shell(ctx, t, b.Server.Guest, `mkdir -p "$1/keep" && echo mine >"$1/keep/file"`, data)
	t.Cleanup(func() { shell(ctx, t, b.Server.Guest, `rm -rf "$1/keep" "$1/retained"`, data) })

	for range 3 {
		v, err := create(ctx, b.controller, "archived", server, data, "subDir", "keep/archived", "onDelete", "archive")
		if err != nil {
			t.Fatal(err)
		}
		shell(ctx, t, b.Server.Guest, `echo data >"$1/keep/archived/file"`, data)
		for range 2 {
			if err := remove(ctx, b.controller, v.VolumeId); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := shell(ctx, t, b.Server.Guest, `cat "$1"/keep/archived-archived-*-archived/file; ls "$1/keep" | wc -l; cat "$1/keep/file"`, data); got != "data\ndata\ndata\n4\nmine" {
		t.Errorf("three archives of the volume and the neighbour hold %q", got)
	}

	v, err := create(ctx, b.controller, "retained", server, data, "subDir", "retained", "onDelete", "retain")
	if err != nil {
		t.Fatal(err)
	}
	shell(ctx, t, b.Server.Guest, `echo data >"$1/retained/file"`, data)
	for range 2 {
		if err := remove(ctx, b.controller, v.VolumeId); err != nil {
			t.Fatal(err)
		}
	}
	if got := shell(ctx, t, b.Server.Guest, `cat "$1/retained/file"`, data); got != "data" {
		t.Errorf("the retained volume holds %q", got)
	}
	_, err = create(ctx, b.controller, "retained", server, data, "subDir", "retained", "onDelete", "retain")
	wantCode(t, err, codes.FailedPrecondition, "retained")
}

// TestDeleteWithoutParent: the directory and its parent may be gone already.
func TestDeleteWithoutParent(t *testing.T) {
	ctx, b := inLab(t)
	v, err := create(ctx, b.controller, "parentless", b.Server.IPv4(), data, "subDir", "gone/deep/volume")
	if err != nil {
		t.Fatal(err)
	}
	shell(ctx, t, b.Server.Guest, `rm -r "$1/gone"`, data)
	for range 2 {
		if err := remove(ctx, b.controller, v.VolumeId); err != nil {
			t.Error(err)
		}
	}
}
