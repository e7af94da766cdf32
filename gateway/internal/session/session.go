package session

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/mics-im/mics/gateway/internal/ws"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// phase of a session; it only goes up.
type phase uint8

const (
	// opening: OpenSession is under way. Deliveries are taken and held.
	opening phase = iota
	live
	// suspended (V2): the socket is lost. Deliveries are taken into the window, for
	// the client to come back for within the resume window.
	suspended
	// closing: a close frame is queued or written, so nothing can follow it.
	closing
	// ended: the socket is closed. What had not been confirmed is being handed
	// back, and until a router has taken it the session stays in the table.
	ended
)

// Session is one connection, and the single writer on it. Safe for concurrent
// use. At most two goroutines run for it: one that reads, and one that writes
// while there is something to write; the registry's sweeper keeps its deadlines.
//
// What keeps a message from being lost or shown twice:
//
//   - mu orders everything: a delivery is in the window before its acceptance is
//     answered, and it leaves the window only by confirm, by Freeze or by being
//     taken back after the end, exactly one of them.
//   - shut is set with the first refusal and never taken back: a router may rely
//     on it that a session which has refused never accepts again, and so that
//     nothing overtakes what was refused.
//   - A resend is recognised also after the end, as long as the session is in the
//     table: what it took is being handed back, and a refusal would deliver it
//     twice.
//   - Positions are given when a frame is queued. What is dropped from the queue
//     (cut) gets the position unsent in V1; a seq stays, and nothing confirms one
//     that neither this session nor the one before it has begun to send.
//   - After the end nothing is confirmed but by the router that takes the window.
type Session struct {
	host    *Host
	conn    *ws.Conn
	id      uint64
	version uint32
	remote  string
	since   int64 // when it was made
	// Sibling is the registry's: the next session in its index of users.
	Sibling *Session
	// ackKnown: the kernel tells what the peer's has acknowledged.
	ackKnown bool

	lastIn     atomic.Int64 // when the peer was heard of last
	lastPing   atomic.Int64
	writeSince atomic.Int64 // since when a write has been under way; 0: none is
	until      atomic.Int64 // suspended: when the resume window ends; 0: not
	paused     atomic.Bool  // the reading goroutine makes the client wait

	// Owned by the reading goroutine.
	tat        int64 // theoretical arrival time of the flood limit
	floodSince int64 // throttled without a break since; 0: not
	floodTold  int64

	mu           sync.Mutex
	tenant       *tenant // this and the following are guarded by mu
	user, device string
	epoch        uint64
	answer       func(ack []byte) // s.answered, made for the first message
	code         int              // close code; 0: none yet
	reason       string
	deadline     int64 // closing, suspended: when the socket is cut; pending: when to close
	phase        phase
	shut         bool // no more deliveries are taken
	released     bool // its route has been given back
	refused      bool // it was never admitted
	neverOpened  bool // nobody knows whether it was admitted
	pending      bool // close with code as soon as it can be
	frozen       bool // a Handover takes, or has taken, the window
	freezing     bool // it is still waiting
	migrated     bool // it goes on here because its client was asked to move
	idled        bool // it was suspended, and its socket's end has been counted
	severed      bool // suspended: the socket is closed
	closeQueued  bool
	closeSent    bool // our close frame was written
	peerClosed   bool // the peer's close frame has come
	deaf         bool // the reading goroutine has ended before the socket
	echoed       bool
	reading      bool // the reading goroutine runs
	writing      bool // the writing goroutine runs
	watched      bool // the sweeper calls Sweep
	handing      bool // the end has been dealt with
	final        bool // nothing is left to be handed back
	gone         bool
	unanswered   int           // messages published and not answered
	handedBack   int           // messages, for the drain's receipt
	handed       *Handed       // what a Handover has got; nil: none has
	acked        func()        // to be called after the next write; nil: nothing
	changed      chan struct{} // closed at the next change, if somebody waits

	queue       []item // what has not been begun to write
	queuedBytes int
	tail        int64  // position of the queue's end
	sent        int64  // position up to which writing has begun
	written     int64  // position up to which it has ended
	ackedSeq    uint64 // V2: the highest seq that the client has acknowledged here
	base        int64  // V2: seq up to which the session that it goes on with may have sent
	marks       []mark // TLS: positions in its stream
	win         window
	recent      *recent
}

