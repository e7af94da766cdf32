package uplink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/gateway/internal/routertest"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/frame"
	"github.com/mics-im/mics/internal/ring"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"google.golang.org/protobuf/proto"
)

const tenant = "t"

// world is routers and one gateway's uplink in memory and in fake time.
type world struct {
	t       *testing.T
	net     *routertest.Network
	cluster *routertest.Cluster
	http    *http.Client
	u       *Uplink
	phase   atomic.Int32
	fenced  atomic.Int32
	freed   atomic.Int32
	over    atomic.Int32

	mu    sync.Mutex
	acks  []*messagev1.MessageAck // in the order of their arrival
	count map[string]int
}

// run runs f with an uplink that has the endpoints, in a synctest bubble.
func run(t *testing.T, endpoints []string, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := routertest.NewNetwork()
		w := &world{t: t, net: n, cluster: &routertest.Cluster{}, http: n.Client(), count: map[string]int{}}
		w.phase.Store(int32(gatewayv1.Phase_PHASE_SERVING))
		tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: io.Discard})
		if err != nil {
			t.Fatal(err)
		}
		seeds, err := rpc.ParseEndpoints(endpoints)
		if err != nil {
			t.Fatal(err)
		}
		w.u = New(Options{
			Info: func() *gatewayv1.GatewayInfo {
				return &gatewayv1.GatewayInfo{NodeId: "g1", Incarnation: 7, Phase: gatewayv1.Phase(w.phase.Load())}
			},
			Sessions: func() uint64 { return 3 }, Endpoints: seeds, Scheme: "http", HTTP: w.http, Telemetry: tel,
			Lookup:   func(context.Context, string) ([]string, error) { return nil, errors.New("no names here") },
			OnFenced: func() { w.fenced.Add(1) }, OnUnfenced: func() { w.freed.Add(1) }, OnSuperseded: func() { w.over.Add(1) },
		})
		defer func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_ = w.u.Stop(ctx)
			w.http.CloseIdleConnections()
		}()
		f(w)
	})
}

func base(id string) string { return "http://" + id + ":1" }

// router starts a router.
func (w *world) router(id string, f ...func(*routertest.Router)) *routertest.Router {
	r := routertest.New(w.cluster, id, w.net.Listen(id+":1"), base(id))
	for _, set := range f {
		set(r)
	}
	r.Start(w.t)
	return r
}

// pass lets time pass.
func (w *world) pass(d time.Duration) {
	time.Sleep(d) // fake time
	synctest.Wait()
}

