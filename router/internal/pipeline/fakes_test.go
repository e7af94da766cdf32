package pipeline

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/dedup"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/event"
	"github.com/mics-im/mics/router/internal/route"
	"github.com/mics-im/mics/router/internal/stats"
	"github.com/mics-im/mics/router/internal/tenant"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// world is everything around a pipeline. By default every hook allows, everybody
// is online, and a dispatch succeeds at once.
type world struct {
	tb      testing.TB
	tenants *tenant.Registry
	stats   *stats.Stats
	absent  *Absent
	p       *Pipeline
	check   func(*messagev1.MessageRequest) (*hookv1.CheckMessageResponse, error)
	members func(group string) ([]string, error)
	lookup  func(keys []route.UserKey) error
	send    func(dispatch.Job)
	limited func(user string) bool // by the user's rate
	publish func(event.Event) bool // nil: takes every event, and stores it at once
	noKafka bool

	mu      sync.Mutex
	sent    []dispatch.Job                   // guarded by mu
	lookups [][]route.UserKey                // guarded by mu
	acks    map[uint64]*messagev1.MessageAck // guarded by mu
	when    map[uint64]time.Time             // guarded by mu
	events  []event.Event                    // guarded by mu
}

func newWorld(tb testing.TB, edit func(*Limits)) *world {
	tb.Helper()
	w := &world{tb: tb, acks: map[uint64]*messagev1.MessageAck{}, when: map[uint64]time.Time{}}
	auth, _ := json.Marshal(map[string]string{"a": "http://127.0.0.1:1", "b": "http://127.0.0.1:1"})
	var err error
	if w.tenants, err = tenant.New(tenant.Source{AuthMap: string(auth), Settings: tenant.DefaultSettings}); err != nil {
		tb.Fatal(err)
	}
	tel, err := telemetry.New(context.Background(), telemetry.Config{LogWriter: io.Discard})
	if err != nil {
		tb.Fatal(err)
	}
	w.stats = stats.New(tel)
	w.check = func(*messagev1.MessageRequest) (*hookv1.CheckMessageResponse, error) {
		return &hookv1.CheckMessageResponse{Allow: true}, nil
	}
	w.members = func(string) ([]string, error) { return []string{"u1", "u2"}, nil }
	w.send = func(j dispatch.Job) { j.Done(dispatch.Result{Delivered: len(j.Recipients)}) }
	w.absent = NewAbsent(nothing{})
	limits := Limits{MaxMessageBytes: 1000, GroupChunk: 2, GroupMaxUsers: 5, GroupMaxBuffered: 3, TenantMaxInFlight: 100}
	if edit != nil {
		edit(&limits)
	}
	w.p = New(Options{
		Tenant: w.tenants.Get, Hooks: w, Routes: w, Dispatcher: w, Absent: w.absent, Limiter: w, Limits: limits,
		Dedup: dedup.NewTable[[]byte](1<<20, nil), Stats: w.stats, Tracer: tel.Tracer, Events: w,
	})
	return w
}

func (w *world) close() {
	w.p.Close()
	w.absent.Close()
}

// nothing is a buffer that must not be used.
type nothing struct{}

func (nothing) Put(dispatch.BufferEntry) { panic("an entry for the offline buffer") }

func (w *world) Check(ctx context.Context, _ *tenant.Tenant, m *messagev1.MessageRequest) (*hookv1.CheckMessageResponse, error) {
	res, err := w.check(m)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return res, err
}

func (w *world) Members(_ context.Context, _ *tenant.Tenant, group string) ([]string, error) {
	return w.members(group)
}

func (w *world) Lookup(_ context.Context, keys []route.UserKey) ([][]route.Record, error) {
	w.mu.Lock()
	w.lookups = append(w.lookups, slices.Clone(keys))
	w.mu.Unlock()
	if w.lookup != nil {
		if err := w.lookup(keys); err != nil {
			return nil, err
		}
	}
	out := make([][]route.Record, len(keys))
	for i := range keys {
		out[i] = []route.Record{{Device: "d", State: route.Live, Node: route.NodeRef{ID: "g", Incarnation: 1}, Session: 1, Epoch: 1}}
	}
	return out, nil
}