// NewSession makes a session in the phase opening. The caller has it in the table
// before any router hears of it, and calls Open or Refuse exactly once.
func (h *Host) NewSession(id uint64, conn *ws.Conn, p Params) *Session {
	now := h.now()
	s := &Session{
		host: h, conn: conn, id: id, version: p.Version, remote: p.RemoteAddr, since: now,
		tenant: &tenant{name: p.Tenant}, device: p.Device,
	}
	_, s.ackKnown = conn.Acknowledged()
	if !s.v2() {
		s.tail = conn.Written()
		s.sent, s.written = s.tail, s.tail
	}
	s.lastIn.Store(now)
	s.lastPing.Store(now)
	return s
}

// ID is unique within the gateway's incarnation, increasing from 1.
func (s *Session) ID() uint64 { return s.id }

// Version of the client's protocol, 1 or 2.
func (s *Session) Version() uint32 { return s.version }

func (s *Session) v2() bool { return s.version >= 2 }

// Identity of the connection; before Open what the client claims, without a user.
func (s *Session) Identity() Identity {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.identity()
}

// identity is Identity with the session locked.
func (s *Session) identity() Identity {
	return Identity{Tenant: s.tenant.name, User: s.user, Device: s.device}
}

// Epoch of the admission; 0 before Open.
func (s *Session) Epoch() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch
}

// Migrated tells whether it goes on here because its client was asked to move, and
// since when it is here.
func (s *Session) Migrated() (migrated bool, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.migrated, s.host.start.Add(time.Duration(s.since))
}

// Info is the session as others see it; ok says that it is its device's: it has been
// admitted, and neither has a router taken its end nor another session its place.
func (s *Session) Info() (info *gatewayv1.SessionInfo, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	holds := (s.phase == live || s.phase == suspended) && !s.shut && !s.released && !s.pending
	return &gatewayv1.SessionInfo{
		SessionId: s.id, TenantId: s.tenant.name, UserId: s.user, DeviceId: s.device, Epoch: s.epoch, Version: s.version,
		ConnectedAtMs: s.host.start.Add(time.Duration(s.since)).UnixMilli(),
		RemoteAddr:    s.remote, Queued: uint32(len(s.queue)), Suspended: s.phase == suspended,
		Ending: !holds,
	}, s.phase != opening && !s.refused && s.handed == nil && !s.final
}

// Stage is what a drain has to know of a session.
type Stage uint8

const (
	// Opening: it may be open soon, or refused.
	Opening Stage = iota
	Open
	// Suspended: it has no socket, and nobody to be told.
	Suspended
	// Ending: it is being closed, or has been.
	Ending
)

// Stage it is in now.
func (s *Session) Stage() Stage {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.phase == opening:
		return Opening
	case s.phase == live && !s.frozen:
		return Open
	case s.phase == suspended:
		return Suspended
	}
	return Ending
}

// Outcome is what became of a session, for a drain's receipt.
type Outcome struct {
	// Told: the close frame was written. Echoed: the peer answered it.
	Told, Echoed bool
	// Ended: the socket is closed. Gone: nothing is left to do.
	Ended, Gone bool
	// Moved: another session has taken over.
	Moved bool
	// HandedBack is how many messages were given back to routers.
	HandedBack int
}

// Outcome so far.
func (s *Session) Outcome() Outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Outcome{Told: s.closeSent, Echoed: s.echoed, Ended: s.phase == ended, Gone: s.gone, Moved: s.handed != nil, HandedBack: s.handedBack}
}

// notify wakes who waits for a change. The session is locked.
func (s *Session) notify() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// change returns a channel that is closed at the next change. The session is
// locked.
func (s *Session) change() <-chan struct{} {
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

// watch asks the sweeper for its attention. The session is locked.
func (s *Session) watch() {
	if !s.watched {
		s.watched = true
		s.host.owner.Watch(s)
	}
}

// leave takes the session out of the table if nothing is left to do. The session
// is locked.
func (s *Session) leave() {
	if s.phase == ended && s.final && !s.reading && !s.writing && !s.gone {
		s.gone, s.recent = true, nil
		if s.handed != nil {
			s.handed = &Handed{} // its messages need not wait in a grave
		}
		s.notify()
		s.host.owner.Gone(s, s.identity(), len(s.win.sources) > 0)
	}
}