func (w *world) publish(session uint64, user, msgID string) {
	b, err := proto.Marshal(&messagev1.MessageRequest{TenantId: tenant, UserId: user, MsgId: msgID})
	if err != nil {
		w.t.Fatal(err)
	}
	w.u.publish(outgoing{session: session, tenant: tenant, user: user, version: 1, msgID: msgID, message: b, done: func(ack []byte) {
		m := &messagev1.MessageAck{}
		if err := proto.Unmarshal(ack, m); err != nil {
			w.t.Error(err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.acks = append(w.acks, m)
		w.count[m.GetMsgId()]++
	}})
}

// answered returns msg ids in the order of their outcomes, with a ! if FAILED.
func (w *world) answered() (ids []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.acks {
		id := a.GetMsgId()
		if a.GetStatus() == messagev1.AckStatus_FAILED {
			id += "!"
		}
		ids = append(ids, id)
	}
	return ids
}

// got returns the msg ids that a router has got, with a ? for possible repeats.
func got(r *routertest.Router) (ids []string) {
	for _, in := range r.Received() {
		h, _ := frame.ParseMessage(in.GetMessage())
		id := h.MsgID
		if in.GetPossibleRepeat() {
			id += "?"
		}
		ids = append(ids, id)
	}
	return ids
}

func (w *world) want(what string, got []string, want ...string) {
	w.t.Helper()
	if !slices.Equal(got, want) {
		w.t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

func hold(r *routertest.Router) { r.Answer = func(*routerv1.Inbound) []byte { return nil } }

// userOf returns a user whose home among the names is the first.
func userOf(names ...string) string {
	for i := 0; ; i++ {
		if u := fmt.Sprint("user", i); names[ring.Pick(names, tenant, u)] == names[0] {
			return u
		}
	}
}

func TestLinksToEveryRouterOfTheCluster(t *testing.T) {
	run(t, []string{base("a"), base("seed")}, func(w *world) {
		a, b := w.router("a"), w.router("b")
		w.cluster.Set(a, b)
		w.u.Start()
		w.pass(time.Second)
		for _, r := range []*routertest.Router{a, b} {
			if reg, pub := r.Streams(); reg != 1 || pub != 1 {
				t.Errorf("%s: %d register and %d publish streams", r.Info.GetNodeId(), reg, pub)
			}
		}
		if n := w.u.Linked(); n != 2 || !w.u.HasLease() {
			t.Errorf("linked to %d, lease %v", n, w.u.HasLease())
		}
		w.phase.Store(int32(gatewayv1.Phase_PHASE_DRAINING))
		w.u.Announce()
		synctest.Wait() // at once: no time passes
		for _, r := range []*routertest.Router{a, b} {
			g := r.Gateways()
			if p := g[len(g)-1].GetPhase(); p != gatewayv1.Phase_PHASE_DRAINING {
				t.Errorf("%s knows %v", r.Info.GetNodeId(), p)
			}
		}
		// b goes: out of the directory first, then its process.
		w.cluster.Set(a)
		w.pass(2 * time.Second)
		if reg, pub := b.Streams(); reg != 1 || pub != 0 {
			t.Errorf("a router that leaves: %d register and %d publish streams", reg, pub)
		}
		b.Kill()
		w.pass(2 * time.Second)
		w.u.mu.Lock()
		defer w.u.mu.Unlock()
		if len(w.u.links) != 2 || w.u.links[base("b")] != nil {
			t.Errorf("links %v", w.u.links)
		}
	})
}

func TestLeaseIsGivenBack(t *testing.T) {
	run(t, []string{base("a")}, func(w *world) {
		a := w.router("a")
		w.cluster.Set(a)
		w.u.Start()
		w.pass(time.Second)
		w.phase.Store(int32(gatewayv1.Phase_PHASE_DRAINED))
		if err := w.u.Stop(w.t.Context()); err != nil {
			t.Fatal(err)
		}
		g := a.Gateways()
		if p := g[len(g)-1].GetPhase(); p != gatewayv1.Phase_PHASE_DRAINED {
			t.Errorf("the last word was %v", p)
		}
	})
}

func TestResendAfterABrokenStream(t *testing.T) {
	run(t, []string{base("a")}, func(w *world) {
		a := w.router("a", hold)
		w.cluster.Set(a)
		w.u.Start()
		w.pass(time.Second)
		w.publish(1, "u", "1")
		w.publish(1, "u", "2")
		w.pass(0)
		a.BreakPublish()
		w.pass(0)
		w.publish(1, "u", "3")
		w.pass(time.Second)
		w.want("the router", got(a), "1", "2", "1?", "2?", "3")
		a.Release()
		w.pass(0)
		w.want("outcomes", w.answered(), "1", "2", "3")
	})
}

func TestRouterDiesAndTheMessagesMove(t *testing.T) {
	run(t, []string{base("a"), base("b")}, func(w *world) {
		a, b := w.router("a", hold), w.router("b")
		w.cluster.Set(a, b)
		w.u.Start()
		w.pass(time.Second)
		u := userOf("a", "b")
		w.publish(1, u, "1")
		w.pass(0)
		a.Kill()
		w.pass(0)
		w.publish(1, u, "2")
		w.pass(time.Second)
		w.want("b while a is in the directory", got(b))
		w.cluster.Set(b)
		w.pass(2 * time.Second)
		w.want("b", got(b), "1?", "2")
		w.want("outcomes", w.answered(), "1", "2")
	})
}

// A router that nobody takes out of the directory (Redis is gone, say) must not
// hold its users' messages for ever.
func TestDeadRouterThatStaysInTheDirectory(t *testing.T) {
	run(t, []string{base("a"), base("b")}, func(w *world) {
		a, b := w.router("a"), w.router("b")
		w.cluster.Set(a, b)
		w.u.Start()
		w.pass(time.Second)
		a.Kill()
		w.publish(1, userOf("a", "b"), "1")
		w.pass(time.Second)
		w.want("b at first", got(b))
		w.pass(4 * time.Second)
		if ids := got(b); len(ids) != 1 {
			t.Fatalf("b got %v", ids)
		}
		w.want("outcomes", w.answered(), "1")
	})
}

func TestHomeMovesWhileTheOldOneLives(t *testing.T) {
	run(t, []string{base("b")}, func(w *world) {
		a, b := w.router("a"), w.router("b", hold)
		w.cluster.Set(b)
		w.u.Start()
		w.pass(time.Second)
		u := userOf("a", "b")
		w.publish(1, u, "1")
		w.publish(1, u, "2")
		w.pass(0)
		w.cluster.Set(a, b) // a comes: it is u's home from now on
		w.pass(2 * time.Second)
		w.publish(1, u, "3")
		w.publish(1, u, "2") // again, impatiently: only the old home knows it
		w.publish(2, u, "x") // another session has nothing to wait for
		w.pass(time.Second)
		w.want("the new home", got(a), "x")
		b.Release()
		w.pass(0)
		w.want("the new home", got(a), "x", "3")
		w.want("the old home", got(b), "1", "2")
		ids := w.answered()
		slices.Sort(ids) // outcomes may overtake each other
		w.want("outcomes", ids, "1", "2", "2", "3", "x")
	})
}

func TestNoRouter(t *testing.T) {
	run(t, []string{base("a")}, func(w *world) {
		w.u.Start()
		w.publish(1, "u", "1")
		w.pass(8 * time.Second)
		w.publish(1, "u", "2")
		w.pass(3 * time.Second)
		w.want("outcomes without a router", w.answered(), "1!")
		if _, unsure, err := w.u.OpenSession(w.t.Context(), &routerv1.OpenSessionRequest{}, 0); !errors.Is(err, errNotLinked) || unsure {
			t.Errorf("OpenSession: %v, unsure %v", err, unsure)
		}
		if w.fenced.Load() != 0 || w.u.HasLease() {
			t.Error("a gateway that never had a lease is not fenced, and has none")
		}
		a := w.router("a")
		w.cluster.Set(a)
		w.pass(2 * time.Second)
		w.want("the router", got(a), "2")
	})
}

func TestFencing(t *testing.T) {
	run(t, []string{base("a")}, func(w *world) {
		a := w.router("a")
		w.cluster.Set(a)
		w.u.Start()
		w.pass(time.Second)
		a.Do(func(r *routertest.Router) { r.Mute = true })
		w.pass(1900 * time.Millisecond)
		if w.fenced.Load() != 0 {
			t.Fatal("fenced within its lease")
		}
		w.pass(1300 * time.Millisecond)
		if w.fenced.Load() != 1 || w.u.HasLease() {
			t.Fatal("not fenced after its lease")
		}
		if err := w.u.release(w.t.Context(), []*routerv1.ClosedSession{{SessionId: 1}}); !errors.Is(err, errFenced) {
			t.Errorf("Release: %v", err)
		}
		a.Do(func(r *routertest.Router) { r.Mute = false })
		w.pass(5 * time.Second)
		if w.freed.Load() != 1 || w.fenced.Load() != 1 || !w.u.HasLease() {
			t.Fatal("still fenced")
		}
	})
}

func TestSuperseded(t *testing.T) {
	run(t, []string{base("a")}, func(w *world) {
		a := w.router("a")
		w.cluster.Set(a)
		w.u.Start()
		w.pass(time.Second)
		a.Do(func(r *routertest.Router) {
			r.RegisterErr = fault.New(fault.FailedPrecondition, "a newer incarnation is known")
		})
		w.pass(5 * time.Second)
		if w.over.Load() != 1 || w.u.HasLease() {
			t.Fatalf("told %d times, lease %v", w.over.Load(), w.u.HasLease())
		}
		if reg, _ := a.Streams(); reg != 0 {
			t.Error("it registers again")
		}
		// What its sessions had must still get home.
		taken := false
		w.u.Final(&routerv1.ClosedSession{SessionId: 1, TenantId: tenant, UserId: "u"}, func() { taken = true })
		w.pass(time.Second)
		if !taken {
			t.Error("final not taken")
		}
	})
}
