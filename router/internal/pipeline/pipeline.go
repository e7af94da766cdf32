// Package pipeline is the life of a message from a gateway's stream to its ack:
//
//	validate → deduplicate → rate-limit → check hook ∥ resolve routes →
//	dispatch → (offline buffer) → event → ack
//
// Hooks of several messages of one connection overlap; they are dispatched in
// the connection's order (lanes.go). Every message is answered exactly once.
package pipeline

import (
	"context"
	"sync"
	"time"

	"github.com/mics-im/mics/internal/frame"
	"github.com/mics-im/mics/internal/telemetry"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/dedup"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/peer"
	"github.com/mics-im/mics/router/internal/route"
	"github.com/mics-im/mics/router/internal/signals"
	"github.com/mics-im/mics/router/internal/stats"
	"github.com/mics-im/mics/router/internal/tenant"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
)

const (
	// window is how long a message that was SENT is remembered, windowV1 the same
	// for V1 clients, which number their messages anew in every instance
	// (CONTRACT section 1.2).
	window   = 10 * time.Minute
	windowV1 = time.Minute
	// repeatPatience is how long a repeat keeps its place in its connection's
	// order while it waits for the first one's outcome, which may be waiting for a
	// gateway that died.
	repeatPatience = time.Second
)

// Hooks are the tenants' hooks that a message needs.
type Hooks interface {
	Check(ctx context.Context, t *tenant.Tenant, m *messagev1.MessageRequest) (*hookv1.CheckMessageResponse, error)
	Members(ctx context.Context, t *tenant.Tenant, group string) ([]string, error)
}

// Routes resolve recipients, possibly from a cache.
type Routes interface {
	Lookup(ctx context.Context, keys []route.UserKey) ([][]route.Record, error)
}

// Dispatcher brings messages to devices.
type Dispatcher interface {
	Send(dispatch.Job)
}

// Limiter holds the message rates.
type Limiter interface {
	AllowMessage(t *tenant.Tenant, user string) (ok bool, kind string, limit int)
}

// Limits bound a message and what is done at once.
type Limits struct {
	MaxMessageBytes int // of a body
	GroupChunk      int // users of one route look-up
	GroupMaxUsers   int
	// GroupMaxBuffered bounds the absent members of one message that get a
	// buffer entry; at least 1.
	GroupMaxBuffered int
	// TenantMaxInFlight bounds a tenant's messages under way.
	TenantMaxInFlight int
}

// Options configure a Pipeline; all are required.
type Options struct {
	// Tenant returns a tenant that operators configured.
	Tenant     func(name string) (*tenant.Tenant, bool)
	Hooks      Hooks
	Routes     Routes
	Dispatcher Dispatcher
	// Absent is the buffer that the dispatcher was made with.
	Absent *Absent
	// Dedup remembers what was answered SENT, here and, by way of other routers,
	// elsewhere.
	Dedup   *dedup.Table[[]byte]
	Limiter Limiter
	Events  Events
	Limits  Limits
	Stats   *stats.Stats
	Signals *signals.Table // nil: not counted
	Tracer  trace.Tracer
}

