// Package wire is the language that the lab and the agent in a guest speak over the guest's
// serial line: gob frames, any number of commands multiplexed by an id. The line is out of band
// of the guest's network, so a guest that is cut off stays controllable.
package wire

import (
	"encoding/gob"
	"fmt"
	"io"
)

// Kind says what a frame means.
type Kind uint8

// Frame kinds. Start, Stdin, StdinEOF, Signal and Ping go to the guest; the others come from it.
const (
	Hello    Kind = iota + 1 // the agent is ready; ID is 0
	Start                    // start a command under ID
	Stdin                    // Data for the command's standard input
	StdinEOF                 // no more standard input
	Signal                   // send signal Num to the command (to its process group when Group is set)
	Stdout                   // Data that the command wrote
	Stderr                   // Data that the command wrote
	Exit                     // the command ended; the last frame of this ID
	Ack                      // the agent has read Num bytes more of the line; ID is 0
	Ping                     // answer with Pong; ID is 0
	Pong                     // the agent is well; ID is 0
)

// Frame is one message.
type Frame struct {
	Kind    Kind
	ID      uint32
	Data    []byte
	Num     int
	Group   bool
	Command *Command
	Exit    *ExitStatus
}

// Command is what to start. With Builtin set the agent runs one of its own functions instead of
// a program; such a command has output and an exit code like every other.
type Command struct {
	Builtin string
	Args    []string
	Env     []string
	Dir     string
	Stdin   bool
}

// ExitStatus is how a command ended. Err is set when it could not be started.
type ExitStatus struct {
	Code   int
	Signal int
	Err    string
}

// MaxData bounds the Data of one frame.
const MaxData = 16 << 10

// Encoder writes frames. It is not safe for concurrent use.
type Encoder struct{ enc *gob.Encoder }

// NewEncoder returns an Encoder on w.
func NewEncoder(w io.Writer) *Encoder { return &Encoder{gob.NewEncoder(w)} }

// Encode writes one frame.
func (e *Encoder) Encode(f *Frame) error {
	if err := e.enc.Encode(f); err != nil {
		return fmt.Errorf("write frame: %w", err)
	}
	return nil
}

// Decoder reads frames. It is not safe for concurrent use.
type Decoder struct{ dec *gob.Decoder }

// NewDecoder returns a Decoder on r.
func NewDecoder(r io.Reader) *Decoder { return &Decoder{gob.NewDecoder(r)} }

// Decode reads one frame.
func (d *Decoder) Decode() (*Frame, error) {
	f := new(Frame)
	if err := d.dec.Decode(f); err != nil {
		return nil, fmt.Errorf("read frame: %w", err)
	}
	return f, nil
}
