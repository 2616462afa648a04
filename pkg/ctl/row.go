package ctl

import (
	"encoding/json"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// row is an item in -o json; docs/reference/ctl.md describes the fields.
type row struct {
	Kind   string `json:"kind"`
	Export string `json:"export"`
	// Path is relative to the share.
	Path          string `json:"path,omitempty"`
	ID            string `json:"id,omitempty"`
	Name          string `json:"name,omitempty"`
	Directory     string `json:"directory,omitempty"`
	CapacityBytes int64  `json:"capacityBytes,omitempty"`
	// SizeBytes and Source are of a snapshot.
	SizeBytes int64     `json:"sizeBytes,omitempty"`
	Source    string    `json:"source,omitempty"`
	OnDelete  string    `json:"onDelete,omitempty"`
	Claim     nfs.Claim `json:"claim,omitzero"`
	Driver    string    `json:"driver,omitempty"`
	Instance  string    `json:"instance,omitempty"`
	Handle    string    `json:"handle,omitempty"`
	Created   time.Time `json:"created,omitzero"`
	Deleted   time.Time `json:"deleted,omitzero"`
	Archived  time.Time `json:"archived,omitzero"`
	Expires   time.Time `json:"expires,omitzero"`
	// Archive is the id of an archive.
	Archive string `json:"archive,omitempty"`
	// What --usage measures.
	UsedBytes             *int64 `json:"usedBytes,omitempty"`
	UsedFiles             *int64 `json:"usedFiles,omitempty"`
	UnreadableDirectories int64  `json:"unreadableDirectories,omitempty"`
	Problem               string `json:"problem,omitempty"`

	item   nfs.Item
	target target
}

func newRow(t target, i nfs.Item) row {
	v := i.Volume
	r := row{
		Kind: string(i.Kind), Export: t.name, Path: i.Path, ID: v.ID, Name: v.Name, Directory: v.Dir, CapacityBytes: v.CapacityBytes,
		OnDelete: string(v.OnDelete), Claim: v.Claim, Driver: i.Driver, Instance: i.Instance, Created: v.Created, Problem: i.Problem,
		item: i, target: t,
	}
	switch i.Kind {
	case nfs.ItemVolume:
		if t.export.Server != "" && v.ID != "" {
			r.Handle = nfs.Handle{Export: t.export, ID: v.ID}.String()
		}
		if r.ID == "" { // of a record that cannot be read
			r.ID = i.Key
		}
	case nfs.ItemSnapshot:
		r.SizeBytes, r.CapacityBytes, r.Source = v.CapacityBytes, 0, i.Source
	case nfs.ItemTrash:
		r.Deleted = i.Since
	case nfs.ItemArchive:
		r.Archived, r.Expires = i.Since, i.Expires
		r.Archive, _, _ = strings.Cut(i.Key, "+") // what follows is who takes it back
	}
	return r
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// column is one of a table.
type column struct {
	title string
	cell  func(row) string
	wide  bool // only with -o wide
}

func (r row) claim() string {
	if r.Claim.Name == "" {
		return "-"
	}
	return text(r.Claim.Namespace + "/" + r.Claim.Name)
}

func capacity(r row) string {
	if r.CapacityBytes == 0 {
		return "-"
	}
	return size(r.CapacityBytes)
}

func optional(n *int64, format func(int64) string) string {
	if n == nil {
		return "-"
	}
	return format(*n)
}

// columnsOf are those of a kind of item.
func columnsOf(kind nfs.ItemKind, now time.Time, exports, usage bool) []column {
	name := column{"NAME", func(r row) string { return text(r.Name) }, false}
	directory := column{"DIRECTORY", func(r row) string { return text(r.Directory) }, false}
	size := []column{{"CAPACITY", capacity, false}}
	if usage {
		size = append(size,
			column{"USED", func(r row) string { return optional(r.UsedBytes, sizeOf) }, false},
			column{"FILES", func(r row) string { return optional(r.UsedFiles, count) }, false})
	}
	claim := column{"CLAIM", row.claim, false}
	onDelete := column{"ON-DELETE", func(r row) string { return text(r.OnDelete) }, false}
	path := column{"PATH", func(r row) string { return text(r.Path) }, false}
	since := func(title string) column {
		return column{title, func(r row) string { return age(now, r.item.Since) }, false}
	}
	problem := column{"PROBLEM", func(r row) string { return text(r.Problem) }, false}
	instance := column{"INSTANCE", func(r row) string { return text(r.Instance) }, true}
	var columns []column
	switch kind {
	case nfs.ItemVolume:
		handle := column{"HANDLE", func(r row) string { return text(r.Handle) }, true}
		columns = append(append([]column{name, directory}, size...), onDelete, claim, since("AGE"), instance, handle)
	case nfs.ItemSnapshot:
		size[0] = column{"SIZE", func(r row) string { return sizeOf(r.SizeBytes) }, false}
		source := column{"VOLUME", func(r row) string { return text(r.Source) }, false}
		columns = append(append([]column{name, source}, size...), since("AGE"), instance)
	case nfs.ItemTrash:
		path.wide = true
		columns = append(append([]column{name, directory}, size...), claim, since("DELETED"), instance, path)
	case nfs.ItemArchive:
		directory.wide = true
		columns = append(append([]column{name, directory, path}, size...), claim, since("ARCHIVED"),
			column{"EXPIRES", func(r row) string { return until(now, r.Expires) }, false}, instance,
			column{"ARCHIVE", func(r row) string { return text(r.Archive) }, true})
	default:
		columns = []column{{"KIND", func(r row) string { return r.Kind }, false}, path, name, problem, instance}
		return withExport(columns, exports)
	}
	problem.title = "PROBLEM"
	return withExport(append(columns, problem), exports)
}

func sizeOf(n int64) string { return size(n) }

func withExport(columns []column, exports bool) []column {
	if !exports {
		return columns
	}
	return append([]column{{"EXPORT", func(r row) string { return text(r.Export) }, false}}, columns...)
}

// writeRows writes the table without columns that would be empty.
func writeRows(w io.Writer, columns []column, rows []row, wide bool) error {
	columns = slices.DeleteFunc(columns, func(c column) bool {
		return c.wide && !wide || c.title == "PROBLEM" && !slices.ContainsFunc(rows, func(r row) bool { return r.Problem != "" })
	})
	var header []string
	for _, c := range columns {
		header = append(header, c.title)
	}
	var cells [][]string
	for _, r := range rows {
		var line []string
		for _, c := range columns {
			line = append(line, c.cell(r))
		}
		cells = append(cells, line)
	}
	return writeTable(w, header, cells)
}

// sortRows puts volumes in the order of their names, what was deleted or archived
// in that of time, orphans in that of their paths.
func sortRows(rows []row) {
	slices.SortStableFunc(rows, func(a, b row) int {
		if c := strings.Compare(a.Export, b.Export); c != 0 {
			return c
		}
		switch a.item.Kind {
		case nfs.ItemVolume, nfs.ItemSnapshot:
			return strings.Compare(a.Name+"\x00"+a.ID, b.Name+"\x00"+b.ID)
		case nfs.ItemTrash, nfs.ItemArchive:
			if c := a.item.Since.Compare(b.item.Since); c != 0 {
				return c
			}
		}
		return strings.Compare(a.item.Key, b.item.Key)
	})
}
