package route

import (
	"context"
	"time"
)

// BurialMemory is how long a buried incarnation is refused. By then a process
// that stood still has lost its last client long ago.
const BurialMemory = 7 * 24 * time.Hour

// Death is why an incarnation counts as dead.
type Death uint8

const (
	// Lapsed: its lease ran out. It may merely be late, and renew.
	Lapsed Death = iota + 1
	// Stopped: it took itself out of the directory.
	Stopped
	// Superseded: a newer incarnation has taken its name.
	Superseded
	// Buried: its cleaning has begun.
	Buried
)

// String names it for logs.
func (d Death) String() string {
	switch d {
	case Lapsed:
		return "lease ran out"
	case Stopped:
		return "stopped"
	case Superseded:
		return "superseded"
	case Buried:
		return "cleaning had begun"
	}
	return "unknown"
}

// DeadNode is an incarnation without a lease that may have left routes behind.
type DeadNode struct {
	NodeRef
	Why Death
}

// Ended is a session that ended with its gateway, and not by itself.
type Ended struct {
	Key   DeviceKey
	Epoch uint64
}

// Restored is a record that somebody else remembers: a gateway that holds the
// session, or a router that outlived the store. Record.Device is not used.
type Restored struct {
	Key    DeviceKey
	Record Record
}

// Marker is the name of a backend's content.
type Marker struct {
	ID      string
	Created bool // by this very call: there was nothing before
	// Whole: nothing that the backend should hold is missing in it, as SetWhole says.
	// New content is not.
	Whole bool
}

// Upkeep is the part of a Store that cleans up after gateways that died, and
// rebuilds what the backend lost.
//
// A store knows which routes name an incarnation without looking at all of
// them: Bind and Restore note the session under its node before the record
// appears, so the notes are never fewer than the routes. They may be more.
type Upkeep interface {
	// DeadNodes returns the incarnations that hold no lease, sorted, except
	// those that ForgetNode has dealt with.
	DeadNodes(ctx context.Context) ([]DeadNode, error)
	// Bury ends n for good: RenewNode refuses it with ErrSuperseded for
	// BurialMemory. false: it holds a lease, and nothing was done. It must come
	// before Reap, and may be repeated.
	Bury(ctx context.Context, n NodeRef) (buried bool, err error)
	// Reap makes ghosts of about limit routes of n, each for its tenant's
	// ghostTTL (as in Change), and drops n's connection counts of their tenants.
	// A record that names another incarnation is left alone. It returns those that
	// it changed, also with an error, and whether to call again. Each change is
	// made once and returned by whoever made it, over all routers; that of an
	// answer that got lost is returned by nobody.
	Reap(ctx context.Context, n NodeRef, limit int, ghostTTL func(tenant string) time.Duration) (ended []Ended, more bool, err error)
	// ForgetNode says that nothing is left of a buried incarnation. It stays
	// refused; should a late Bind name it after all, DeadNodes shows it again.
	ForgetNode(ctx context.Context, n NodeRef) error

	// Restore sets each record unless the store knows better: it replaces none,
	// an expired ghost, a lower epoch, and at the same epoch its own location or
	// a record that is not live. It returns how many it set. After an error any
	// may have been set; repeating it does no harm. An empty tenant, user or
	// device, or a record of no state, is ErrInvalid: then none was. A user's
	// records that follow each other are seen together, or not yet.
	Restore(ctx context.Context, records []Restored) (set int, err error)
	// SetConns makes n the node's count of the tenant's connections.
	SetConns(ctx context.Context, tenant string, node NodeRef, n int) error
	// Marker returns the name of the backend's present content. It is drawn anew
	// by the first who asks after the backend has lost everything.
	Marker(ctx context.Context) (Marker, error)
	// SetWhole says whether anything is missing in the content of that name. It does
	// nothing if the content has another one.
	SetWhole(ctx context.Context, id string, whole bool) error

	// Lock takes the named lock for ttl, or prolongs it if owner holds it; false:
	// somebody else does.
	Lock(ctx context.Context, name, owner string, ttl time.Duration) (bool, error)
	// Unlock gives it back if owner holds it.
	Unlock(ctx context.Context, name, owner string) error
}

// Check refuses what no store can keep.
func (r Restored) Check() error {
	if err := r.Key.Check(); err != nil {
		return err
	}
	if r.Record.State < Live || r.Record.State > Ghost {
		return invalidState(r.Record.State)
	}
	return nil
}

// YieldsTo tells whether new may take the place of r, which a store remembers
// for the same device (Restore). What has ended does not begin to end again: nobody
// would finish it.
func (r Record) YieldsTo(new Record) bool {
	if r.Epoch != new.Epoch {
		return r.Epoch < new.Epoch
	}
	return (r.State != Ghost || new.State != Closing) && (r.State != Live || r.Location() == new.Location())
}
