package mount

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// resolve returns the addresses of the host, in the order they are to be tried.
func (m *Mounter) resolve(ctx context.Context, host string, onlyIPv6 bool) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, m.options.ProbeTimeout)
	defer cancel()
	found, err := m.options.LookupAddress(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", host, err)
	}
	var out []netip.Addr
	for _, a := range found {
		if a = a.Unmap(); (!onlyIPv6 || a.Is6()) && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("resolve %s: it has no address of the family that proto= asks for", host)
	}
	return out, nil
}

// probe makes a TCP connection to the address and closes it, so that a dead
// address costs ProbeTimeout and not the minutes that the kernel would wait.
// The cause of the error is a unix.Errno, errNoAnswer, or the context's error.
func (m *Mounter) probe(ctx context.Context, addr netip.Addr, port int) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("connect to %s: %w", netip.AddrPortFrom(addr, uint16(port)), err)
	}
	probeCtx, cancel := context.WithTimeout(ctx, m.options.ProbeTimeout)
	defer cancel()
	start := time.Now()
	conn, err := new(net.Dialer).DialContext(probeCtx, "tcp", net.JoinHostPort(addr.String(), strconv.Itoa(port)))
	if err == nil {
		return conn.Close()
	}
	where := netip.AddrPortFrom(addr, uint16(port))
	var errno unix.Errno
	switch {
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("connect to %s: %w", where, ctx.Err())
	case errors.As(err, &errno):
		return fmt.Errorf("connect to %s: %w", where, errno)
	}
	return fmt.Errorf("connect to %s: %w (%s)", where, errNoAnswer, time.Since(start).Round(100*time.Millisecond))
}

// sourceAddress returns the address of this machine that packets to addr come
// from, as mount.nfs(8) finds clientaddr=: by connecting a UDP socket, which
// sends nothing. It returns the zero address when there is no route.
func sourceAddress(ctx context.Context, addr netip.Addr) netip.Addr {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", net.JoinHostPort(addr.String(), strconv.Itoa(nfsPort)))
	if err != nil {
		return netip.Addr{}
	}
	defer conn.Close()
	local, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return local.Addr().Unmap()
}
