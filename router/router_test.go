package router

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/route"
	"google.golang.org/protobuf/proto"
)

// rueidis ends its last goroutines within seconds after Close.
func TestMain(m *testing.M) { testkit.MainWithin(m, 10*time.Second) }

// get returns the status and body of a GET, 0 when there was no answer.
func get(t *testing.T, r *Router, path string) (int, string) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := c.Get("http://" + r.InternalAddr() + path)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// homedAt returns a user whose home is the router.
func homedAt(t *testing.T, r *Router, name string) string {
	t.Helper()
	for i := range 1000 {
		user := name + strconv.Itoa(i)
		if home, _ := r.directory.Home(route.UserKey{Tenant: "acme", User: user}); home.ID == r.self.ID {
			return user
		}
	}
	t.Fatal("nobody is at home there")
	return ""
}

// two starts two routers on one Redis that know each other and have written all routes
// that there are.
func two(t *testing.T, a *acme, more map[string]string) (*Router, *Router) {
	t.Helper()
	redis, hooks := testkit.Redis(t), a.serve(t)
	r1 := startRouter(t, "r1", redis, hooks, more)
	r2 := startRouter(t, "r2", redis, hooks, more)
	for _, r := range []*Router{r1, r2} {
		testkit.Eventually(t, "the routers know each other", func() bool { return len(r.directory.Routers()) == 2 && len(r.away.Degraded()) == 0 })
	}
	return r1, r2
}

