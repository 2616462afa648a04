package nfs_test

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func TestRecordID(t *testing.T) {
	for name, want := range map[string]string{
		"pvc-5a9f5b1c-63bb-4bd5-a3f5-1d2c3b4a5f6e": "pvc-5a9f5b1c-63bb-4bd5-a3f5-1d2c3b4a5f6e",
		"a.b":                   "a.b",
		"":                      "x-",
		".":                     "x-",
		"..":                    "x-",
		"a/b":                   "x-",
		"Upper":                 "x-",
		"x-plain":               "x-",
		"trailing.":             "x-",
		"ünïcode":               "x-",
		strings.Repeat("a", 63): strings.Repeat("a", 63),
		strings.Repeat("a", 64): "x-",
	} {
		got := nfs.RecordID(name)
		if want == "x-" && (!strings.HasPrefix(got, "x-") || len(got) != 34) || want != "x-" && got != want {
			t.Errorf("RecordID(%q) = %q, want %q", name, got, want)
		}
		if err := nfs.CheckRecordID(got); err != nil {
			t.Errorf("RecordID(%q): %v", name, err)
		}
	}
	for _, id := range []string{"", ".", "..", "a/b", "x-", "x-0123456789ABCDEF0123456789abcdef", "x-0123", "a\x00"} {
		if err := nfs.CheckRecordID(id); err == nil {
			t.Errorf("CheckRecordID(%q) accepted it", id)
		}
	}
}

func TestIncompatible(t *testing.T) {
	one, two := uint32(1), uint32(2)
	spec := nfs.VolumeSpec{Name: "v", Dir: "d", MinBytes: 10, OnDelete: nfs.Delete, Mode: 0o755, UID: &one, RestoreArchive: "old"}
	volume := nfs.Volume{Name: "v", Dir: "d", CapacityBytes: 10, OnDelete: nfs.Delete, Mode: 0o755, UID: &one, RestoredArchive: "old-1", RestoredName: "old"}
	for _, tc := range []struct {
		name   string
		change func(*nfs.VolumeSpec)
		want   string
	}{
		{"same", func(*nfs.VolumeSpec) {}, ""},
		{"smaller without limit", func(s *nfs.VolumeSpec) { s.MinBytes = 5 }, ""},
		{"claim does not matter", func(s *nfs.VolumeSpec) { s.Claim.Name = "x" }, ""},
		{"larger", func(s *nfs.VolumeSpec) { s.MinBytes = 11 }, "less than"},
		{"limit below", func(s *nfs.VolumeSpec) { s.MinBytes, s.MaxBytes = 5, 9 }, "more than the limit"},
		{"name", func(s *nfs.VolumeSpec) { s.Name = "w" }, "made for the name"},
		{"dir", func(s *nfs.VolumeSpec) { s.Dir = "e" }, "directory"},
		{"onDelete", func(s *nfs.VolumeSpec) { s.OnDelete = nfs.Retain }, "onDelete"},
		{"archiveRetention", func(s *nfs.VolumeSpec) { s.ArchiveRetention = time.Hour }, "for ever, not 1h0m0s"},
		{"archive by its id", func(s *nfs.VolumeSpec) { s.RestoreArchive = "old-1" }, ""},
		{"another archive", func(s *nfs.VolumeSpec) { s.RestoreArchive = "old-2" }, `"old-1", not from "old-2"`},
		{"no archive", func(s *nfs.VolumeSpec) { s.RestoreArchive = "" }, `"old-1", not from ""`},
		{"shared", func(s *nfs.VolumeSpec) { s.Shared = true }, "has false, not true"},
		{"mode", func(s *nfs.VolumeSpec) { s.Mode = 0o700 | fs.ModeSetgid }, "02700"},
		{"uid", func(s *nfs.VolumeSpec) { s.UID = &two }, "uid"},
		{"gid", func(s *nfs.VolumeSpec) { s.GID = &two }, "gid"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := spec
			tc.change(&s)
			got := volume.Incompatible(s)
			if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
				t.Errorf("got %q, want %q in it", got, tc.want)
			}
		})
	}
}

func TestUnixMode(t *testing.T) {
	for u := range uint32(0o10000) {
		if got := nfs.UnixMode(nfs.FileMode(u)); got != u {
			t.Fatalf("mode %#o became %#o", u, got)
		}
	}
}

func TestParseOnDelete(t *testing.T) {
	for in, want := range map[string]nfs.OnDelete{"": nfs.Delete, "Delete": nfs.Delete, "retain": nfs.Retain, "ARCHIVE": nfs.Archive} {
		if got, err := nfs.ParseOnDelete(in); err != nil || got != want {
			t.Errorf("ParseOnDelete(%q) = %q, %v", in, got, err)
		}
	}
	if _, err := nfs.ParseOnDelete("destroy"); err == nil {
		t.Error("destroy was accepted")
	}
}

func TestVolumeChange(t *testing.T) {
	one, two := uint32(1), uint32(2)
	was := nfs.Volume{ID: "v", CapacityBytes: 10, OnDelete: nfs.Delete, Mode: 0o755, UID: &one}
	for name, tt := range map[string]struct {
		change nfs.VolumeChange
		want   func(*nfs.Volume)
		err    error
	}{
		"nothing":         {want: func(*nfs.Volume) {}},
		"larger":          {change: nfs.VolumeChange{MinBytes: 11, MaxBytes: 11}, want: func(v *nfs.Volume) { v.CapacityBytes = 11 }},
		"never smaller":   {change: nfs.VolumeChange{MinBytes: 5}, want: func(*nfs.Volume) {}},
		"as the limit":    {change: nfs.VolumeChange{MinBytes: 5, MaxBytes: 10}, want: func(*nfs.Volume) {}},
		"above the limit": {change: nfs.VolumeChange{MinBytes: 5, MaxBytes: 9}, err: nfs.ErrOutOfRange},
		"retention": {change: nfs.VolumeChange{OnDelete: new(nfs.Archive), ArchiveRetention: new(time.Hour)}, want: func(v *nfs.Volume) {
			v.OnDelete, v.ArchiveRetention = nfs.Archive, time.Hour
		}},
		"retention of nothing": {change: nfs.VolumeChange{ArchiveRetention: new(time.Hour)}, err: nfs.ErrInvalid},
		"all else": {change: nfs.VolumeChange{OnDelete: new(nfs.Retain), Mode: new(fs.FileMode(0o700)), UID: &two, GID: &one}, want: func(v *nfs.Volume) {
			v.OnDelete, v.Mode, v.UID, v.GID = nfs.Retain, 0o700, &two, &one
		}},
	} {
		got, err := tt.change.Apply(was)
		if !errors.Is(err, tt.err) {
			t.Errorf("%s: %v, want %v", name, err, tt.err)
		}
		if err != nil {
			continue
		}
		want := was
		tt.want(&want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	kept := nfs.Volume{ID: "v", OnDelete: nfs.Archive, ArchiveRetention: time.Hour}
	for _, change := range []nfs.VolumeChange{{MinBytes: 1}, {ArchiveRetention: new(time.Hour)}, {OnDelete: new(nfs.Archive)}} {
		if got, err := change.Apply(kept); err != nil || got.ArchiveRetention != time.Hour {
			t.Errorf("%+v: %+v, %v", change, got, err)
		}
	}
	if got, err := (nfs.VolumeChange{OnDelete: new(nfs.Retain)}).Apply(kept); err != nil || got.ArchiveRetention != 0 {
		t.Errorf("no longer archived: %+v, %v", got, err)
	}
}
