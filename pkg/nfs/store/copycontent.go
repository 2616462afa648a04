package store

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// copyChunk is how much one copy_file_range(2) is asked for: what a
	// cancellation waits for, and a progress that does not move.
	copyChunk = 64 << 20
	// copyBuffer is the memory that a worker takes which has to read and write.
	copyBuffer = 256 << 10
	// holeBlock is the least that is left out of a file when a sparse one has to be
	// read to find its holes.
	holeBlock = 4 << 10
)

// methods is what a copy has learned of the ways to copy content.
type methods struct{ clone, copyRange method }

// method is a way to copy that this source and this target may not have.
type method struct{ works, fails atomic.Bool }

// tried remembers how it went and says whether the next method is to be tried.
// What has worked once is given up for one file only.
func (m *method) tried(err error) (next bool) {
	if err == nil {
		m.works.Store(true)
		return false
	}
	if !isUnsupported(err) {
		return false
	}
	if !m.works.Load() {
		m.fails.Store(true)
	}
	return true
}

// isUnsupported is for ioctl_ficlone(2) and copy_file_range(2).
func isUnsupported(err error) bool {
	const enotsupp = unix.Errno(524) // see hasNoLinks
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case unix.EOPNOTSUPP, unix.EXDEV, unix.EINVAL, unix.ENOSYS, unix.ENOTTY, unix.ETXTBSY, enotsupp:
		return true
	}
	return false
}

// content copies what is in a file, of the size that it had before, and returns
// how much of that it has added to the progress.
func (c *treeCopy) content(ctx context.Context, src, dst *file, want attr) (moved int64, err error) {
	if want.size == 0 {
		return 0, nil
	}
	if !c.how.clone.fails.Load() {
		err := dst.do(ctx, "clone", func(fd int) error { return unix.IoctlFileClone(fd, src.fd) })
		if !c.how.clone.tried(err) {
			return 0, err
		}
	}
	span := &span{c: c, src: src, dst: dst}
	if want.sparse() {
		err = span.copySparse(ctx, want.size)
	} else {
		err = span.copy(ctx, 0, want.size)
	}
	return span.moved, err
}

// span copies parts of one file to the same place in another.
type span struct {
	c        *treeCopy
	src, dst *file
	moved    int64
}

func (s *span) add(n int) {
	s.moved += int64(n)
	s.c.bytes.Add(int64(n))
}

// copySparse copies the data of a file and leaves the holes.
func (s *span) copySparse(ctx context.Context, size int64) error {
	for off := int64(0); off < size; {
		start, end, err := s.src.data(ctx, off)
		switch {
		case errors.Is(err, unix.ENXIO): // There is no more data.
			return s.dst.truncate(ctx, size)
		case isUnsupported(err) || err == nil && start == 0 && end >= size:
			// It has holes, but nobody tells us where: NFS before 4.2.
			if err := s.readWrite(ctx, 0, size, true); err != nil {
				return err
			}
			return s.dst.truncate(ctx, size)
		case err != nil:
			return err
		}
		end = min(end, size)
		if start < end {
			if err := s.copy(ctx, start, end-start); err != nil {
				return err
			}
		}
		off = end
	}
	return s.dst.truncate(ctx, size)
}

// data finds the next data in a sparse file (lseek(2)); ENXIO when there is none.
func (f *file) data(ctx context.Context, off int64) (start, end int64, err error) {
	err = f.do(ctx, "seek", func(fd int) (err error) {
		if start, err = unix.Seek(fd, off, unix.SEEK_DATA); err == nil {
			end, err = unix.Seek(fd, start, unix.SEEK_HOLE)
		}
		return err
	})
	return start, end, err
}

// copy copies n bytes, by the server if it can. It is not an error if the file is
// shorter by now.
func (s *span) copy(ctx context.Context, off, n int64) error {
	for n > 0 && !s.c.how.copyRange.fails.Load() {
		m := 0
		err := s.dst.do(ctx, "copy", func(fd int) (err error) {
			from, to := off, off
			m, err = unix.CopyFileRange(s.src.fd, &from, fd, &to, int(min(n, copyChunk)), 0)
			return err
		})
		if s.c.how.copyRange.tried(err) {
			break
		}
		if err != nil {
			return err
		}
		if m == 0 {
			break // The file ends here, or a kernel says this instead of EOPNOTSUPP.
		}
		off, n = off+int64(m), n-int64(m)
		s.add(m)
	}
	return s.readWrite(ctx, off, n, false)
}

// readWrite copies through this process. With holes, it leaves out what is zero.
func (s *span) readWrite(ctx context.Context, off, n int64, holes bool) error {
	if n <= 0 {
		return nil
	}
	buf := s.c.buffer(n)
	defer s.c.buffers.Put(buf)
	for n > 0 {
		m := 0
		err := s.src.do(ctx, "read", func(fd int) (err error) {
			m, err = unix.Pread(fd, (*buf)[:min(n, int64(len(*buf)))], off)
			return err
		})
		if err != nil || m == 0 {
			return err
		}
		data := (*buf)[:m]
		if !holes {
			err = s.dst.writeAt(ctx, data, off)
		} else {
			err = s.dst.writeNonZero(ctx, data, off)
		}
		if err != nil {
			return err
		}
		off, n = off+int64(m), n-int64(m)
		s.add(m)
	}
	return nil
}

// buffer returns one for n bytes or less.
func (c *treeCopy) buffer(n int64) *[]byte {
	if b, ok := c.buffers.Get().(*[]byte); ok && (len(*b) == copyBuffer || int64(len(*b)) >= n) {
		return b
	}
	size := int64(16 << 10)
	if n > size {
		size = copyBuffer
	}
	b := make([]byte, size)
	return &b
}

func (f *file) writeAt(ctx context.Context, data []byte, off int64) error {
	for len(data) > 0 {
		n := 0
		err := f.do(ctx, "write", func(fd int) (err error) {
			n, err = unix.Pwrite(fd, data, off)
			return err
		})
		if err != nil {
			return err
		}
		data, off = data[n:], off+int64(n)
	}
	return nil
}

// writeNonZero writes the data but for its blocks that are zero.
func (f *file) writeNonZero(ctx context.Context, data []byte, off int64) error {
	var zero [holeBlock]byte
	isZero := func(at int) bool {
		block := data[at:min(at+holeBlock, len(data))]
		return bytes.Equal(block, zero[:len(block)])
	}
	for at := 0; at < len(data); {
		end := at
		for end < len(data) && !isZero(end) {
			end += holeBlock
		}
		end = min(end, len(data))
		if err := f.writeAt(ctx, data[at:end], off+int64(at)); err != nil {
			return err
		}
		for at = end; at < len(data) && isZero(at); {
			at += holeBlock
		}
	}
	return nil
}