func TestAMessageCrossesTheCluster(t *testing.T) {
	r1, r2 := two(t, &acme{}, nil)
	g1, g2 := startGateway(t, "g1", 1), startGateway(t, "g2", 1)
	g1.register(r1)
	g2.register(r2)
	ann, ben := homedAt(t, r1, "ann"), homedAt(t, r2, "ben")
	g1.open(r1, 1, ann)
	// The other router finds the user's home.
	opened := g2.open(r1, 1, ben)
	if opened.UserId != ben || opened.DeviceId != "phone" || opened.Epoch != 1 || opened.HeartbeatTimeoutSeconds != 30 || opened.RouterId != "r2" {
		t.Fatalf("opened %v", opened)
	}
	p := g1.publisher(r1)
	for i := range 3 {
		n := strconv.Itoa(i)
		if ack := p.send(text(ann, ben, n, "hi "+n)); ack.Status != messagev1.AckStatus_SENT || ack.MsgId != n || ack.TimestampMs == 0 || ack.OfflineBufferedUsers != 0 {
			t.Fatalf("ack %v", ack)
		}
	}
	g2.wants(1, "hi 0", "hi 1", "hi 2")
	if ack := p.send(text(ann, ben, "1", "hi 1")); ack.Status != messagev1.AckStatus_SENT || ack.Reason != "duplicate" {
		t.Fatalf("a repeat: %v", ack)
	}
	if ack := p.send(text(ann, ben, "9", "bad word")); ack.Status != messagev1.AckStatus_FAILED || ack.Reason != "no bad words" {
		t.Fatalf("a denied message: %v", ack)
	}
	g2.wants(1, "hi 0", "hi 1", "hi 2")
	_, metrics := get(t, r1, "/metrics")
	for _, line := range []string{
		`mics_deliveries_total{via="online"} 3`, `mics_dedup_hits_total 1`, `mics_hook_check_message_total{result="deny"} 1`,
		`mics_messages_rejected_total{reason="rejected"} 1`, `mics_messages_failed_total 0`, `mics_grpc_forward_failed_total 0`,
		`mics_rate_limited_total{kind="connection_limit"} 0`, `mics_redis_up 1`, `mics_offline_notified_total 0`,
		`mics_hook_requests_total{op="check-message",result="ok"} 4`,
	} {
		if !strings.Contains(metrics, line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
}

func TestABacklogIsKeptAtTheHomeAndTakenThroughTheOtherRouter(t *testing.T) {
	r1, r2 := two(t, &acme{members: []string{"ann", "ben", "ben", ""}}, nil)
	g := startGateway(t, "g1", 1)
	g.register(r1)
	testkit.Eventually(t, "both know the gateway", func() bool { return len(r2.directory.Gateways()) == 1 })
	ann, ben := homedAt(t, r1, "ann"), homedAt(t, r2, "ben")
	g.open(r1, 1, ann)
	p := g.publisher(r1)
	for i := range 3 {
		n := strconv.Itoa(i)
		if ack := p.send(text(ann, ben, n, "kept "+n)); ack.Status != messagev1.AckStatus_SENT || ack.OfflineBufferedUsers != 1 {
			t.Fatalf("ack %v", ack)
		}
	}
	if r2.kept.Bytes() == 0 || r1.kept.Bytes() != 0 {
		t.Fatalf("%d bytes at the home, %d at the other router", r2.kept.Bytes(), r1.kept.Bytes())
	}
	opened := g.open(r1, 2, ben)
	g.wants(2, "kept 0", "kept 1", "kept 2")
	ids := map[uint64]bool{}
	for _, u := range opened.Backlog {
		ids[u.Id] = true
		if len(u.Key) != 16 {
			t.Errorf("a backlog entry has no key: %v", u)
		}
	}
	if len(ids) != 3 || ids[0] {
		t.Errorf("ids %v", ids)
	}
	p.send(text(ann, ben, "3", "live"))
	g.wants(2, "kept 0", "kept 1", "kept 2", "live")

	// What the session did not deliver is handed back, and comes first.
	_, err := g.client(r2).CloseSessions(t.Context(), connect.NewRequest(&routerv1.CloseSessionsRequest{
		Gateway: g.ref(), Sessions: []*routerv1.ClosedSession{{
			SessionId: 2, TenantId: "acme", UserId: ben, DeviceId: "phone", Epoch: opened.Epoch, Stage: routerv1.ClosedSession_STAGE_FINAL,
			Undelivered: []*gatewayv1.Undelivered{{Message: marshal(t, text(ann, ben, "2", "kept 2"))}, {Message: marshal(t, text(ann, ben, "3", "live"))}},
		}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	g.forget(2)
	p.send(text(ann, ben, "4", "later"))
	if again := g.open(r1, 3, ben); again.Epoch != 2 {
		t.Errorf("epoch %d", again.Epoch)
	}
	g.wants(3, "kept 2", "live", "later")
}

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	raw, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestAGroupGetsAMessageOnce(t *testing.T) {
	a := &acme{members: []string{"ann", "ben", "cid", "ben", "dan"}}
	r := startRouter(t, "r1", Memory, a.serve(t), map[string]string{"GROUP_ROUTE_CHUNK_SIZE": "2"})
	g := startGateway(t, "g1", 1)
	g.register(r)
	for i, user := range []string{"ann", "ben", "cid"} {
		g.open(r, uint64(i+1), user)
	}
	m := &messagev1.MessageRequest{TenantId: "acme", UserId: "ann", DeviceId: "phone", MsgId: "1", MsgType: messagev1.MessageType_GROUP_CHAT, GroupId: "all", MsgBody: []byte("all")}
	ack := g.publisher(r).send(m)
	if ack.Status != messagev1.AckStatus_SENT || ack.OfflineBufferedUsers != 1 || ack.PartialDelivery {
		t.Fatalf("ack %v", ack)
	}
	for session := range uint64(3) {
		g.wants(session+1, "all")
	}
	g.open(r, 4, "dan")
	g.wants(4, "all")
	_, metrics := get(t, r, "/metrics")
	for _, line := range []string{"mics_group_messages_total 1", "mics_group_members_total 4", "mics_group_fanout_nodes_total 1", "mics_group_offline_buffered_total 1", "mics_offline_drained_total 1"} {
		if !strings.Contains(metrics, line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
}

func TestATenantThatKeepsOfflineMessagesItself(t *testing.T) {
	yes := true
	a := &acme{config: &hookv1.TenantRuntimeConfig{OfflineUseHookPull: &yes}, pending: []*messagev1.MessageRequest{text("ann", "ben", "7", "pulled")}}
	r := startRouter(t, "r1", Memory, a.serve(t), nil)
	g := startGateway(t, "g1", 1)
	g.register(r)
	g.open(r, 1, "ann")
	g.wants(1, "pulled")
	if ack := g.publisher(r).send(text("ann", "ben", "1", "hi")); ack.Status != messagev1.AckStatus_SENT || ack.OfflineNotifiedUsers != 1 || ack.OfflineBufferedUsers != 0 || ack.PartialDelivery {
		t.Fatalf("ack %v", ack)
	}
	if opened := g.open(r, 2, "ben"); len(opened.Backlog) != 0 {
		t.Fatalf("kept after all: %v", opened.Backlog)
	}
	g.wants(2, "pulled")
}

func TestRefusals(t *testing.T) {
	a := &acme{config: &hookv1.TenantRuntimeConfig{TenantMaxConnections: 1}}
	r := startRouter(t, "r1", Memory, a.serve(t), nil)
	g := startGateway(t, "g1", 1)
	open := func(tenant, token string) (*routerv1.SessionRefusal, error) {
		res, err := g.client(r).OpenSession(t.Context(), connect.NewRequest(&routerv1.OpenSessionRequest{
			Gateway: g.ref(), SessionId: 1, TenantId: tenant, Token: token, DeviceId: "phone", Version: 1,
		}))
		if err != nil {
			return nil, err
		}
		return res.Msg.Refusal, nil
	}
	if _, err := open("acme", "ann"); fault.KindOf(err) != fault.FailedPrecondition {
		t.Errorf("a gateway without a lease: %v", err)
	}
	g.register(r)
	if got, err := open("nobody", "ann"); err != nil || got.GetCloseCode() != 4002 || got.GetReason() != "invalid tenant" {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := open("acme", "wrong"); err != nil || got.GetCloseCode() != 4001 || got.GetReason() != "who are you" {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := open("acme", "a\x01b"); err != nil || got.GetCloseCode() != 4001 || got.GetReason() != "auth unavailable" {
		t.Errorf("a user id that is none: %v, %v", got, err)
	}
	g.open(r, 2, "ann")
	if got, err := open("acme", "ben"); err != nil || got.GetCloseCode() != 4429 || got.GetReason() != "tenant connection limit" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestTheNewestIncarnationHoldsTheLease(t *testing.T) {
	r := startRouter(t, "r1", Memory, (&acme{}).serve(t), nil)
	newer := startGateway(t, "g1", 2)
	newer.register(r)
	older := startGateway(t, "g1", 1)
	s := older.client(r).Register(t.Context())
	_ = s.Send(&routerv1.RegisterRequest{Gateway: older.info}) // fails if the answer is faster
	if _, err := s.Receive(); fault.KindOf(err) != fault.FailedPrecondition {
		t.Errorf("the older one was told %v", err)
	}
	_ = s.CloseRequest()
	_ = s.CloseResponse()

	// One that has drained is gone at once, and not only when its lease ends.
	d := newer.client(r).Register(t.Context())
	drained := proto.CloneOf(newer.info)
	drained.Phase = gatewayv1.Phase_PHASE_DRAINED
	if err := d.Send(&routerv1.RegisterRequest{Gateway: drained}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Receive(); err != nil {
		t.Fatal(err)
	}
	dir, err := newer.client(r).Directory(t.Context(), connect.NewRequest(&routerv1.DirectoryRequest{}))
	if err != nil || len(dir.Msg.Gateways) != 0 || len(dir.Msg.Routers) != 1 || dir.Msg.Routers[0].Endpoint != "http://"+r.InternalAddr() {
		t.Errorf("directory %v, %v", dir, err)
	}
	_ = d.CloseRequest()
	_ = d.CloseResponse()
}

func TestReadiness(t *testing.T) {
	never := startRouter(t, "r1", "127.0.0.1:"+strconv.Itoa(testkit.FreePort(t)), "http://127.0.0.1:1", nil)
	if code, body := get(t, never, "/readyz"); code != 503 || !strings.Contains(body, "not been reached yet") {
		t.Errorf("never reached: %d %s", code, body)
	}
	if code, _ := get(t, never, "/healthz"); code != 200 {
		t.Errorf("healthz %d", code)
	}
	redis := testkit.StartRedis(t)
	r := startRouter(t, "r2", redis.Addr, "http://127.0.0.1:1", nil)
	testkit.Eventually(t, "ready", func() bool { _, body := get(t, r, "/readyz"); return body == "{\"ready\":true}\n" })
	redis.Kill()
	testkit.Eventually(t, "degraded", func() bool {
		code, body := get(t, r, "/readyz")
		if code != 200 {
			t.Fatalf("degraded is not dead: %d %s", code, body)
		}
		return strings.Contains(body, `"ready":true,"degraded":["redis: `)
	})
	testkit.Eventually(t, "mics_redis_up is 0", func() bool {
		_, metrics := get(t, r, "/metrics")
		return strings.Contains(metrics, "mics_redis_up 0\n")
	})
	redis.Restart(t)
	testkit.Eventually(t, "up again", func() bool { _, body := get(t, r, "/readyz"); return body == "{\"ready\":true}\n" })
}

func TestStopLetsMessagesFinish(t *testing.T) {
	r := startRouter(t, "r1", Memory, (&acme{}).serve(t), nil)
	g := startGateway(t, "g1", 1)
	g.register(r)
	g.open(r, 1, "ann")
	p := g.publisher(r)
	p.send(text("ann", "ann", "1", "before"))
	if err := r.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.s.Receive(); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("the stream ended with %v", err)
	}
	if code, _ := get(t, r, "/healthz"); code != 0 {
		t.Error("still answers after Stop")
	}
	if err := r.Stop(t.Context()); err != nil {
		t.Errorf("a second stop: %v", err)
	}
	if err := r.Start(t.Context()); err == nil {
		t.Error("started twice")
	}
}

// What the one keeps is with the other one then: it is known as soon as it has started.
func TestARouterStopsAsSoonAsAnotherHasStarted(t *testing.T) {
	for range 2 {
		redis, hooks := testkit.Redis(t), (&acme{}).serve(t)
		r1 := startRouter(t, "r1", redis, hooks, nil)
		g := startGateway(t, "g1", 1)
		g.register(r1)
		g.open(r1, 1, "ann")
		if ack := g.publisher(r1).send(text("ann", "ben", "1", "kept")); ack.Status != messagev1.AckStatus_SENT || ack.OfflineBufferedUsers != 1 {
			t.Fatalf("ack %v", ack)
		}
		r2 := startRouter(t, "r2", redis, hooks, nil)
		if all := r1.directory.Routers(); len(all) != 2 {
			t.Errorf("the other one has started, and is not known: %v", all)
		}
		if err := r1.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r2.kept.Bytes() == 0 {
			t.Error("it is lost")
		}
	}
}

func TestRunStopsWithItsContext(t *testing.T) {
	cfg, err := LoadConfig([]string{"--internal-listen", "127.0.0.1:0"}, env(map[string]string{"REDIS__CONNECTION": Memory}))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Telemetry = telemetry.Config{LogWriter: io.Discard}
	r, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	testkit.Eventually(t, "alive", func() bool { code, _ := get(t, r, "/healthz"); return code == 200 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
