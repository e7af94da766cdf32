package route

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Limits of what a store remembers beyond its use.
const (
	// LeaseMemory is how long the incarnation of a lease that ended is known,
	// so that an older one is refused and a reaper finds its node.
	LeaseMemory = time.Hour
	// CountMemory is how long a node's count of a tenant's connections is kept
	// when nothing touches it and the node is not among the living.
	CountMemory = 7 * 24 * time.Hour
)

// Check refuses a key with an empty part; empty names mean "any" elsewhere.
func (k DeviceKey) Check() error {
	if k.Tenant == "" || k.User == "" || k.Device == "" {
		return fmt.Errorf("%w: tenant %q, user %q, device %q: none may be empty", ErrInvalid, k.Tenant, k.User, k.Device)
	}
	return nil
}

// Check refuses a change that no record could ever take.
func (c Change) Check() error {
	if c.To != Closing && c.To != Ghost {
		return invalidState(c.To)
	}
	return c.Key.Check()
}

func invalidState(s State) error { return fmt.Errorf("%w: state %d", ErrInvalid, s) }

// Matches tells whether c applies to r, a remembered record of its device.
func (c Change) Matches(r Record) bool {
	return r.State != Ghost && r.Node == c.Node && r.Epoch == c.Epoch &&
		(c.Session == 0 || c.Session == r.Session)
}

// Forgotten tells whether r is a ghost whose time is over.
func (r Record) Forgotten(now time.Time) bool {
	return r.State == Ghost && !now.Before(r.Until)
}

// Millis is d in the unit that stores count in, rounded up so that a positive
// duration stays positive.
func Millis(d time.Duration) int64 {
	ms := d.Milliseconds()
	if d > 0 && d%time.Millisecond != 0 {
		ms++
	}
	return ms
}

// Text is the record for a store that keeps text, without its device:
//
//	epoch:state:session:incarnation:version:until:node
//
// All but node are decimal numbers, until in Unix milliseconds (0 unless the
// record is a ghost). node is query-escaped, so it has no colon: later versions
// may append `:more`, which this one keeps and ignores.
func (r Record) Text() string {
	until := int64(0)
	if r.State == Ghost {
		until = r.Until.UnixMilli()
	}
	b := make([]byte, 0, 64)
	for _, n := range [...]uint64{r.Epoch, uint64(r.State), r.Session, r.Node.Incarnation, uint64(r.Version), uint64(max(until, 0))} {
		b = strconv.AppendUint(b, n, 10)
		b = append(b, ':')
	}
	return string(append(b, url.QueryEscape(r.Node.ID)...))
}

// ParseRecord reads what Text wrote.
func ParseRecord(device, text string) (Record, error) {
	malformed := func() (Record, error) {
		return Record{}, fmt.Errorf("malformed route of device %q: %q", device, text)
	}
	// The widths of epoch, state, session, incarnation, version, until.
	bits := [...]int{64, 8, 64, 64, 8, 63}
	var n [len(bits)]uint64
	rest := text
	for i := range bits {
		number, tail, found := strings.Cut(rest, ":")
		v, err := strconv.ParseUint(number, 10, bits[i])
		if err != nil || !found {
			return malformed()
		}
		n[i], rest = v, tail
	}
	escaped, _, _ := strings.Cut(rest, ":")
	node, err := url.QueryUnescape(escaped)
	state := State(n[1])
	if err != nil || state < Live || state > Ghost {
		return malformed()
	}
	r := Record{
		Device: device, Epoch: n[0], State: state, Session: n[2], Version: uint8(n[4]),
		Node: NodeRef{ID: node, Incarnation: n[3]},
	}
	if state == Ghost {
		r.Until = time.UnixMilli(int64(n[5]))
	}
	return r, nil
}
