// Package session is one client's socket and the single writer on it: framing,
// the bounded outbound queue, the window of what has not been confirmed, and
// every way in which a session ends without losing what it had accepted.
package session

import (
	"context"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// Identity is whose connection it is, as the tenant's auth hook said.
type Identity struct{ Tenant, User, Device string }

// RouterRef names one start of one router.
type RouterRef struct {
	ID          string
	Incarnation uint64
}

// Uplink is what sessions need of the routers. Safe for concurrent use.
type Uplink interface {
	// Publish takes a stamped MessageRequest to the user's home router. Messages
	// of one session arrive in the order of calls; one that repeats another that is
	// still under way has its outcome. It never blocks and keeps msgID and message,
	// which is not modified any more. done is called exactly once, from any
	// goroutine, with a serialized MessageAck that done does not keep; it never
	// blocks.
	Publish(s *Session, msgID string, message []byte, traceparent string, done func(ack []byte))
	// Release tells the homes that the sessions' routes go (STAGE_RELEASE),
	// batched per home. It returns when all have answered or ctx ends; the error
	// says how many were not told.
	Release(ctx context.Context, sessions []*Session) error
	// Final hands an ended session (STAGE_FINAL) to its user's home. It is tried
	// again on whichever router is home until one has taken it; then done is
	// called, once. It never blocks, and keeps c.
	Final(c *routerv1.ClosedSession, done func())
}

// Admission is a successful OpenSession.
type Admission struct {
	Identity
	Epoch uint64
	// Heartbeat is the tenant's heartbeat timeout; zero means 30 s.
	Heartbeat time.Duration
	// Backlog goes before anything else. Open keeps its messages.
	Backlog []*gatewayv1.Undelivered
	// Home keeps the copies of the backlog.
	Home                   RouterRef
	RecentKeys, RecentAges []byte
	TraceID                string
	// ResumeToken names the session for its client (V2).
	ResumeToken string
	// Resumed: an earlier session goes on (V2). What is first in the backlog has
	// seqs, up to NextSeq-1; what follows is numbered from NextSeq on.
	Resumed bool
	// Migrated: of a resumed one, its client had been asked to move.
	Migrated bool
	NextSeq  uint64
	// Acked, unless it is nil, is called when the ConnectAck has been written: once,
	// without locks, from the writing goroutine, which it must not block.
	Acked func()
}

// Config is what the sessions of one gateway share. Zero values mean the
// defaults named; Uplink and Telemetry are required.
type Config struct {
	NodeID string
	// MaxMessageBytes bounds a message's body (1 MiB).
	MaxMessageBytes int
	// QueueFrames (1024) and QueueBytes (4 MiB) bound a session's outbound queue.
	QueueFrames, QueueBytes int
	// Keepalive is how often a WebSocket ping goes out; 0: never.
	Keepalive time.Duration
	// FloodPerSecond is how many frames a client may send, in the long run, with
	// a burst of twice as many; 0: any number.
	FloodPerSecond int
	// ResumeWindow is how long a V2 session waits for its client after its socket
	// was lost; 0: not at all.
	ResumeWindow time.Duration
	Uplink       Uplink
	Telemetry    *telemetry.Telemetry
	// Trace is called for every client message, unless it is nil. It returns the
	// traceparent for the routers, empty when the message is not sampled, and
	// what ends the span when the message has been answered, nil when there is
	// none.
	Trace func(tenant string) (traceparent string, end func())
}

// Params is what is known of a connection before its session is opened.
type Params struct {
	// Tenant and Device as the client claims.
	Tenant, Device string
	// Version of the client's protocol, 1 or 2.
	Version    uint32
	RemoteAddr string
}
