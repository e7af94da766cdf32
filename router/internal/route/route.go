// Package route holds what a route is, the rules by which routes change, and
// the Store that keeps them. It does no I/O.
//
// A route says on which gateway a device's session lives. A record goes
//
//	(none) ──bind──▶ live ──release──▶ closing ──finish──▶ ghost ──ttl──▶ (none)
//	                  ▲│ └────────────────finish──────────▶ │
//	                  └┴──────────────bind (epoch + 1)──────┘
//
// and a live or closing record whose gateway incarnation is not alive counts
// as a ghost, whatever the store still says (DESIGN section 4).
package route

import (
	"context"
	"errors"
	"time"
)

// UserKey names a user of a tenant; all devices of a user live under one key,
// and so in one Redis slot.
type UserKey struct {
	Tenant, User string
}

// DeviceKey names one device of a user.
type DeviceKey struct {
	UserKey
	Device string
}

// NodeRef names one start of one gateway.
type NodeRef struct {
	ID          string
	Incarnation uint64
}

// State is the stage of a record's life.
type State uint8

const (
	// Live: the session takes deliveries.
	Live State = iota + 1
	// Closing: the session has given its route away and is still flushing;
	// its gateway may yet hand messages back.
	Closing
	// Ghost: the device is absent, and what comes for it is kept until Until.
	Ghost
)

// Record is one device's route.
type Record struct {
	Device  string
	State   State
	Node    NodeRef
	Session uint64
	// Epoch rises by one with every bind of this device and never falls while
	// the record lives.
	Epoch uint64
	// Version is the client's protocol version, 1 or 2.
	Version uint8
	// Until is when a Ghost, or a record found dead, stops being remembered;
	// zero for Live and Closing.
	Until time.Time
}

// Location is where a session lives.
type Location struct {
	Node    NodeRef
	Session uint64
}

// Location returns where the record's session lives or lived.
func (r Record) Location() Location { return Location{Node: r.Node, Session: r.Session} }

// ErrUnavailable wraps every failure of a store's backend: nothing is known
// about the effect of the call.
var ErrUnavailable = errors.New("route store unavailable")

// ErrInvalid wraps what a store refuses without asking its backend: a key with
// an empty part, a change to a state that nothing changes to.
var ErrInvalid = errors.New("invalid route")

// Change is one device's step out of the live state.
type Change struct {
	Key DeviceKey
	// Node and Epoch must match the record, else the change is not applied: a
	// device that is back elsewhere is left alone.
	Node  NodeRef
	Epoch uint64
	// Session must match too unless it is zero. A caller that knows it should
	// say it: epochs begin anew once a record is forgotten, so a late repeat of
	// a change could otherwise hit the device's next session on the same node.
	Session uint64
	// To is Closing or Ghost.
	To State
	// GhostTTL is how long the absent device is remembered (Ghost); zero or
	// less removes the record.
	GhostTTL time.Duration
}

// Node is a gateway in the directory.
type Node struct {
	NodeRef
	Endpoint, Track, Version string
	// ClientURL is where clients reach this very gateway; empty: nowhere.
	ClientURL string
	// Phase is a gatewayv1.Phase number.
	Phase int32
}

// Router is a router in the directory.
type Router struct {
	NodeRef
	Endpoint, Version string
}

// ErrSuperseded is what a node is told that a newer incarnation has replaced, or
// that was declared dead.
var ErrSuperseded = errors.New("superseded by a newer incarnation, or declared dead")

// Store keeps routes, leases, and the counters behind limits. It is safe for
// concurrent use. Every method may fail with ErrUnavailable, and does so within
// seconds whatever the context says. Durations count in milliseconds, rounded
// up.
type Store interface {
	// Bind makes loc the device's live route with epoch prev+1 (1 for a new
	// device) and returns the record it replaced, nil when there was none; an
	// expired ghost is none. An empty tenant, user or device is ErrInvalid.
	Bind(ctx context.Context, key DeviceKey, loc Location, version uint8) (epoch uint64, prev *Record, err error)
	// Change applies each change that matches a live or closing record, in their
	// order, and tells which did. After an error any of them may have been
	// applied, except ErrInvalid: then none was.
	Change(ctx context.Context, changes []Change) (applied []bool, err error)
	// Lookup returns all records of the users, in the order of keys and each
	// sorted by device; expired ghosts are left out. It may answer from a
	// cache that the backend invalidates: it may miss a change of a moment ago,
	// this store's own included. Who acts on it learns that from the gateway's
	// answer (moved, unknown) and asks LookupFresh.
	Lookup(ctx context.Context, keys []UserKey) ([][]Record, error)
	// LookupFresh is Lookup past every cache.
	LookupFresh(ctx context.Context, key UserKey) ([]Record, error)

	// RenewNode takes or renews a gateway's lease. A lower incarnation than the
	// one known, and a buried one, fails with ErrSuperseded.
	RenewNode(ctx context.Context, n Node, lease time.Duration) error
	// RemoveNode ends a lease at once (orderly stop); no error if it is gone or
	// a newer incarnation's. The incarnation stays known, as it does when a
	// lease runs out, for an hour.
	RemoveNode(ctx context.Context, n NodeRef) error
	// Nodes returns the gateways whose lease has not run out, sorted by ID.
	Nodes(ctx context.Context) ([]Node, error)
	// RenewRouter, RemoveRouter and Routers are the same for routers.
	RenewRouter(ctx context.Context, r Router, lease time.Duration) error
	RemoveRouter(ctx context.Context, r NodeRef) error
	Routers(ctx context.Context) ([]Router, error)

	// AcquireConn counts one more connection of the tenant on a node unless
	// the sum over the live nodes has reached limit (0: no limit). node itself
	// counts as live. It returns the sum before the call. The count of a node
	// that is not among the live is forgotten when nothing touched it for a week
	// (CountMemory), that of a living one never.
	AcquireConn(ctx context.Context, tenant string, node NodeRef, limit int, live []NodeRef) (ok bool, current int, err error)
	// ReleaseConns gives n connections back, none if n is not positive; a count
	// never falls below zero.
	ReleaseConns(ctx context.Context, tenant string, node NodeRef, n int) error

	// LeaseTokens takes up to want tokens from the tenant's bucket, which holds
	// at most one second's worth and refills at rate tokens per second. There
	// are none to take at a rate, or for a want, of zero or less.
	LeaseTokens(ctx context.Context, tenant string, rate, want int) (granted int, err error)

	Upkeep

	// Ping tells whether the backend answers.
	Ping(ctx context.Context) error
	Close() error
}
