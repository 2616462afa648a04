package driver

import "github.com/nfs-csi/nfs-csi-driver/pkg/nfs"

// place is the last entry of a page: a record id on an export.
type place struct {
	export nfs.Export
	id     string
}

// page adds what follows the place, export by export in the order of their keys, up
// to the limit (0: all), and reports whether there is more.
func page[T any](exports []nfs.Export, last place, limit int,
	list func(export nfs.Export, after string, limit int) ([]T, error), add func(nfs.Export, T),
) (more bool, err error) {
	added := 0
	for _, export := range exports {
		var after string
		if last.id != "" {
			if export.Key() < last.export.Key() {
				continue
			}
			if export.Equal(last.export) {
				after = last.id
			}
		}
		// One more than asked for tells whether another page follows.
		want := 0
		if limit > 0 {
			want = limit + 1 - added
		}
		entries, err := list(export, after, want)
		if err != nil {
			return false, err
		}
		for _, e := range entries {
			if limit > 0 && added == limit {
				return true, nil
			}
			add(export, e)
			added++
		}
	}
	return false, nil
}
