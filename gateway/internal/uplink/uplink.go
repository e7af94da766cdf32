// Package uplink is a gateway's link to the routers: its lease, its clients'
// messages on the way in, and what becomes of closed sessions.
package uplink

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mics-im/mics/gateway/internal/session"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

const (
	// resolveEvery is how often dns:// names are looked up again.
	resolveEvery = 5 * time.Second
	// checkEvery is how late fencing and expiry may be.
	checkEvery = 100 * time.Millisecond
	// unseenTimeout is when a message that went to nobody is answered FAILED.
	unseenTimeout = 10 * time.Second
	// Bounds of unanswered messages of the whole gateway.
	maxUnanswered      = 1 << 20
	maxUnansweredBytes = 512 << 20
)

// ackBounds are in milliseconds.
var ackBounds = []float64{0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000}

// Options are what an Uplink needs. All but the callbacks and Lookup are
// required.
type Options struct {
	// Info is how the gateway introduces itself now. It must not block.
	Info func() *gatewayv1.GatewayInfo
	// Sessions is how many sessions there are.
	Sessions func() uint64
	// Endpoints is ROUTER_ENDPOINTS, Scheme (http or https) that of routers behind
	// a name.
	Endpoints []rpc.Endpoint
	Scheme    string
	// HTTP carries the RPC; it is the caller's to close, after Stop.
	HTTP      *http.Client
	Telemetry *telemetry.Telemetry
	// Lookup resolves a host name; nil means the system's resolver.
	Lookup rpc.Lookup

	// OnFenced says that no router holds the lease any more; OnUnfenced that one
	// does again; OnSuperseded, once, that a newer incarnation of the node is
	// known. They come from one goroutine and must not block.
	OnFenced, OnUnfenced, OnSuperseded func()
	// OnRouters says that Living has changed. It is called with locks held: it
	// must not block nor call back.
	OnRouters func()
}

// Uplink implements session.Uplink. Safe for concurrent use.
type Uplink struct {
	opts   Options
	log    *slog.Logger
	outbox *outbox
	closer *closer

	overflow, expired, refused, retries, fences *telemetry.Counter
	breaks                                      *telemetry.CounterVec
	acks                                        *telemetry.Buckets

	wg       sync.WaitGroup
	ctx      context.Context // of everything that runs; ends in Stop
	cancel   context.CancelFunc
	stopping chan struct{} // closed when Stop begins
	kick     chan struct{} // room for one token: the keeper should look

	turn atomic.Uint64 // of OpenSession, among the routers

	mu         sync.Mutex // before the locks of outbox and closer
	started    bool
	stopped    bool
	seeds      map[string]bool // base URLs of Endpoints
	links      map[string]*link
	members    []member // the cluster's routers, as last heard
	homes      []member // those of them that are anybody's home
	lease      lease
	leaseFor   time.Duration
	superseded bool
}

var _ session.Uplink = (*Uplink)(nil)

// New returns an Uplink; nothing runs until Start.
func New(o Options) *Uplink {
	if o.Lookup == nil {
		o.Lookup = net.DefaultResolver.LookupHost
	}
	for _, f := range []*func(){&o.OnFenced, &o.OnUnfenced, &o.OnSuperseded, &o.OnRouters} {
		if *f == nil {
			*f = func() {}
		}
	}
	t := o.Telemetry
	u := &Uplink{
		opts: o, log: t.Log, outbox: newOutbox(maxUnanswered, maxUnansweredBytes), closer: newCloser(),
		overflow: t.Counter("mics_uplink_overflow_total", "Messages refused because too many were unanswered."),
		expired:  t.Counter("mics_uplink_expired_total", "Messages failed because no router could be reached."),
		refused:  t.Counter("mics_uplink_handback_refused_total", "Closed sessions that a router called invalid."),
		retries:  t.Counter("mics_uplink_open_retries_total", "OpenSession calls tried again at another router."),
		fences:   t.Counter("mics_uplink_fenced_total", "Times the gateway fenced itself."),
		breaks:   t.CounterVec("mics_uplink_stream_breaks_total", "Broken streams to routers.", "stream"),
		stopping: make(chan struct{}), kick: make(chan struct{}, 1),
		seeds: map[string]bool{}, links: map[string]*link{}, leaseFor: defaultLease,
	}
	for _, s := range []string{"register", "publish"} {
		u.breaks.With(s)
	}
	u.acks = t.Buckets("mics_message_ack_ms", "From a client message's arrival to its answer by a router.", ackBounds...)
	u.outbox.repeats = t.Counter("mics_uplink_repeats_total", "Messages that their client sent again while they had no outcome.")
	u.outbox.resent = t.Counter("mics_uplink_resent_total", "Messages sent again because a stream broke.")
	t.Gauge("mics_uplink_unanswered", "Messages without an outcome.", func() int64 { return int64(u.outbox.len()) })
	t.Gauge("mics_uplink_routers_linked", "Routers that hold this gateway's lease.", func() int64 { return int64(u.Linked()) })
	t.Gauge("mics_uplink_finals_waiting", "Ended sessions that no router has taken yet.", func() int64 { return int64(u.closer.waiting()) })
	u.ctx, u.cancel = context.WithCancel(context.Background())
	return u
}

