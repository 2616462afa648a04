package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// pair is a directory of a tree and the one that it is copied to, which is nil
// when the tree is only looked at.
type pair struct {
	src, dst *dir
	rel      string // below the tree's root, "" for that
	depth    int    // descriptors held above it
	attr     attr   // of src when it was opened
	isNew    bool   // dst was made by this run, so that nothing is in it

	files sync.WaitGroup // what is being done with entries that are no directories
}

func (p *pair) close() {
	p.src.close()
	p.dst.close()
}

// treeWalk visits every directory of a tree, several at a time, and does things to
// the files in them, many at a time. What it holds does not grow with the tree:
// a directory that nobody is free to visit is visited by whoever found it, and
// one that lies too deep for that waits in a file for the next round.
type treeWalk struct {
	visit  func(ctx context.Context, p *pair) error
	reopen func(ctx context.Context, rel string) (*pair, error) // nil when it is gone
	spool  *dir

	walkers, workers chan struct{}
	wg               sync.WaitGroup
	cancel           context.CancelCauseFunc

	mu    sync.Mutex
	later *spoolFile // nil as long as nothing waits
	round int
}

func newTreeWalk(concurrency int, spool *dir) *treeWalk {
	return &treeWalk{
		spool:   spool,
		walkers: make(chan struct{}, max(1, concurrency/3)),
		workers: make(chan struct{}, concurrency),
	}
}

// run visits the tree beneath root and closes root. The first error ends it.
func (w *treeWalk) run(ctx context.Context, root *pair) error {
	ctx, w.cancel = context.WithCancelCause(ctx)
	defer w.cancel(nil)
	w.descend(ctx, root)
	w.wg.Wait()
	for ctx.Err() == nil && w.later != nil {
		if err := w.next(ctx); err != nil {
			w.cancel(err)
		}
		w.wg.Wait()
	}
	if w.later != nil {
		_ = w.later.f.Close() // It was for the next round, which does not come.
	}
	return context.Cause(ctx)
}

// descend has a directory visited and closed, by now or later.
func (w *treeWalk) descend(ctx context.Context, p *pair) {
	if p.depth >= maxDepth {
		defer p.close()
		if err := w.postpone(ctx, p.rel); err != nil {
			w.cancel(err)
		}
		return
	}
	visit := func() {
		defer p.close()
		err := ctx.Err()
		if err == nil {
			err = w.visit(ctx, p)
		}
		// Its files use the descriptors.
		p.files.Wait()
		if err != nil {
			w.cancel(err)
		}
	}
	select {
	case w.walkers <- struct{}{}:
		w.wg.Go(func() {
			defer func() { <-w.walkers }()
			p.depth = 0
			visit()
		})
	default:
		visit()
	}
}

// work does something to a file of the directory, beside the caller, as soon as
// a worker is free.
func (w *treeWalk) work(ctx context.Context, p *pair, f func() error) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case w.workers <- struct{}{}:
	}
	p.files.Go(func() {
		defer func() { <-w.workers }()
		if err := f(); err != nil {
			w.cancel(err)
		}
	})
	return nil
}

// spoolFile is a list of directories that wait, each ended by a NUL.
type spoolFile struct {
	name string
	f    *os.File
	w    *bufio.Writer
}

func (w *treeWalk) postpone(ctx context.Context, rel string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.later == nil {
		s := &spoolFile{name: fmt.Sprintf("%s%d", deepPrefix, w.round)}
		w.round++
		err := w.spool.do(ctx, "create", s.name, func(fd int) error {
			n, err := unix.Openat(fd, s.name, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
			if err == nil {
				s.f = os.NewFile(uintptr(n), s.name)
				s.w = bufio.NewWriter(s.f)
			}
			return err
		})
		if err != nil {
			return err
		}
		w.later = s
	}
	if _, err := w.later.w.WriteString(rel + "\x00"); err != nil {
		return opError("write", path.Join(w.spool.path, w.later.name), err)
	}
	return nil
}

// next visits the directories that wait.
func (w *treeWalk) next(ctx context.Context) error {
	w.mu.Lock()
	s := w.later
	w.later = nil
	w.mu.Unlock()
	defer s.f.Close()
	if err := errors.Join(s.w.Flush(), s.f.Sync()); err != nil {
		return opError("write", path.Join(w.spool.path, s.name), err)
	}
	if _, err := s.f.Seek(0, io.SeekStart); err != nil {
		return opError("read", path.Join(w.spool.path, s.name), err)
	}
	for r := bufio.NewReader(s.f); ; {
		rel, err := r.ReadString(0)
		if errors.Is(err, io.EOF) && rel == "" {
			return w.spool.unlink(ctx, s.name)
		}
		if err != nil {
			return opError("read", path.Join(w.spool.path, s.name), err)
		}
		p, err := w.reopen(ctx, strings.TrimSuffix(rel, "\x00"))
		if err != nil {
			return err
		}
		if p != nil {
			w.descend(ctx, p)
		}
	}
}

// below opens the directory rel beneath d.
func (d *dir) below(ctx context.Context, rel string) (*dir, error) {
	at := d
	for name := range strings.SplitSeq(rel, "/") {
		next, err := at.openDir(ctx, name)
		if at != d {
			at.close()
		}
		if err != nil {
			return nil, err
		}
		at = next
	}
	return at, nil
}
