package lab

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// pulseInterval bounds how long a guest can oversleep a packet.
const pulseInterval = 2 * time.Millisecond

// pulse sends an empty frame to every guest all the time. User Mode Linux now and
// then misses that a packet has come, and finds it with the next one: without a
// pulse, one NFS call in two hundred takes the 200 ms of a TCP retransmission.
type pulse struct {
	stop, done chan struct{}
}

// startPulse starts the pulse on the bridge of the namespace; end ends it.
func startPulse(netns string) (*pulse, error) {
	type opened struct {
		fd    int
		index int
		err   error
	}
	result := make(chan opened, 1)
	OnThread(func() {
		fd, index, err := packetSocket(netns)
		result <- opened{fd, index, err}
	})
	o := <-result
	if o.err != nil {
		return nil, fmt.Errorf("pulse of network namespace %s: %w", netns, o.err)
	}
	p := &pulse{stop: make(chan struct{}), done: make(chan struct{})}
	go p.run(o.fd, o.index)
	return p, nil
}

// packetSocket enters the namespace with the calling thread.
func packetSocket(netns string) (fd, index int, err error) {
	ns, err := os.Open(netns)
	if err != nil {
		return 0, 0, err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return 0, 0, err
	}
	link, err := net.InterfaceByName(bridge)
	if err != nil {
		return 0, 0, err
	}
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	return fd, link.Index, err
}

func (p *pulse) run(fd, index int) {
	defer close(p.done)
	defer unix.Close(fd)
	// Broadcast, of a type for local experiments (IEEE 802), that no guest listens to.
	frame := make([]byte, 60)
	copy(frame, "\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x88\xb5")
	to := &unix.SockaddrLinklayer{Ifindex: index, Halen: 6}
	tick := time.NewTicker(pulseInterval)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
			// A full queue is as good: something is on its way to the guests.
			_ = unix.Sendto(fd, frame, 0, to)
		}
	}
}

func (p *pulse) end() {
	close(p.stop)
	<-p.done
}

// OnThread runs f on a thread of its own that ends with it, so f may change what
// a thread has. That is never the process's first thread: it does not end, and
// /proc/self is about it.
func OnThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		locked := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(locked)
			f()
		}()
		<-locked // holding the first thread until then
		runtime.UnlockOSThread()
	}()
}
