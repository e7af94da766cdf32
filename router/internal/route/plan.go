package route

import (
	"slices"
	"time"
)

// Plan says where a message for a user goes.
type Plan struct {
	// Live devices take it at their gateways.
	Live []Record
	// Absent devices have been here lately and are owed it.
	Absent []string
}

// Nobody tells that no device of the user is known: whichever comes first is
// owed the message.
func (p Plan) Nobody() bool { return len(p.Live)+len(p.Absent) == 0 }

// Includes reports whether the plan has a place for the device.
func (p Plan) Includes(device string) bool {
	return slices.Contains(p.Absent, device) ||
		slices.ContainsFunc(p.Live, func(r Record) bool { return r.Device == device })
}

// PlanFor sorts a user's records. A record of a gateway that is not alive is a
// ghost, whatever the store says. only limits the plan to one device; empty
// means all.
func PlanFor(records []Record, only string, alive func(NodeRef) bool, now time.Time) Plan {
	var p Plan
	for _, r := range records {
		if only != "" && r.Device != only {
			continue
		}
		switch {
		case r.State == Live && alive(r.Node):
			p.Live = append(p.Live, r)
		case r.State == Ghost && !r.Until.IsZero() && !now.Before(r.Until):
			// Nobody remembers it any more.
		default:
			p.Absent = append(p.Absent, r.Device)
		}
	}
	if only != "" && p.Nobody() {
		p.Absent = []string{only}
	}
	return p
}
