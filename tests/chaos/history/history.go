// Package history records what the clients of a cluster did and saw, and judges
// it: Check is a pure function that knows nothing of how the cluster works, only
// what it promises.
package history

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
)

// Device names a device of a user of a tenant.
type Device struct {
	Tenant, User, Name string
}

func (d Device) String() string { return d.Tenant + "/" + d.User + "/" + d.Name }

// Kind is what an event is about.
type Kind string

const (
	// Join: the device exists from now on. V1 tells that it has no way to
	// acknowledge deliveries.
	Join Kind = "join"
	// Connect: the device holds a connection (Conn, at Node).
	Connect Kind = "connect"
	// Move: it is at another Node from now on, as the device's program sees it.
	Move Kind = "move"
	// Disconnect: it ended, with Code (1006: without a close frame).
	Disconnect Kind = "disconnect"
	// Gone: the device's program ended by itself, Reason says why; it should not.
	Gone Kind = "gone"
	// Send: the application hands Msg over for Recipients; recorded before any
	// byte of it can be on its way.
	Send Kind = "send"
	// Answer: SENT, FAILED, ABANDONED or UNKNOWN (given up on by the client).
	Answer Kind = "answer"
	// Deliver: the application sees Msg.
	Deliver Kind = "deliver"
	// Fault and Heal: Node (or a link's name) suffers Reason; not of a device.
	Fault Kind = "fault"
	Heal  Kind = "heal"
)

// Outcomes in Answer events. Abandoned is a message whose device left before the
// answer came: nobody may know what became of it.
const (
	Abandoned = "ABANDONED"
	Sent      = "SENT"
	Failed    = "FAILED"
	Unknown   = "UNKNOWN"
)

// Reasons of Faults after which nobody can know what a gateway had written:
// Killed ends a process without a word, Frozen stops it for a while, CutOff keeps it
// from all others for so long that its lease may run out.
const (
	Killed = "kill"
	Frozen = "pause"
	CutOff = "cut off"
)

// Event is one line of a history. Which fields are set depends on the Kind.
type Event struct {
	// At is since the beginning of the history, by a monotonic clock.
	At     time.Duration
	Kind   Kind
	Device Device `json:",omitzero"`
	V1     bool   `json:",omitempty"`
	// Conn counts a device's connections from 1; 0 with Send and Answer means
	// that there was none at that moment.
	Conn int    `json:",omitempty"`
	Node string `json:",omitempty"`
	// Start, in Connect, counts the starts of the device's program: a new one does
	// not know what the one before has seen.
	Start int `json:",omitempty"`
	Code  int `json:",omitempty"`
	// Msg is unique over all messages of a history; it travels in the body.
	Msg        string   `json:",omitempty"`
	Group      string   `json:",omitempty"`
	Recipients []string `json:",omitempty"` // user ids, of the sender's tenant
	Status     string   `json:",omitempty"`
	Reason     string   `json:",omitempty"`
	Partial    bool     `json:",omitempty"`
	// Attempts is how often the client wrote the message, where it knows; 0 else.
	Attempts int `json:",omitempty"`
}

// History is an append-only record. It is safe for concurrent use.
type History struct {
	began time.Time

	mu     sync.Mutex
	events []Event // guarded by mu
}

// New begins a history now.
func New() *History { return &History{began: time.Now()} }

// Add appends an event and stamps it.
func (h *History) Add(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e.At = time.Since(h.began) // under the lock: the order is that of the times
	h.events = append(h.events, e)
}

// Events returns what was recorded so far. The caller must not change it.
func (h *History) Events() []Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.events[:len(h.events):len(h.events)]
}

// Write writes events as JSON lines.
func Write(w io.Writer, events []Event) error {
	enc := json.NewEncoder(w)
	for _, e := range events {
		if err := enc.Encode(e); err != nil {
			return fmt.Errorf("write history: %w", err)
		}
	}
	return nil
}

// Read reads what Write wrote.
func Read(r io.Reader) ([]Event, error) {
	var events []Event
	for dec := json.NewDecoder(r); ; {
		var e Event
		switch err := dec.Decode(&e); err {
		case nil:
			events = append(events, e)
		case io.EOF:
			return events, nil
		default:
			return nil, fmt.Errorf("read history: line %d: %w", len(events)+1, err)
		}
	}
}
