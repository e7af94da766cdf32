// Package store is the control plane's durable state: a few small items under
// compare-and-set, bounded logs, and who leads. What decides (drains, canaries)
// keeps its state here, so that another leader goes on where one stopped.
//
// # Who writes
//
// Items have one writer, the leader: Commit takes the term under which its caller
// leads and is refused with ErrDeposed once another one has begun, whatever the
// caller still believes. The check and the writes are one step of the store.
// Append is for everybody.
//
// # Sizes
//
// It is for what people operate, not for traffic: at most MaxItems items of
// MaxValue bytes, which List reads as a whole.
package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Bounds of what is kept.
const (
	MaxItems = 1024
	MaxValue = 256 << 10 // bytes
	MaxKey   = 256       // bytes
	MaxKeep  = 10_000    // entries of one log
	MaxBatch = 64        // changes and entries of one Commit
)

var (
	// ErrConflict: an item is not at the version that its writer has seen.
	ErrConflict = errors.New("changed by somebody else")
	// ErrDeposed: the term is over.
	ErrDeposed = errors.New("not the leader any more")
	// ErrUnavailable: the store did not answer; whether a write was done is not
	// known.
	ErrUnavailable = errors.New("store unavailable")
	// ErrInvalid: a bound of this package is exceeded.
	ErrInvalid = errors.New("not storable")
	// ErrFull: there are MaxItems items.
	ErrFull = errors.New("too many items")
)

// Item is one value.
type Item struct {
	Key   string
	Value []byte
	// Version changes with every write and is never 0.
	Version uint64
}

// Change sets an item, or removes it.
type Change struct {
	Key string
	// Version is what the item must be at; 0: it must not exist.
	Version uint64
	Value   []byte
	Delete  bool
}

// Entry is to be appended to a log, of which the newest Keep stay.
type Entry struct {
	Log   string
	Value []byte
	Keep  int
}

// Batch is done as a whole or not at all.
type Batch struct {
	Changes []Change
	Entries []Entry
}

// Record is an entry of a log as it is kept.
type Record struct {
	// ID orders the records of one log.
	ID    string
	At    time.Time
	Value []byte
}

// Candidate is one start of one control plane.
type Candidate struct {
	// Instance is unique to this start; Name is what people call it.
	Instance, Name string
	// Address is the base URL at which other control planes reach it.
	Address string
}

// Leader is who leads. The zero value: nobody.
type Leader struct {
	Candidate
	// Term rises with every change of leader, also over a store that was emptied.
	Term uint64
}

// Store is what a backend does. It is safe for concurrent use; every call is
// bounded by itself. Slices that it takes or returns are the caller's.
type Store interface {
	// Get returns an item; the zero Item, whose Version is 0, if there is none.
	Get(ctx context.Context, key string) (Item, error)
	// List returns the items whose keys begin with prefix, sorted by key.
	List(ctx context.Context, prefix string) ([]Item, error)
	// Commit applies b if term still leads and every version is as it says, and
	// returns the new versions of the changes (0 for removed ones).
	Commit(ctx context.Context, term uint64, b Batch) ([]uint64, error)
	// Append adds one entry to a log; it needs no term.
	Append(ctx context.Context, e Entry) error
	// Tail returns the newest records of a log that are not before since (zero:
	// all), newest first, at most limit.
	Tail(ctx context.Context, log string, since time.Time, limit int) ([]Record, error)
	// Campaign takes the lead for ttl if nobody else has it, or prolongs it, and
	// returns who leads.
	Campaign(ctx context.Context, c Candidate, ttl time.Duration) (Leader, error)
	// Leader returns who leads.
	Leader(ctx context.Context) (Leader, error)
	// Resign gives the lead up if the instance has it.
	Resign(ctx context.Context, instance string) error
	Close()
}

// Check tells whether b is within the bounds. Backends call it.
func (b Batch) Check() error {
	if n := len(b.Changes) + len(b.Entries); n == 0 || n > MaxBatch {
		return fmt.Errorf("%w: %d changes at once: want 1 to %d", ErrInvalid, n, MaxBatch)
	}
	seen := make(map[string]bool, len(b.Changes))
	for _, c := range b.Changes {
		if seen[c.Key] {
			return fmt.Errorf("%w: %s twice in one batch", ErrInvalid, c.Key)
		}
		seen[c.Key] = true
		if err := checkKey(c.Key); err != nil {
			return err
		}
		if len(c.Value) > MaxValue {
			return fmt.Errorf("%w: %s: %d bytes: at most %d", ErrInvalid, c.Key, len(c.Value), MaxValue)
		}
		if c.Delete && c.Version == 0 {
			return fmt.Errorf("%w: %s: removed without a version", ErrInvalid, c.Key)
		}
	}
	for _, e := range b.Entries {
		if err := e.Check(); err != nil {
			return err
		}
	}
	return nil
}

// Check tells whether e is within the bounds. Backends call it.
func (e Entry) Check() error {
	if err := checkKey(e.Log); err != nil {
		return err
	}
	if len(e.Value) > MaxValue || e.Keep < 1 || e.Keep > MaxKeep {
		return fmt.Errorf("%w: entry of %s: %d bytes (at most %d), keep %d (1 to %d)", ErrInvalid, e.Log, len(e.Value), MaxValue, e.Keep, MaxKeep)
	}
	return nil
}

func checkKey(k string) error {
	if k == "" || len(k) > MaxKey || strings.ContainsAny(k, "{} \n") {
		return fmt.Errorf("%w: key %.80q", ErrInvalid, k)
	}
	return nil
}
