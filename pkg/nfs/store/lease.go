package store

import (
	"context"
	"strconv"
	"strings"
	"time"
)

// defaultLease is how long an owner of a job may show no life before another
// process takes the job over.
const defaultLease = 30 * time.Second

const (
	leasePrefix = "lease."
	freePrefix  = "free."
)

// leaseState is who may work on a job: the name of one file in its directory, which
// is "lease.<n>" while a process has it and "free.<n>" while none has. The zero value
// means that there is no such file, as a listing may show while it is renamed.
//
// Every change of it is a rename to the next number: an owner says so that it lives,
// gives the job up, or is replaced. The server renames what has the old name, so of
// all that want to, one can, and nobody else has done anything since it saw that
// name. No clock is compared with another's: whoever sees one number for the length
// of a lease takes over, and an owner that could not count on for half of that,
// measured from before its last success, has stopped.
type leaseState struct {
	n    uint64
	held bool
}

func (s leaseState) name() string {
	prefix := freePrefix
	if s.held {
		prefix = leasePrefix
	}
	return prefix + strconv.FormatUint(s.n, 10)
}

func parseLease(name string) (s leaseState, ok bool) {
	number, held := strings.CutPrefix(name, leasePrefix)
	if !held {
		if number, ok = strings.CutPrefix(name, freePrefix); !ok {
			return leaseState{}, false
		}
	}
	n, err := strconv.ParseUint(number, 10, 64)
	s = leaseState{n: n, held: held}
	return s, err == nil && s.name() == name
}

// readLease finds the lease in the directory of a job, as the server has it.
func readLease(ctx context.Context, d *dir) (found leaseState, err error) {
	if err := d.stat(ctx); err != nil {
		return leaseState{}, err
	}
	err = d.list(ctx, func(names []string) error {
		for _, name := range names {
			if s, ok := parseLease(name); ok && s.n > found.n {
				found = s
			}
		}
		return nil
	})
	return found, err
}

// swap replaces the state that was seen. It fails with ENOENT or EEXIST when that is
// not the state any more.
func (s leaseState) swap(ctx context.Context, d *dir, held bool) (leaseState, error) {
	next := leaseState{n: s.n + 1, held: held}
	if s == (leaseState{}) {
		return next, makeEmpty(ctx, d, next.name())
	}
	return next, d.rename(ctx, s.name(), d, next.name())
}

// makeEmpty makes a file, EEXIST when the name is taken.
func makeEmpty(ctx context.Context, d *dir, name string) error {
	f, err := d.createFile(ctx, name, 0o600, true)
	if err != nil {
		return err
	}
	return f.close(ctx)
}

// isLost says that a swap came too late.
func isLost(err error) bool { return isAbsent(err) || isTaken(err) }
