package worker

import (
	"fmt"
	"os/exec"
	"time"

	"github.com/nfs-csi/nfs-csi-driver/pkg/nfs"
)

// Options say how a pool runs its workers. The zero value of a field means its default.
type Options struct {
	// Command makes the command that starts a worker. Default Self.
	Command func() *exec.Cmd
	// CallTimeout is how long a call may run before its worker is taken for
	// hung and killed. Default 30 s.
	CallTimeout time.Duration
	// StartTimeout is the same for the start of a worker, its mount included. Default 30 s.
	StartTimeout time.Duration
	// StopTimeout is how long a worker may take to end by itself, and then
	// again to end after SIGKILL. Default 5 s.
	StopTimeout time.Duration
	// IdleTimeout is how long a worker is kept without work. Default 10 min.
	IdleTimeout time.Duration
	// StatusInterval is how often workers are looked at. Default 10 s.
	StatusInterval time.Duration
	// MinBackoff and MaxBackoff bound the pause between trials after failures,
	// which doubles with each. Default 1 s and 30 s.
	MinBackoff, MaxBackoff time.Duration
	// Spare keeps one worker started ahead of its use; the next is started
	// SpareDelay after one was used. Default 3 s.
	Spare      bool
	SpareDelay time.Duration
}

// StoreOptions are the options of a StorePool.
type StoreOptions struct {
	Options
	// DriverName and InstanceID say whose volumes the stores manage.
	DriverName, InstanceID string
	// PurgeConcurrency and PurgeRate are handed to every store, see StoreConfig.
	PurgeConcurrency, PurgeRate int
	// Exports are known from the start; what waits in their trash is purged
	// without anybody asking.
	Exports []nfs.Export
}

// Validate reports the first option that makes no sense.
func (o Options) Validate() error {
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"call timeout", o.CallTimeout}, {"start timeout", o.StartTimeout}, {"stop timeout", o.StopTimeout},
		{"idle timeout", o.IdleTimeout}, {"spare delay", o.SpareDelay}, {"status interval", o.StatusInterval},
		{"minimum back-off", o.MinBackoff}, {"maximum back-off", o.MaxBackoff},
	} {
		if d.value < 0 {
			return fmt.Errorf("worker pool: the %s is negative: %s", d.name, d.value)
		}
	}
	if o := o.withDefaults(); o.MaxBackoff < o.MinBackoff {
		return fmt.Errorf("worker pool: the maximum back-off %s is less than the minimum %s", o.MaxBackoff, o.MinBackoff)
	}
	return nil
}

// Validate reports the first option that makes no sense.
func (o StoreOptions) Validate() error {
	switch {
	case o.DriverName == "":
		return fmt.Errorf("worker pool: the driver name is empty")
	case o.PurgeConcurrency < 0:
		return fmt.Errorf("worker pool: the purge concurrency is negative: %d", o.PurgeConcurrency)
	case o.PurgeRate < 0:
		return fmt.Errorf("worker pool: the purge rate is negative: %d", o.PurgeRate)
	}
	return o.Options.Validate()
}

func (o Options) withDefaults() Options {
	if o.Command == nil {
		o.Command = Self
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&o.CallTimeout, 30 * time.Second}, {&o.StartTimeout, 30 * time.Second}, {&o.StopTimeout, 5 * time.Second},
		{&o.IdleTimeout, 10 * time.Minute}, {&o.StatusInterval, 10 * time.Second}, {&o.SpareDelay, 3 * time.Second},
		{&o.MinBackoff, time.Second}, {&o.MaxBackoff, 30 * time.Second},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	return o
}