// Pipeline is safe for concurrent use.
type Pipeline struct {
	opts    Options
	metrics metrics
	dedup   *dedup.Table[[]byte]
	lanes   *lanes
	storing *lanes   // of messages that wait for their event (events.go)
	tenants sync.Map // *tenant.Tenant → *share

	ctx    context.Context // of hooks and look-ups; ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// New returns a pipeline; Close ends it.
func New(opts Options) *Pipeline {
	p := &Pipeline{opts: opts, metrics: newMetrics(opts.Stats)}
	p.dedup = opts.Dedup
	p.lanes = newLanes(p.dispatch)
	p.storing = newLanes(p.stored)
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Close gives up hooks and look-ups and waits for them. No Intake may be used
// any more.
func (p *Pipeline) Close() {
	p.cancel()
	p.wg.Wait()
}

// message is one message under way. Before it enters its lane it is owned by
// its intake, then by the goroutine that prepares it, then by whoever takes it
// out of the lane.
type message struct {
	in      *Intake
	ref     uint64
	session uint64
	bytes   []byte
	window  time.Duration
	header  frame.Header
	tenant  *tenant.Tenant
	share   *share // nil: not counted as under way
	key     dedup.Key
	ctx     context.Context // the pipeline's, or with the message's span
	span    trace.Span      // nil: not traced

	repeat bool // of a message under way, whose outcome it waits for
	ready  bool // guarded by its lane's shard

	failure     string // why it will not be dispatched
	unmoderated bool
	recipients  []dispatch.Recipient
	one         [1]dispatch.Recipient // room for a single chat's
	invalid     int                   // members that cannot be users
	pull        *pull                 // nil: absent users are buffered
	required    bool                  // SENT waits for the broker
}

func (m *message) group() bool { return m.header.Type == messagev1.MessageType_GROUP_CHAT }

// Intake is one gateway stream's way in. It is for one goroutine.
type Intake struct {
	p       *Pipeline
	gateway route.NodeRef
	signals *signals.Gateway
	answer  func(ref uint64, ack []byte)
	direct  []*message // begun, to be dispatched by the next flush
	keys    []route.UserKey
}

// Intake returns the way in for one gateway's stream. answer is called exactly
// once for each message that Publish takes, from any goroutine; it must not
// block. ack is a serialized MessageAck.
func (p *Pipeline) Intake(gateway route.NodeRef, answer func(ref uint64, ack []byte)) *Intake {
	return &Intake{p: p, gateway: gateway, signals: p.opts.Signals.Of(gateway), answer: answer}
}

// Publish takes a batch. It never waits for a tenant: a message that needs a
// hook goes on in a goroutine of its own, bounded by TenantMaxInFlight. The
// others are dispatched before it returns, with one route look-up for all.
func (in *Intake) Publish(batch []*routerv1.Inbound) {
	for _, i := range batch {
		m := in.p.begin(in, i)
		switch {
		case m == nil: // answered
		case m.repeat:
			in.flush()
			in.p.lanes.enter(m)
			time.AfterFunc(repeatPatience, func() {
				if in.p.ctx.Err() == nil {
					in.p.lanes.ready(m)
				}
			})
		case m.group() || m.tenant.CheckEnabled() || !in.p.lanes.idle(m.lane()):
			in.flush()
			in.p.lanes.enter(m)
			in.p.wg.Go(func() {
				in.p.prepare(m)
				in.p.lanes.ready(m)
			})
		default:
			in.direct = append(in.direct, m)
		}
	}
	in.flush()
}

// flush resolves and dispatches the messages that need no hook.
func (in *Intake) flush() {
	if len(in.direct) == 0 {
		return
	}
	for _, m := range in.direct {
		in.keys = append(in.keys, m.recipient())
	}
	found, err := in.p.opts.Routes.Lookup(in.p.ctx, in.keys)
	for i, m := range in.direct {
		if err != nil {
			m.failure = reasonInternal
		} else {
			m.to(found[i])
		}
		in.p.dispatch(m)
	}
	clear(in.direct)
	clear(in.keys)
	in.direct, in.keys = in.direct[:0], in.keys[:0]
}

// begin validates, deduplicates and limits. It returns nil when the message has
// been answered.
func (p *Pipeline) begin(in *Intake, i *routerv1.Inbound) *message {
	m := &message{in: in, ref: i.Ref, session: i.SessionId, bytes: i.Message, window: window, ctx: p.ctx}
	in.signals.Message()
	if i.Version < 2 {
		m.window = windowV1
	}
	if reason := p.validate(m); reason != "" {
		p.metrics.rejected(reason)
		in.answer(m.ref, ackFailed(m, reason))
		return nil
	}
	m.key = frame.Key(m.header)
	switch p.dedup.Begin(m.key, func(ack []byte) { p.repeated(m, ack) }) {
	case dedup.Sent:
		p.opts.Stats.DedupHits.Inc()
		in.answer(m.ref, ackDuplicate(m))
		return nil
	case dedup.UnderWay:
		p.opts.Stats.DedupHits.Inc()
		m.repeat = true
		return m
	}
	if reason := p.limit(m); reason != "" {
		p.metrics.rejected(reason)
		p.finish(m, ackFailed(m, reason), false)
		return nil
	}
	if i.Traceparent != "" {
		m.ctx, m.span = p.opts.Tracer.Start(telemetry.WithTraceParent(p.ctx, i.Traceparent), "route message")
	}
	return m
}

// limit takes the message's place under its tenant's limits, before any outcome
// is recorded, so that what is refused can be sent again.
func (p *Pipeline) limit(m *message) (reason string) {
	s, most := p.share(m.tenant), p.opts.Limits.TenantMaxInFlight
	if n := s.inFlight.Add(1); n > int64(most) {
		s.inFlight.Add(-1)
		p.opts.Stats.Limited(m.tenant.Name(), stats.KindInFlight, most, int(n)-1)
		m.in.signals.Limited()
		return reasonOverloaded
	}
	if ok, kind, limit := p.opts.Limiter.AllowMessage(m.tenant, m.header.User); !ok {
		s.inFlight.Add(-1)
		p.opts.Stats.Limited(m.tenant.Name(), kind, limit, limit)
		m.in.signals.Limited()
		return reasonRate
	}
	m.share = s
	return ""
}

// prepare asks the hooks and resolves the recipients, both at once.
func (p *Pipeline) prepare(m *message) {
	var denied string
	var checking sync.WaitGroup
	if m.tenant.CheckEnabled() {
		checking.Go(func() { denied = p.check(m) })
	}
	failure := p.resolve(m)
	checking.Wait()
	// A denial says more than what would have failed anyway.
	if m.failure = failure; denied != "" {
		m.failure = denied
		p.metrics.rejected(reasonDenied)
	} else if failure != "" && failure != reasonInternal {
		p.metrics.rejected(failure)
	}
}

// check asks the tenant whether the message may pass. A hook that cannot say
// lets it pass, marked; a denial is never degraded (CONTRACT section 2).
func (p *Pipeline) check(m *message) (denied string) {
	req := &messagev1.MessageRequest{}
	err := proto.Unmarshal(m.bytes, req)
	var res *hookv1.CheckMessageResponse
	if err == nil {
		res, err = p.opts.Hooks.Check(m.ctx, m.tenant, req)
		m.in.signals.Hook(err)
	}
	switch {
	case err != nil:
		p.metrics.degraded.Inc()
		m.unmoderated = true
		return ""
	case !res.Allow:
		p.metrics.deny.Inc()
		return denial(res.Reason)
	default:
		p.metrics.allow.Inc()
		return ""
	}
}

// resolve finds the recipients and their routes.
func (p *Pipeline) resolve(m *message) (failure string) {
	if !m.group() {
		found, err := p.opts.Routes.Lookup(m.ctx, []route.UserKey{m.recipient()})
		if err != nil {
			return reasonInternal
		}
		m.to(found[0])
		return ""
	}
	return p.resolveGroup(m)
}

// dispatch sends a message on its way in its connection's order; that of a
// repeat is the way of the first one.
func (p *Pipeline) dispatch(m *message) {
	if m.repeat {
		return
	}
	if m.failure != "" {
		if m.failure == reasonInternal {
			p.opts.Stats.Failed.Inc()
		}
		p.finish(m, ackFailed(m, m.failure), false)
		return
	}
	if m.tenant.EventsRequired() || !p.storing.idle(m.lane()) {
		p.store(m)
		return
	}
	p.send(m)
}

// send gives a message to the dispatcher.
func (p *Pipeline) send(m *message) {
	if m.failure != "" { // its event was not stored
		p.opts.Stats.Failed.Inc()
		p.finish(m, ackFailed(m, m.failure), false)
		return
	}
	job := dispatch.Job{
		Message: &dispatch.Message{
			Bytes: m.bytes, Unmoderated: m.unmoderated, Key: m.key, TraceParent: telemetry.TraceParent(m.ctx), At: time.Now().UnixNano(),
		},
		Recipients: m.recipients,
	}
	if m.group() {
		p.countGroup(m)
		job.MaxBuffered = p.opts.Limits.GroupMaxBuffered
	}
	if m.tenant.OfflineHookPull() {
		m.pull = p.opts.Absent.begin(job.Message)
		job.MaxBuffered = 0 // nothing is kept here
	}
	job.Done = func(r dispatch.Result) { p.conclude(m, job.Message, r) }
	p.opts.Dispatcher.Send(job)
}

// conclude takes the result of a dispatch: the message is as far as it gets.
func (p *Pipeline) conclude(m *message, sent *dispatch.Message, r dispatch.Result) {
	o := outcome{Result: r}
	o.Skipped += m.invalid
	if m.pull == nil {
		p.end(m, o)
		return
	}
	absent := p.opts.Absent.end(sent, m.pull)
	// The message's own event goes before those of who has not got it.
	if !m.required && (r.Delivered > 0 || len(absent) > 0) {
		p.tell(m)
	}
	p.notify(m, absent, func(notified int) {
		// Of a user one device may have it and another one be absent.
		o.notified = max(0, min(len(absent), r.Skipped)-(len(absent)-notified))
		o.Skipped -= o.notified
		p.end(m, o)
	})
}

// end counts and answers.
func (p *Pipeline) end(m *message, o outcome) {
	p.countOutcome(m, o)
	if o.served() == 0 {
		p.opts.Stats.Failed.Inc()
		p.finish(m, ackFailed(m, reasonUndelivered), false)
		return
	}
	if m.pull == nil && !m.required {
		p.tell(m)
	}
	p.finish(m, ackSent(m, o), true)
}

// finish records the outcome, answers, and lets repeats have it too.
func (p *Pipeline) finish(m *message, ack []byte, sent bool) {
	if m.share != nil {
		p.leave(m)
	}
	if m.span != nil {
		m.span.End()
	}
	m.in.answer(m.ref, ack)
	record := dedup.Record{Key: m.key, User: peer.UserHash(m.header.Tenant, m.header.User), Window: m.window}
	p.dedup.FinishOf(record, sent, ack)
}

// repeated answers a repeat with the outcome of the first one.
func (p *Pipeline) repeated(m *message, ack []byte) {
	m.in.answer(m.ref, ack)
	p.lanes.ready(m)
}
