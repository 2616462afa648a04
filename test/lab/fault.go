package lab

import (
	"context"
	"fmt"

	"github.com/nfs-csi/nfs-csi-driver/test/lab/internal/wire"
)

// Kill ends the guest like a power failure: nothing is flushed. It is no error if it does not run.
func (g *Guest) Kill() error {
	g.mu.Lock()
	v := g.vm
	g.mu.Unlock()
	return v.kill()
}

// close kills the guest and lets it never start again.
func (g *Guest) close() error {
	g.mu.Lock()
	g.closed = true
	v := g.vm
	g.mu.Unlock()
	return v.kill()
}

// Freeze stops the guest, and returns when it stands still. Its connections stay open and say
// nothing; its commands go on after Thaw.
func (g *Guest) Freeze() error { return g.setFrozen("freeze", true) }

// Thaw lets a frozen guest go on.
func (g *Guest) Thaw() error { return g.setFrozen("thaw", false) }

func (g *Guest) setFrozen(order string, frozen bool) error {
	v, err := g.instance()
	if err != nil {
		return fmt.Errorf("%s: %w", order, err)
	}
	before := v.frozen.Swap(true) // until it is thawed, the watchdog lets it be
	if err := v.order(order); err != nil {
		v.frozen.Store(before)
		return fmt.Errorf("guest %s: %w", g.name, err)
	}
	v.frozen.Store(frozen)
	g.mu.Lock()
	g.frozen = frozen
	g.mu.Unlock()
	return nil
}

// CutNetwork takes the guest off the network, like a switch that died: the guest sees no loss of
// carrier, its packets go nowhere. Commands still work.
func (g *Guest) CutNetwork(ctx context.Context) error {
	if err := g.lab.net.plug(ctx, g.tap(), false); err != nil {
		return fmt.Errorf("guest %s: cut network: %w", g.name, err)
	}
	return nil
}

// RestoreNetwork undoes CutNetwork.
func (g *Guest) RestoreNetwork(ctx context.Context) error {
	if err := g.lab.net.plug(ctx, g.tap(), true); err != nil {
		return fmt.Errorf("guest %s: restore network: %w", g.name, err)
	}
	return nil
}

// Shutdown ends the guest in order: an NFS server unmounts its exports first. Other commands of
// the guest end with an error.
func (g *Guest) Shutdown(ctx context.Context) error {
	v, err := g.instance()
	if err != nil {
		return nil
	}
	// The answer to this command is the end of the guest.
	_ = g.builtin(ctx, wire.BuiltinPowerOff, nil, nil)
	select {
	case <-v.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("guest %s: shut down: %w", g.name, ctx.Err())
	}
}
