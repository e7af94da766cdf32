// Package canary plays canaries with real processes, traffic and clients: shares,
// who moves how often, what arrives, and bad versions that are to be rolled back
// without a hand. The short form is part of `make test`; `make canary` is the long
// one.
package canary

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/internal/testkit"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
	"github.com/mics-im/mics/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// sessions is how many there are: MICS_CANARY_SESSIONS, 300 without it.
func sessions(t *testing.T) int {
	t.Helper()
	text := os.Getenv("MICS_CANARY_SESSIONS")
	if text == "" {
		return 300
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 100 {
		t.Fatalf("MICS_CANARY_SESSIONS: %q is no number from 100", text)
	}
	return n
}

// long tells whether there is time.
func long() bool { return os.Getenv("MICS_CANARY_SESSIONS") != "" }

// onlyLong leaves a test to the long form.
func onlyLong(t *testing.T) {
	t.Helper()
	if !long() {
		t.Skip("only in the long form: make canary")
	}
}

// person is a client program on the Go SDK.
type person struct {
	user, device string
	end          harness.Endpoint

	mu        sync.Mutex
	connected bool     // guarded by mu, like what follows
	got       []string // bodies
	breaks    int
}

func (p *person) Connected(string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.connected = true
}

func (p *person) Disconnected(int, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.connected = false
	p.breaks++
}

func (p *person) Delivered(m harness.Incoming) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got = append(p.got, string(m.Body))
}

func (*person) Ended(error) {}

func (p *person) is() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connected
}

// fleet is a cluster with two stable gateways, a canary, and people.
type fleet struct {
	t      *testing.T
	c      *harness.Cluster
	http   *http.Client
	people []*person // two devices of a user follow each other

	mu   sync.Mutex
	want map[string][]string // bodies by user, in order; guarded by mu
	sent sync.WaitGroup
	stop chan struct{} // ends the traffic
	done chan struct{}
}

// start runs a cluster; gw3 is the canary. env are further settings of gw3.
func start(t *testing.T, program string, env ...string) *fleet {
	t.Helper()
	programs := map[string]string{}
	if program != "" {
		programs["gw3"] = program
	}
	c := harness.New(t, harness.Options{
		Gateways: 3, Routers: 2, ControlPlane: true, Programs: programs,
		Env: map[string][]string{"gateway": {"VERSION=1"}, "gw3": append([]string{"TRACK=canary", "VERSION=2"}, env...)},
	})
	return &fleet{
		t: t, c: c, http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second},
		want: map[string][]string{},
	}
}

// gather connects n sessions, two of a user, to the stable gateways.
func (f *fleet) gather(n int) {
	f.t.Helper()
	f.t.Cleanup(f.leave)
	for i := range n {
		p := &person{user: fmt.Sprint("user", i/2), device: []string{"phone", "desk"}[i%2]}
		e, err := harness.DialSDK(harness.Dialing{
			URLs: f.c.URLs("gw1", "gw2"), Tenant: f.c.Tenant().Name, User: p.user, Device: p.device, Observer: p,
		})
		if err != nil {
			f.t.Fatal(err)
		}
		p.end = e
		f.people = append(f.people, p)
		if i%50 == 49 { // not all at once
			f.all("connected", (*person).is)
		}
	}
	f.all("connected", (*person).is)
}

func (f *fleet) all(what string, ok func(*person) bool) {
	f.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for _, p := range f.people {
		for !ok(p) {
			if time.Now().After(deadline) {
				f.t.Fatalf("%s/%s is not %s", p.user, p.device, what)
			}
			time.Sleep(5 * time.Millisecond) // polling real processes
		}
	}
}

func (f *fleet) leave() {
	f.quiet()
	var wg sync.WaitGroup
	for _, p := range f.people {
		wg.Go(p.end.Close)
	}
	wg.Wait()
}

// talk sends messages from everybody to everybody in turn until quiet.
func (f *fleet) talk(perSecond int) {
	f.stop, f.done = make(chan struct{}), make(chan struct{})
	go func() { // ends with quiet
		defer close(f.done)
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-f.stop:
				return
			case <-tick.C:
			}
			// One sender per recipient, so that there is one order.
			to := f.people[2*(n%(len(f.people)/2))].user
			from := f.people[(2*(n%(len(f.people)/2))+7)%len(f.people)]
			body := fmt.Sprint(to, " ", n)
			f.sent.Add(1)
			if !from.end.Submit(harness.Outgoing{To: to, Body: []byte(body)}, func(a harness.Answer) {
				defer f.sent.Done()
				if !a.Sent {
					f.t.Errorf("%s: %+v", body, a)
				}
			}) {
				f.sent.Done()
				continue
			}
			f.mu.Lock()
			f.want[to] = append(f.want[to], body)
			f.mu.Unlock()
		}
	}()
}

// quiet ends the traffic and waits for its answers.
func (f *fleet) quiet() {
	if f.stop == nil {
		return
	}
	close(f.stop)
	<-f.done
	f.stop = nil
	f.sent.Wait()
}

// complete fails unless every device has got every message once, in order.
func (f *fleet) complete() {
	f.t.Helper()
	f.quiet()
	for _, p := range f.people {
		want := f.want[p.user]
		testkit.Eventually(f.t, p.user+" has everything", func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return len(p.got) >= len(want)
		})
		p.mu.Lock()
		if fmt.Sprint(p.got) != fmt.Sprint(want) {
			f.t.Errorf("%s/%s got %d messages of %d: %v", p.user, p.device, len(p.got), len(want), p.got)
		}
		p.mu.Unlock()
	}
	messages := 0
	for _, w := range f.want {
		messages += len(w)
	}
	f.t.Logf("%d messages, each to two devices", messages)
}

