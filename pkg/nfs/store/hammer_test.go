package store

import (
	"context"
)

type hammerJob struct{}

func (h *hammerJob) run(context.Context, *Store) error { return nil }
