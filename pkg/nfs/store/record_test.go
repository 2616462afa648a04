package store

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

func someRecord() *record {
	uid := uint32(0)
	r := newRecord(testOptions, nfs.VolumeSpec{Name: "größe #1", Dir: "a b/ü/%41", MinBytes: 5, OnDelete: nfs.Archive,
		Mode: nfs.FileMode(0o2770), UID: &uid, Claim: nfs.Claim{Namespace: "n", Name: "c"}}, 1, time.Now().UTC())
	return r
}

func TestRecordRoundTrip(t *testing.T) {
	want := someRecord()
	data, err := encode(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeRecord("f", data)
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(record{})); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	a := &archiveRecord{Version: 1, Target: archiveName("x", want.ID, time.Now()), Archived: want.Created, Volume: *want}
	if data, err = encode(a); err != nil {
		t.Fatal(err)
	}
	gotArchive, err := decodeArchive("f", data)
	if diff := cmp.Diff(a, gotArchive, cmpopts.IgnoreUnexported(record{})); err != nil || diff != "" {
		t.Errorf("archive: %v (-want +got):\n%s", err, diff)
	}
}

func TestRecordIsStrict(t *testing.T) {
	data, err := encode(someRecord())
	if err != nil {
		t.Fatal(err)
	}
	good := string(data)
	for name, change := range map[string][2]string{
		"newer version":    {`"version": 1`, `"version": 2`},
		"no version":       {`"version": 1,`, ``},
		"version text":     {`"version": 1`, `"version": "1"`},
		"unknown field":    {`"version": 1`, `"version": 1, "quota": 7`},
		"cut off":          {good[len(good)/2:], ``},
		"followed":         {"}\n", "}\n{}"},
		"empty":            {good, ``},
		"null":             {good, `null`},
		"list":             {good, `[]`},
		"other id":         {`"id": "x-`, `"id": "x-0`},
		"other name":       {`"name": "größe`, `"name": "grösse`},
		"dir climbs":       {`"dir": "a b/ü/%41"`, `"dir": "../x"`},
		"dir is the share": {`"dir": "a b/ü/%41"`, `"dir": "."`},
		"dir is absolute":  {`"dir": "a b/ü/%41"`, `"dir": "/etc"`},
		"no dir":           {`"dir": "a b/ü/%41"`, `"dir": ""`},
		"parents":          {`"parentsCreated": 1`, `"parentsCreated": 3`},
		"negative parents": {`"parentsCreated": 1`, `"parentsCreated": -1`},
		"onDelete":         {`"onDelete": "archive"`, `"onDelete": "shred"`},
		"no onDelete":      {`"onDelete": "archive"`, `"onDelete": ""`},
		"mode":             {`"mode": "2770"`, `"mode": "9999"`},
		"long mode":        {`"mode": "2770"`, `"mode": "12770"`},
		"capacity":         {`"capacityBytes": 5`, `"capacityBytes": -5`},
		"uid":              {`"uid": 0`, `"uid": -1`},
		"state":            {`"state": "ready"`, `"state": "odd"`},
		"driver":           {`"driver": "csi.test"`, `"driver": ""`},
		"created":          {`"created": "2`, `"created": "x2`},
	} {
		t.Run(name, func(t *testing.T) {
			bad := strings.Replace(good, change[0], change[1], 1)
			if bad == good {
				t.Fatal("nothing was changed")
			}
			r, err := decodeRecord("volumes/some.json", []byte(bad))
			wantError(t, err, nfs.ErrForeign, "volumes/some.json")
			if r != nil {
				t.Errorf("got %+v", r)
			}
		})
	}
}

// Whatever decodes is sound, and says the same when it is written again.
func FuzzDecodeRecord(f *testing.F) {
	data, err := encode(someRecord())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(bytes.ReplaceAll(data, []byte("1"), []byte("2")))
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`{"version":1,"name":"a","id":"a","dir":"a","mode":"0000","onDelete":"delete","driver":"d","state":"ready","created":"2026-01-01T00:00:00Z"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRecord("f", data)
		if err != nil {
			wantError(t, err, nfs.ErrForeign)
			return
		}
		if err := nfs.CheckSubDir(r.Dir); err != nil {
			t.Errorf("dir: %v", err)
		}
		if err := nfs.CheckRecordID(r.ID); err != nil {
			t.Errorf("id: %v", err)
		}
		if got := r.volume(); nfs.RecordID(got.Name) != got.ID || formatMode(nfs.UnixMode(got.Mode)) != r.Mode {
			t.Errorf("volume: %+v", got)
		}
		again, err := encode(r)
		if err != nil {
			return // too long by now
		}
		r2, err := decodeRecord("f", again)
		if diff := cmp.Diff(r, r2, cmpopts.IgnoreUnexported(record{})); err != nil || diff != "" {
			t.Errorf("again: %v (-first +second):\n%s", err, diff)
		}
	})
}
