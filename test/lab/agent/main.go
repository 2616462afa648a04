//go:build linux

// Command agent is the lab's part inside a guest, and beside it. It is one static binary with
// several roles:
//
//   - process 1 of a guest (no argument): makes the guest's file systems and network, then runs
//     the agent proper and reaps orphans;
//   - "serve": the agent proper, which runs commands for the lab over the serial line;
//   - "supervise": on the host, the parent of a guest's User Mode Linux processes, which ends
//     all of them when it is told to or when the lab dies, however it dies;
//   - "contain": on the host, makes namespaces fit for a guest and becomes its kernel.
package main

import (
	"fmt"
	"os"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "lab agent: %v\n", err)
		os.Exit(1)
	}
}

func run() error {
	switch {
	case len(os.Args) > 2 && os.Args[1] == "contain":
		return contain(os.Args[2:])
	case os.Getpid() == 1:
		return initGuest()
	case len(os.Args) > 1 && os.Args[1] == "serve":
		return serve(serialLine)
	case len(os.Args) > 2 && os.Args[1] == "supervise":
		return supervise(os.Args[2:])
	}
	return fmt.Errorf("this program is started by the lab")
}
