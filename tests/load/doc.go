// Package load drives a MICS cluster of real processes and measures what its
// work costs: server CPU per unit of work, memory per connection, and latency
// at a given rate. The units and their targets are the table in
// docs/performance.md; the command is cmd/mics-load.
//
// CPU time, unlike a rate or a wall-clock time, means something also on a
// machine that is busy with other things. So every scenario divides the CPU
// time of the server processes by the units of work done in the same interval,
// and the client side (Client, Swarm) is built to leave the machine to them.
//
// Bare is the yardstick: one process that does the least that can be done for
// the same frames on the same sockets. Costs as multiples of its cost can be
// compared between machines.
package load

import (
	"fmt"
	"time"
)

// Params are what a scenario can be told. A scenario looks only at those that
// concern it.
type Params struct {
	// Clients is how many connections are opened.
	Clients int
	// Window is how many messages of one client (in groups: of one group) are
	// under way at once at saturation.
	Window int
	// Rate is messages per second of the open loop.
	Rate int
	// Body is the size of a message's body in bytes, at least 8.
	Body int
	// Sizes are the sizes of groups.
	Sizes []int
	// Rounds is how many messages are sent to the big group.
	Rounds int
	// Warmup is not measured; Duration is.
	Warmup, Duration time.Duration
	// Parallel is how many connections are opened at once.
	Parallel int
	// Agents is how many processes hold the connections; 0: this one.
	Agents int
	// Device is the device id of all clients; empty: "load".
	Device string
	// Profile is a directory for perf's records of what is measured; empty: none.
	Profile string
}

// Check tells what is out of bounds, so that every run is bounded.
func (p Params) Check() error {
	for _, b := range []struct {
		name          string
		v, least, top int
	}{
		{"clients", p.Clients, 2, 1_000_000}, {"window", p.Window, 1, 1024}, {"rate", p.Rate, 1, 1_000_000},
		{"body", p.Body, stampSize, 1 << 20}, {"rounds", p.Rounds, 1, 1000}, {"parallel", p.Parallel, 1, 4096},
		{"agents", p.Agents, 0, 64}, {"duration in ms", int(p.Duration.Milliseconds()), 100, 600_000},
		{"warm-up in ms", int(p.Warmup.Milliseconds()), 0, 600_000},
	} {
		if b.v < b.least || b.v > b.top {
			return fmt.Errorf("%s: %d is not between %d and %d", b.name, b.v, b.least, b.top)
		}
	}
	return nil
}

// Target is what is measured.
type Target struct {
	// URLs are where clients connect (ws://host:port/ws), taken in turn.
	URLs []string
	// Tenant is the tenant of all clients; Tenant.New's hooks know their tokens.
	Tenant string
	// Token comes before the user's id in tokens; empty: what Tenant.New's hooks
	// know.
	Token string
	// Procs are the server processes.
	Procs []Proc
}

// Metric is one figure of one run.
type Metric struct {
	Name  string
	Unit  string
	Value float64
	// Limit is the most it should be, LimitBare the most as a share of what Bare
	// needs; 0: nothing is asked.
	Limit, LimitBare float64
	// Note is for a reader; it may differ from run to run.
	Note string
}
