package admit

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/offline"
	"github.com/mics-im/mics/router/internal/route"
)

// Shorthands.

func g(i int) route.NodeRef { return route.NodeRef{ID: fmt.Sprint("g", i), Incarnation: 7} }

func wireRef(n route.NodeRef) *gatewayv1.GatewayRef {
	return &gatewayv1.GatewayRef{NodeId: n.ID, Incarnation: n.Incarnation}
}

var phone = route.DeviceKey{UserKey: route.UserKey{Tenant: "a", User: "ann"}, Device: "phone"}

// open asks the router to open a session of tenant a on gateway i.
func (n *node) open(i int, session uint64, user, device string) (*routerv1.OpenSessionResponse, error) {
	return n.OpenSession(context.Background(), &routerv1.OpenSessionRequest{
		Gateway: wireRef(g(i)), SessionId: session, TenantId: "a", Token: user, DeviceId: device, Version: 2,
	})
}

// opens is open that must succeed.
func (n *node) opens(i int, session uint64, user, device string) *routerv1.OpenSessionResponse {
	n.c.t.Helper()
	res, err := n.open(i, session, user, device)
	if err != nil || res.Refusal != nil {
		n.c.t.Fatalf("open: %v, %v", res, err)
	}
	return res
}

// refused is open that must be refused.
func (n *node) refused(i int, session uint64, user, device string, code int32, reason string) {
	n.c.t.Helper()
	res, err := n.open(i, session, user, device)
	if err != nil || res.Refusal.GetCloseCode() != code || res.Refusal.GetReason() != reason {
		n.c.t.Errorf("got %v, %v, want %d %s", res, err, code, reason)
	}
}

func closed(session, epoch uint64, stage routerv1.ClosedSession_Stage, undelivered ...*gatewayv1.Undelivered) *routerv1.ClosedSession {
	return &routerv1.ClosedSession{
		SessionId: session, TenantId: "a", UserId: "ann", DeviceId: "phone", Epoch: epoch, Stage: stage, Undelivered: undelivered,
	}
}

// closes says that sessions of gateway i have ended.
func (n *node) closes(i int, sessions ...*routerv1.ClosedSession) {
	n.c.t.Helper()
	if err := n.CloseSessions(context.Background(), &routerv1.CloseSessionsRequest{Gateway: wireRef(g(i)), Sessions: sessions}); err != nil {
		n.c.t.Fatal(err)
	}
}

// conns is how many connections of tenant a are counted on gateway i.
func (c *cluster) conns(i int) int {
	c.t.Helper()
	_, n, err := c.store.AcquireConn(context.Background(), "a", g(i), 0, nil)
	if err == nil {
		err = c.store.ReleaseConns(context.Background(), "a", g(i), 1)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}

func (c *cluster) record(key route.DeviceKey) *route.Record {
	records, err := c.store.LookupFresh(context.Background(), key.UserKey)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, r := range records {
		if r.Device == key.Device {
			return &r
		}
	}
	return nil
}

// undelivered has its text as message and as key.
func undelivered(texts ...string) []*gatewayv1.Undelivered {
	var out []*gatewayv1.Undelivered
	for _, s := range texts {
		k := key(s)
		out = append(out, &gatewayv1.Undelivered{Message: []byte(s), Key: k[:]})
	}
	return out
}

func key(s string) (k [16]byte) {
	copy(k[:], s)
	return k
}

func (n *node) keeps(texts ...string) { n.keepsAt(false, texts...) }

func (n *node) keepsAt(front bool, texts ...string) {
	for _, s := range texts {
		n.offline.Put(phone.UserKey, offline.Entry{Message: offline.Message{Bytes: []byte(s), Key: key(s)}, Devices: []string{"phone"}, TTL: time.Hour, Front: front})
	}
}

func text(b []byte) string { return string(b) }

func texts(u []*gatewayv1.Undelivered) []string {
	var out []string
	for _, m := range u {
		out = append(out, text(m.Message))
	}
	return out
}

// kept is what the router's buffer has for the phone; it is taken.
func (n *node) kept() []string {
	var out []string
	front, rest := n.offline.Take(phone)
	for _, m := range append(front, rest...) {
		out = append(out, text(m.Bytes))
	}
	return out
}

func same(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}