// Start links to the routers in the background. Call it once.
func (u *Uplink) Start() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.started || u.stopped {
		return
	}
	u.started = true
	u.wg.Go(u.keep)
	u.wg.Go(u.resolve)
}

// Flush waits until a router has taken every Final so far.
func (u *Uplink) Flush(ctx context.Context) error {
	if err := u.closer.wait(ctx); err != nil {
		return fmt.Errorf("%d ended sessions not handed to a router: %w", u.closer.waiting(), err)
	}
	return nil
}

// Stop tells the routers what Info says now, once more, and ends everything. What
// no router has seen is answered FAILED; what one may have seen stays without an
// outcome. Its error says that ctx ended first.
func (u *Uplink) Stop(ctx context.Context) error {
	u.mu.Lock()
	first := !u.stopped
	u.stopped = true
	u.mu.Unlock()
	if first {
		close(u.stopping)
	}
	err := u.awaitLast(ctx)
	u.cancel()
	u.wg.Wait()
	u.outbox.close()
	u.fail(0)
	return err
}

// awaitLast waits for the end of all Register streams.
func (u *Uplink) awaitLast(ctx context.Context) error {
	for u.anyRegistered() {
		select {
		case <-u.kick: // the keeper has ended, or shares what it does not need
		case <-time.After(checkEvery):
		case <-ctx.Done():
			return fmt.Errorf("tell the routers: %w", ctx.Err())
		}
	}
	return nil
}

func (u *Uplink) isStopping() bool {
	select {
	case <-u.stopping:
		return true
	default:
		return false
	}
}

// AckMS is the histogram of the time from a message's arrival to its answer, in
// milliseconds.
func (u *Uplink) AckMS() (bounds []float64, counts []uint64) { return u.acks.Read() }

// Announce makes Info known to the routers at once.
func (u *Uplink) Announce() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, l := range u.links {
		signal(l.announce)
	}
}

// Linked is how many routers of the cluster this gateway has a live lease at.
func (u *Uplink) Linked() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := 0
	for _, m := range u.homes {
		if l := u.links[m.url]; l != nil && l.registered {
			n++
		}
	}
	return n
}

// HasLease reports whether a router holds this gateway's lease, as far as is
// known.
func (u *Uplink) HasLease() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return !u.superseded && u.lease.held(time.Now())
}

// keep looks after what depends on the clock.
func (u *Uplink) keep() {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	told := false
	for {
		u.mu.Lock()
		change := u.lease.check(time.Now())
		superseded := u.superseded && !told
		u.refresh()
		u.mu.Unlock()
		switch change {
		case fencedNow:
			u.fences.Inc()
			u.log.Error("fenced", "reason", "no router has renewed the lease")
			u.opts.OnFenced()
		case unfencedNow:
			u.log.Info("unfenced")
			u.opts.OnUnfenced()
		}
		if superseded {
			told = true
			u.log.Error("superseded", "reason", "a newer incarnation of this node is known")
			u.opts.OnSuperseded()
		}
		u.fail(unseenTimeout)
		select {
		case <-tick.C:
		case <-u.kick:
		case <-u.stopping:
			return
		}
	}
}

// resolve keeps the seeds.
func (u *Uplink) resolve() {
	known := make([][]string, len(u.opts.Endpoints))
	for {
		seeds := map[string]bool{}
		for i, e := range u.opts.Endpoints {
			ctx, cancel := context.WithTimeout(u.ctx, resolveEvery)
			urls, err := e.Resolve(ctx, u.opts.Scheme, u.opts.Lookup)
			cancel()
			if err == nil {
				known[i] = urls
			} else if u.ctx.Err() == nil {
				u.log.Warn("router_lookup_failed", "error", err)
			}
			for _, s := range known[i] {
				seeds[s] = true
			}
		}
		u.mu.Lock()
		u.seeds = seeds
		u.refresh()
		u.mu.Unlock()
		t := time.NewTimer(resolveEvery)
		select {
		case <-t.C:
		case <-u.stopping:
			t.Stop()
			return
		}
	}
}
