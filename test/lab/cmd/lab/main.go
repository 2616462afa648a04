// Command lab starts NFS servers and clients on this machine; see package lab.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/nfs-csi/nfs-csi-driver/test/lab"
)

const usage = `usage:
  lab up                               a server and two clients, until Ctrl-C
  lab run [--guest client] -- CMD...   run a command in a fresh lab; LAB_SERVER is the server's address
  lab check [--install]                what this machine lacks
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err == nil {
		return
	}
	var exit *lab.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.Code)
	}
	fmt.Fprintf(os.Stderr, "lab: %v\n", err)
	os.Exit(1)
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return errors.New("no command given")
	}
	switch args[0] {
	case "up":
		return up(ctx, args[1:])
	case "run":
		return runCommand(ctx, args[1:])
	case "check":
		return check(ctx, args[1:])
	}
	fmt.Fprint(os.Stderr, usage)
	return fmt.Errorf("unknown command %q", args[0])
}

func up(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("up", flag.ContinueOnError)
	logDir := flags.String("log-dir", "", "directory for logs and results (default: a temporary one)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	l, err := lab.Start(ctx, lab.Options{LogDir: *logDir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	guests, err := startGuests(ctx, l, "client1", "client2")
	if err != nil {
		return err
	}
	for _, g := range guests {
		fmt.Printf("%-8s %s %s\n", g.Name(), g.IPv4(), g.IPv6())
	}
	fmt.Printf("logs     %s\nin it:   ip netns exec %s ping %s\nCtrl-C ends the lab\n", l.LogDir(), l.Netns(), guests[0].IPv4())
	<-ctx.Done()
	return nil
}

func runCommand(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	guest := flags.String("guest", "client", "guest to run the command in: client or server")
	logDir := flags.String("log-dir", "", "directory for logs and results (default: a temporary one)")
	dir := flags.String("dir", "/", "working directory of the command")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("run: no command given")
	}
	l, err := lab.Start(ctx, lab.Options{LogDir: *logDir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if _, err := startGuests(ctx, l, "client"); err != nil {
		return err
	}
	g := l.Guest(*guest)
	if g == nil {
		return fmt.Errorf("run: there is no guest %q", *guest)
	}
	err = g.Run(ctx, lab.Cmd{
		Args:   flags.Args(),
		Dir:    *dir,
		Env:    []string{"LAB_SERVER=" + l.Guest("server").IPv4(), "LAB_SERVER6=" + l.Guest("server").IPv6()},
		Stdout: os.Stdout,
		Stderr: os.Stderr,
	})
	var exit *lab.ExitError
	if errors.As(err, &exit) && exit.Code == 127 {
		fmt.Fprintln(os.Stderr, exit)
	}
	return err
}

// startGuests starts a server with one export of every file system, and clients, all at once.
func startGuests(ctx context.Context, l *lab.Lab, clients ...string) ([]*lab.Guest, error) {
	guests := make([]*lab.Guest, 1+len(clients))
	errs := make([]error, len(guests))
	var wg sync.WaitGroup
	wg.Go(func() {
		s, err := l.StartServer(ctx, lab.ServerSpec{Exports: []lab.ExportSpec{
			{Path: "/export/tmpfs", FS: lab.Tmpfs},
			{Path: "/export/ext4", FS: lab.Ext4},
			{Path: "/export/xfs", FS: lab.XFS},
		}})
		if err != nil {
			errs[0] = err
			return
		}
		guests[0] = s.Guest
	})
	for i, name := range clients {
		wg.Go(func() { guests[i+1], errs[i+1] = l.StartGuest(ctx, lab.GuestSpec{Name: name}) })
	}
	wg.Wait()
	return guests, errors.Join(errs...)
}

func check(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("check", flag.ContinueOnError)
	doInstall := flags.Bool("install", false, "install the Debian packages that are missing")
	if err := flags.Parse(args); err != nil {
		return err
	}
	problems := lab.Check()
	if *doInstall {
		var err error
		if problems, err = lab.Install(ctx, os.Stdout); err != nil {
			return err
		}
	}
	for _, p := range problems {
		fmt.Println(p.What)
	}
	if len(problems) > 0 {
		return errors.New("this machine cannot run a lab yet")
	}
	fmt.Println("this machine can run a lab")
	return nil
}
