package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// The NFS server is a guest of the process that keeps the cluster. A socket of that
// process lets a person run commands there.

type answer struct{ Output, Error string }

// serveShell runs the commands that come to a socket, until it is closed.
func serveShell(socket string, run func(ctx context.Context, args ...string) (string, error)) (closeShell func(), err error) {
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("listen for commands: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				wg.Go(func() { answerCommand(ctx, conn, run) })
			}
		}
	})
	return func() {
		cancel()
		listener.Close()
		wg.Wait()
	}, nil
}

func answerCommand(ctx context.Context, conn net.Conn, run func(ctx context.Context, args ...string) (string, error)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// It unblocks the reads, too.
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer conn.Close()
	var args []string
	if err := json.NewDecoder(conn).Decode(&args); err != nil {
		return // nobody who wants an answer
	}
	go func() {
		_, _ = io.Copy(io.Discard, conn) // who asked has gone
		cancel()
	}()
	var a answer
	out, err := run(ctx, args...)
	a.Output = out
	if err != nil {
		a.Error = err.Error()
	}
	_ = json.NewEncoder(conn).Encode(a)
}

// onServer runs a command on the NFS server of a kept cluster.
func onServer(ctx context.Context, args []string, out io.Writer) error {
	s, release, err := lock(stateFile)
	if err != nil {
		return err
	}
	if release != nil {
		release()
	}
	if s.Socket == "" {
		return errors.New("no cluster is kept: `make demo KEEP=1` keeps one")
	}
	return ask(ctx, s.Socket, args, out)
}

func ask(ctx context.Context, socket string, args []string, out io.Writer) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("ask the demo that runs: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var a answer
	err = json.NewEncoder(conn).Encode(args)
	if err == nil {
		err = json.NewDecoder(conn).Decode(&a)
	}
	if err != nil {
		return fmt.Errorf("ask the demo that runs: %w", errors.Join(err, ctx.Err()))
	}
	_, err = io.WriteString(out, a.Output)
	if a.Error != "" {
		err = errors.New(a.Error)
	}
	return err
}
