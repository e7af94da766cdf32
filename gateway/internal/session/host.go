package session

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/internal/telemetry"
)

const (
	defaultMessageBytes = 1 << 20
	defaultQueueFrames  = 1024
	defaultQueueBytes   = 4 << 20
	defaultHeartbeat    = 30 * time.Second
	// frameSlack is what a frame may have besides the largest body and still be
	// parsed, so that its message can be answered.
	frameSlack = 64 << 10
	// discardAtLeast is how large a frame may be and only cost an error.
	discardAtLeast = 16 << 20
	// writeTimeout: a peer that takes nothing for so long is dead.
	writeTimeout = 10 * time.Second
	// flushTimeout is for what is queued before a close frame, closeTimeout for
	// the peer's answer to it, lingerTimeout for its kernel's when there will be
	// no answer.
	flushTimeout  = 5 * time.Second
	closeTimeout  = 2 * time.Second
	lingerTimeout = time.Second
	// freezeTimeout is how long a Handover waits for what has just been written
	// to be acknowledged: otherwise the device would get it a second time. A
	// takeover of a dead socket waits in vain.
	freezeTimeout = 250 * time.Millisecond
	// holdTimeout is how long the socket of a session that has been resumed elsewhere
	// is kept: for the ConnectAck there to reach the client first.
	holdTimeout = time.Second
	// openingTimeout is how long a Handover waits for an OpenSession under way.
	openingTimeout = 500 * time.Millisecond
)

// Owner keeps the table of sessions. Its methods are called with the session
// locked and must not call back into it.
type Owner interface {
	// Opened says whose session it is.
	Opened(*Session, Identity)
	// Watch asks for Sweep until it returns false.
	Watch(*Session)
	// Gone says that nothing is left to do for the session; took, that it had
	// taken deliveries. From now on it only recognises their resends.
	Gone(s *Session, id Identity, took bool)
}

// Host is what the sessions of one gateway share.
type Host struct {
	cfg     Config
	owner   Owner
	log     *slog.Logger
	metrics metrics
	limits  ws.Limits
	// start is the zero of the clock; times are nanoseconds since.
	start time.Time
	// floodGap is the long-run distance of frames; 0: no limit.
	floodGap  int64
	floodLine atomic.Int64 // when rate_limited was logged last

	mu      sync.Mutex
	tenants map[tenant]*tenant    // guarded by mu; grows with admitted tenants only
	routers map[RouterRef]*Router // guarded by mu
}

// tenant is what the connections of one tenant share.
type tenant struct {
	name      string
	heartbeat time.Duration
}

type metrics struct {
	open, idle, handback                          atomic.Int64
	connected, disconnected, heartbeats, overflow *telemetry.Counter
	rejected, messages, deliveries, limited       *telemetry.CounterVec
	live, backlog, repeats, single, group, other  *telemetry.Counter
	flood, resumed, expired, abnormal             *telemetry.Counter
}

// Totals count from the process's start.
type Totals struct {
	Connects, Disconnects, MessagesIn, Deliveries, HeartbeatTimeouts uint64
	// AbnormalCloses are sockets that ended without a close frame of either side,
	// Resumes sessions that went on here.
	AbnormalCloses, Resumes uint64
}

// NewHost registers the metrics.
func NewHost(cfg Config, owner Owner) *Host {
	setDefault(&cfg.MaxMessageBytes, defaultMessageBytes)
	setDefault(&cfg.QueueFrames, defaultQueueFrames)
	setDefault(&cfg.QueueBytes, defaultQueueBytes)
	t := cfg.Telemetry
	h := &Host{
		cfg: cfg, owner: owner, log: t.Log, start: time.Now().Add(-time.Second), // no time is zero
		limits: ws.Limits{
			Message: cfg.MaxMessageBytes + frameSlack,
			Discard: max(discardAtLeast, 4*cfg.MaxMessageBytes) + frameSlack,
		},
		tenants: map[tenant]*tenant{}, routers: map[RouterRef]*Router{},
	}
	if cfg.FloodPerSecond > 0 {
		h.floodGap = int64(time.Second) / int64(cfg.FloodPerSecond)
	}
	m := &h.metrics
	t.Gauge("mics_ws_connections", "open connections", m.open.Load)
	t.Gauge("mics_ws_suspended", "V2 sessions without a socket, whose clients may come back for them", m.idle.Load)
	t.Gauge("mics_session_handback_pending", "ended sessions that no router has taken yet", m.handback.Load)
	m.connected = t.Counter("mics_ws_connected_total", "sessions admitted")
	m.disconnected = t.Counter("mics_ws_disconnected_total", "admitted sessions that ended")
	m.abnormal = t.Counter("mics_ws_abnormal_closes_total", "sockets that ended without a close frame of either side")
	m.heartbeats = t.Counter("mics_ws_heartbeat_timeouts_total", "sessions closed for silence")
	m.overflow = t.Counter("mics_ws_queue_overflow_total", "sessions closed because their outbound queue was full")
	m.resumed = t.Counter("mics_ws_resumed_total", "sessions that went on after their socket or their gateway changed")
	m.expired = t.Counter("mics_ws_resume_expired_total", "suspended sessions whose client did not come back in time")
	m.rejected = t.CounterVec("mics_ws_frames_rejected_total", "client frames that were refused", "reason")
	for _, reason := range []rejection{malformed, tooLarge, noPayload, strangeAck} {
		m.rejected.With(string(reason))
	}
	m.messages = t.CounterVec("mics_messages_in_total", "client messages", "type")
	m.single, m.group, m.other = m.messages.With("single_chat"), m.messages.With("group_chat"), m.messages.With(telemetry.OtherValue)
	m.deliveries = t.CounterVec("mics_deliveries_total", "messages taken for a device", "via")
	m.live, m.backlog = m.deliveries.With("live"), m.deliveries.With("backlog")
	m.repeats = t.Counter("mics_delivery_repeats_total", "deliveries that a session had already")
	m.limited = t.CounterVec("mics_rate_limited_total", "what was slowed down or refused for its rate", "kind")
	m.flood = m.limited.With("message_flood")
	return h
}

func setDefault(v *int, def int) {
	if *v == 0 {
		*v = def
	}
}

// Totals since the start.
func (h *Host) Totals() Totals {
	m := &h.metrics
	n := func(c ...*telemetry.Counter) (sum uint64) {
		for _, c := range c {
			sum += uint64(c.Value())
		}
		return sum
	}
	return Totals{
		Connects: n(m.connected), Disconnects: n(m.disconnected), HeartbeatTimeouts: n(m.heartbeats),
		MessagesIn: n(m.single, m.group, m.other), Deliveries: n(m.live, m.backlog),
		AbnormalCloses: n(m.abnormal), Resumes: n(m.resumed),
	}
}

// Suspended counts the sessions without a socket.
func (h *Host) Suspended() int { return int(h.metrics.idle.Load()) }

// now is the time since start.
func (h *Host) now() int64 { return int64(time.Since(h.start)) }

func (h *Host) tenant(name string, heartbeat time.Duration) *tenant {
	if heartbeat <= 0 {
		heartbeat = defaultHeartbeat
	}
	key := tenant{name, heartbeat}
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.tenants[key]
	if t == nil {
		t = &key
		h.tenants[key] = t
	}
	return t
}
