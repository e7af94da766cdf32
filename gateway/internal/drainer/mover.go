package drainer

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/mics-im/mics/gateway/internal/session"
	"github.com/mics-im/mics/internal/ring"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

// Routers is what moving sessions needs of them.
type Routers interface {
	// Release tells the homes that the sessions' routes go. It returns when all have
	// answered or ctx ends; the error says how many were not told.
	Release(ctx context.Context, sessions []*session.Session) error
	// Migrate returns tokens with which the sessions' clients can move until the
	// deadline, one per session, empty for one that cannot; the error says why.
	Migrate(ctx context.Context, sessions []*session.Session, deadline time.Duration) ([]string, error)
}

const (
	// askBatch is how many clients are asked with one call to the routers.
	askBatch = 512
	// MoveWithin is how long a client that was asked has to move, at most.
	MoveWithin = 15 * time.Second
)

// Mover has sessions go elsewhere: those of V2 clients by asking them, the others
// by closing them. It keeps no pace and no state: who is asked when, and only once,
// is its caller's business. Safe for concurrent use.
type Mover struct {
	up  Routers
	log *slog.Logger
}

// NewMover returns a mover.
func NewMover(up Routers, log *slog.Logger) *Mover { return &Mover{up, log} }

// Ask says how clients are asked.
type Ask struct {
	// Reason is Migrate.reason.
	Reason string
	// Within is how long they have to move; above 0.
	Within time.Duration
	// Spread is the time over which they are to begin, so that a batch is no burst.
	Spread time.Duration
	// URL is where the client goes, empty for its usual URL; nil: all are.
	URL func(*session.Session) string
}

// Ask asks the clients to open another connection, and tells which of them were
// asked. It waits for the routers, for some seconds at most.
func (m *Mover) Ask(ctx context.Context, sessions []*session.Session, a Ask) (asked, unable []*session.Session) {
	began := time.Now()
	n := 0
	for batch := range slices.Chunk(sessions, askBatch) {
		tokens, err := m.up.Migrate(ctx, batch, a.Within-time.Since(began))
		if err != nil {
			m.log.Warn("migrate_failed", "sessions", len(batch), "reason", a.Reason, "error", err)
		}
		for i, s := range batch {
			msg := &messagev1.Migrate{Reason: a.Reason, DelayMs: jitter(n, len(sessions), a.Spread).Milliseconds()}
			n++
			if i < len(tokens) {
				msg.ResumeToken = tokens[i]
			}
			msg.DeadlineMs = (a.Within - time.Since(began)).Milliseconds()
			if a.URL != nil {
				msg.Url = withHome(a.URL(s), s.Identity())
			}
			if msg.ResumeToken != "" && msg.DeadlineMs > 0 && s.Migrate(msg) {
				asked = append(asked, s)
			} else {
				unable = append(unable, s)
			}
		}
	}
	return asked, unable
}

// withHome adds to a URL whose client it is, so that the next gateway can ask the
// user's home at once: the answer then has no other router to pass while nothing can
// be delivered.
func withHome(url string, id session.Identity) string {
	if url == "" {
		return "" // the usual one, which is not known here
	}
	sep := "?"
	if strings.Contains(url, "?") {
		sep = "&"
	}
	return url + sep + ring.HomeParam + "=" + ring.Hint(ring.Hash(id.Tenant, id.User))
}

// jitter is somewhere in the i-th of n slots.
func jitter(i, n int, over time.Duration) time.Duration {
	return time.Duration((float64(i) + rand.Float64()) / float64(n) * float64(over))
}

// Patience bounds what telling a session waits for before it is closed all the
// same: for the routers to release its route, and for its messages' answers.
type Patience struct{ Release, Answers time.Duration }

// MostPatience is for who has time.
var MostPatience = Patience{Release: 2 * time.Second, Answers: time.Second}

// Tell closes sessions with 4200: their routes are released first, then each is
// flushed and closed as soon as its messages are answered, and read until it echoes;
// the sessions do that by themselves, and none waits for another. Tell returns
// before: when the routes have been released, or ctx has ended.
func (m *Mover) Tell(ctx context.Context, sessions []*session.Session, p Patience) {
	var routed []*session.Session
	for _, s := range sessions {
		if _, ok := s.Info(); ok {
			s.Released()
			routed = append(routed, s)
		}
	}
	if len(routed) > 0 {
		ctx, cancel := context.WithTimeout(ctx, p.Release)
		if err := m.up.Release(ctx, routed); err != nil {
			// What is delivered to them is refused or handed back, and so not lost.
			m.log.Warn("release_failed", "sessions", len(routed), "error", err)
		}
		cancel()
	}
	for _, s := range sessions {
		s.CloseAnswered(session.CodeDraining, drainingText, p.Answers)
	}
}

const drainingText = "server draining"