func (f *fleet) control() controlv1connect.ControlServiceClient {
	return controlv1connect.NewControlServiceClient(f.http, "http://"+f.c.ControlPlane().Public)
}

// begin starts a canary as soon as the control plane knows all gateways.
func (f *fleet) begin(spec *controlv1.CanarySpec) {
	f.t.Helper()
	testkit.Eventually(f.t, "the canary begins", func() bool {
		_, err := f.control().StartCanary(context.Background(), connect.NewRequest(&controlv1.StartCanaryRequest{Spec: spec}))
		if err != nil {
			f.t.Logf("start: %v", err)
			time.Sleep(200 * time.Millisecond) // paces the attempts
		}
		return err == nil
	})
}

func (f *fleet) change(req *controlv1.ChangeCanaryRequest) {
	f.t.Helper()
	if _, err := f.control().ChangeCanary(context.Background(), connect.NewRequest(req)); err != nil {
		f.t.Fatal(err)
	}
}

// get returns the canary; nil: the control plane does not answer.
func (f *fleet) get() *controlv1.Canary {
	res, err := f.control().GetCanary(context.Background(), connect.NewRequest(&controlv1.GetCanaryRequest{}))
	if err != nil {
		return nil
	}
	return res.Msg.GetCanary()
}

// patience is for one step of a canary on a busy machine.
const patience = 2 * time.Minute

// until waits for the canary to be as wanted.
func (f *fleet) until(what string, ok func(*controlv1.Canary) bool) *controlv1.Canary {
	f.t.Helper()
	var last *controlv1.Canary
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) { // polling real processes
		if c := f.get(); c != nil {
			if last = c; ok(c) {
				return c
			}
		}
	}
	f.t.Fatalf("not %s within %v: %v", what, patience, last)
	return nil
}

func in(phase controlv1.CanaryPhase) func(*controlv1.Canary) bool {
	return func(c *controlv1.Canary) bool { return c.GetPhase() == phase }
}

// where lists each device's gateways.
func (f *fleet) where() map[string]string {
	f.t.Helper()
	at := map[string]string{}
	for _, g := range f.c.Names("gw") {
		stream, err := f.gateway(g).Sessions(context.Background(), connect.NewRequest(&gatewayv1.SessionsRequest{}))
		if err != nil {
			f.t.Fatal(err)
		}
		for stream.Receive() {
			for _, s := range stream.Msg().GetSessions() {
				at[s.GetUserId()+"/"+s.GetDeviceId()] = g
			}
		}
		if err := stream.Err(); err != nil {
			f.t.Fatal(err)
		}
		_ = stream.Close()
	}
	return at
}

func (f *fleet) gateway(name string) gatewayv1connect.GatewayServiceClient {
	return gatewayv1connect.NewGatewayServiceClient(f.http, "http://"+f.c.Gateway(name).Internal)
}

// arrivals sums what all gateways have seen of sessions that moved.
func (f *fleet) arrivals() (migrated, lost, repeated uint64) {
	f.t.Helper()
	for _, g := range f.c.Names("gw") {
		res, err := f.gateway(g).Status(context.Background(), connect.NewRequest(&gatewayv1.StatusRequest{}))
		if err != nil {
			f.t.Fatal(err)
		}
		for _, a := range res.Msg.GetArrivals() {
			migrated += a.GetMigrated()
			lost += a.GetLost()
			repeated += a.GetRepeatedDeliveries()
		}
	}
	return migrated, lost, repeated
}

// step is what is known at the end of one.
type step struct {
	at       map[string]string
	migrated uint64
}

func (f *fleet) mark() step {
	f.t.Helper()
	m, _, _ := f.arrivals()
	return step{f.where(), m}
}

// check compares with the step before: the share is the weight, no user is on two
// tracks, and nobody moved more often than he had to, which is once or not at all.
func (f *fleet) check(weight float64, before step) step {
	f.t.Helper()
	now := f.mark()
	canary, moved := 0, uint64(0)
	tracks := map[string]string{}
	for _, p := range f.people {
		key := p.user + "/" + p.device
		is := track(now.at[key])
		if is == "canary" {
			canary++
		}
		if is != track(before.at[key]) {
			moved++
		}
		if other, known := tracks[p.user]; known && other != is {
			f.t.Errorf("%s is on both tracks", p.user)
		}
		tracks[p.user] = is
	}
	share := 100 * float64(canary) / float64(len(f.people))
	// A user is two sessions: of few, the share cannot be met better than that.
	if tolerance := max(1, 200/float64(len(f.people))); math.Abs(share-weight) > tolerance {
		f.t.Errorf("at %g %% the share is %.2f %%", weight, share)
	}
	if n := now.migrated - before.migrated; n != moved {
		f.t.Errorf("%d sessions are on another track than before, and %d moves were made", moved, n)
	}
	if _, lost, repeated := f.arrivals(); lost+repeated != 0 {
		f.t.Errorf("%d deliveries lost, %d repeated, by the gateways' audit", lost, repeated)
	}
	c := f.get()
	f.t.Logf("%3g %%: share %.2f %%, %d moved, at the end %.0f a second (%s)", weight, share, moved, c.GetPace(), c.GetPaceReason())
	return now
}

func track(gateway string) string {
	if gateway == "gw3" {
		return "canary"
	}
	return "stable"
}