// looked is the users of each look-up so far.
func (w *world) looked() [][]route.UserKey {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.lookups)
}

func (w *world) Send(j dispatch.Job) {
	w.mu.Lock()
	w.sent = append(w.sent, j)
	w.mu.Unlock()
	w.send(j)
}

func (w *world) Enabled() bool { return !w.noKafka }

func (w *world) Publish(_ string, e event.Event) bool {
	if w.noKafka {
		return false
	}
	w.mu.Lock()
	w.events = append(w.events, e)
	w.mu.Unlock()
	if w.publish != nil {
		return w.publish(e)
	}
	if e.Done != nil {
		e.Done(nil)
	}
	return true
}

// happened is the events so far, as "type msg_id to".
func (w *world) happened() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, e := range w.events {
		out = append(out, fmt.Sprint(e.Type, " ", e.MsgID, " ", e.ToUser+e.Group))
	}
	return out
}

func (w *world) AllowMessage(_ *tenant.Tenant, user string) (bool, string, int) {
	if w.limited != nil && w.limited(user) {
		return false, tenant.KindMessageQPS, 10
	}
	return true, "", 0
}

// intake is a connection's gateway stream whose acks the world collects.
func (w *world) intake() *Intake {
	return w.p.Intake(route.NodeRef{ID: "g", Incarnation: 1}, func(ref uint64, raw []byte) {
		ack := &messagev1.MessageAck{}
		if err := proto.Unmarshal(raw, ack); err != nil {
			w.tb.Errorf("ack %x: %v", raw, err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.acks[ref] != nil {
			w.tb.Errorf("message %d is answered twice", ref)
		}
		w.acks[ref], w.when[ref] = ack, time.Now()
	})
}

func (w *world) ack(ref uint64) *messagev1.MessageAck {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.acks[ref]
}

// wants fails unless the message has been answered so.
func (w *world) wants(ref uint64, status messagev1.AckStatus, reason string) {
	w.tb.Helper()
	if a := w.ack(ref); a == nil || a.Status != status || a.Reason != reason {
		w.tb.Errorf("message %d: got %v, want %v %q", ref, a, status, reason)
	}
}

// order is the bodies in the order of their dispatch.
func (w *world) order() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, j := range w.sent {
		m := &messagev1.MessageRequest{}
		if err := proto.Unmarshal(j.Message.Bytes, m); err != nil {
			w.tb.Error(err)
		}
		out = append(out, string(m.MsgBody))
	}
	return out
}

// config says what tenant a's /auth said.
func (w *world) config(edit func(*hookv1.TenantRuntimeConfig)) {
	c := &hookv1.TenantRuntimeConfig{}
	edit(c)
	t, _ := w.tenants.Get("a")
	t.Learn(c)
}

func noCheck(c *hookv1.TenantRuntimeConfig) { c.CheckMessageEnabled = new(bool) }

// chat is a single chat of tenant a's user ann, numbered by its ref.
func chat(ref, session uint64, body string, edit ...func(*messagev1.MessageRequest)) *routerv1.Inbound {
	m := &messagev1.MessageRequest{TenantId: "a", UserId: "ann", DeviceId: "phone", MsgId: body, ToUserId: "ben", MsgBody: []byte(body)}
	for _, e := range edit {
		e(m)
	}
	raw, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return &routerv1.Inbound{Ref: ref, SessionId: session, Message: raw, Version: 2}
}

func toGroup(m *messagev1.MessageRequest) {
	m.MsgType, m.ToUserId, m.GroupId = messagev1.MessageType_GROUP_CHAT, "", "all"
}

func batch(in ...*routerv1.Inbound) []*routerv1.Inbound { return in }
