package worker

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Archives come whole through the worker, in pages and at once.
func TestListArchives(t *testing.T) {
	s, _ := open(t, newStorePool(t, StoreOptions{Options: testOptions()}), export(t))
	want, err := fakeStore{}.ListArchives(t.Context(), "", 2*maxPage)
	if err != nil {
		t.Fatal(err)
	}
	for _, limit := range []int{0, 1, maxPage, maxPage + 1, 2 * maxPage} {
		got, err := s.ListArchives(t.Context(), "", limit)
		if err != nil {
			t.Fatal(err)
		}
		expected := want
		if limit > 0 {
			expected = want[:min(limit, len(want))]
		}
		if diff := cmp.Diff(expected, got); diff != "" {
			t.Errorf("limit %d (-want +got):\n%s", limit, diff)
		}
	}
	if got, err := s.ListArchives(t.Context(), want[len(want)-2].ID, 0); err != nil || len(got) != 1 {
		t.Errorf("the last: %v, %v", got, err)
	}
}

func TestStatusConversion(t *testing.T) {
	for _, want := range []Status{{}, {
		TrashBacklog: 1, TrashFailing: 2, TrashSettled: true, Purged: 3, SkippedRecords: 4,
		Archives: 5, ArchivesExpired: 6, NextExpiry: time.Unix(7, 8).UTC(), Quota: true,
	}} {
		if diff := cmp.Diff(want, statusFromPB(statusToPB(want))); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}
