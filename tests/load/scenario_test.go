package load

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/testkit"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	"github.com/mics-im/mics/sdk/go/hook"
	"google.golang.org/protobuf/proto"
)

// startBare serves the yardstick until the test ends. Its process is this one.
func startBare(t *testing.T) Target {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- new(Bare).Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return Target{
		URLs:   []string{"ws://" + ln.Addr().String() + "/ws"},
		Tenant: TenantName, Procs: []Proc{{Name: Gateway, PID: os.Getpid()}},
	}
}

// small is little enough for a busy machine.
var small = Params{
	Clients: 20, Window: 2, Rate: 500, Body: 64, Sizes: []int{5, 20}, Rounds: 2,
	Duration: 100 * time.Millisecond, Parallel: 4,
}

func TestScenariosAccountForEveryMessage(t *testing.T) {
	if err := small.Check(); err != nil {
		t.Fatal(err)
	}
	for _, sc := range Scenarios() {
		t.Run(sc.Name, func(t *testing.T) {
			metrics, err := sc.Run(t.Context(), startBare(t), small)
			if err != nil {
				t.Fatal(err)
			}
			if len(metrics) == 0 {
				t.Fatal("no metrics")
			}
			for _, m := range metrics {
				if strings.Contains(m.Name, "nothing was done") {
					t.Errorf("%s", m.Name)
				}
				for _, bad := range []string{"failed", "not answered", "missing"} {
					if strings.Contains(m.Name, bad) && m.Value != 0 {
						t.Errorf("%s: %v", m.Name, m.Value)
					}
				}
				if strings.HasPrefix(m.Name, "end to end") && m.Value <= 0 {
					t.Errorf("%s: %v", m.Name, m.Value)
				}
			}
		})
	}
}

func TestDefaultsAreInBounds(t *testing.T) {
	for _, sc := range Scenarios() {
		if err := sc.Defaults.Check(); err != nil {
			t.Errorf("%s: %v", sc.Name, err)
		}
	}
	for _, change := range []func(*Params){
		func(p *Params) { p.Clients = 1 }, func(p *Params) { p.Duration = 0 }, func(p *Params) { p.Body = 7 },
		func(p *Params) { p.Window = 0 }, func(p *Params) { p.Agents = 65 }, func(p *Params) { p.Warmup = time.Hour },
	} {
		p := small
		change(&p)
		if p.Check() == nil {
			t.Errorf("%+v is taken", p)
		}
	}
}

func TestASwarmThatCannotConnectSaysWhy(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refuse := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "draining", http.StatusServiceUnavailable)
	})}
	go func() { _ = refuse.Serve(ln) }()
	defer func() { _ = refuse.Close() }()
	target := Target{URLs: []string{"ws://" + ln.Addr().String() + "/ws"}, Tenant: TenantName}
	_, err = OpenSwarm(t.Context(), target, small, 0, 3, Events{})
	if err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("%v", err)
	}
	target.URLs = []string{"wss://localhost/ws"}
	if _, err = OpenSwarm(t.Context(), target, small, 0, 3, Events{}); err == nil || !strings.Contains(err.Error(), "only ws://") {
		t.Errorf("%v", err)
	}
}

func TestALostConnectionFailsTheRun(t *testing.T) {
	target := startBare(t)
	s, err := OpenSwarm(t.Context(), target, small, 0, 2, Events{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.whole(); err != nil {
		t.Error(err)
	}
	_ = s.Clients[0].write(opClose, nil) // the server closes
	testkit.Eventually(t, "the loss is noticed", func() bool { return s.Lost() == 1 })
	if err := s.whole(); err == nil {
		t.Error("nothing is said of it")
	}
}

func TestAgentHoldsItsPartOfACrowd(t *testing.T) {
	target := startBare(t)
	in, orders := io.Pipe()
	answers, out := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- RunAgent(t.Context(), in, out) }()
	send, receive := json.NewEncoder(orders), json.NewDecoder(answers)
	ask := func(v any) (a crowdAnswer) {
		t.Helper()
		if err := send.Encode(v); err != nil {
			t.Fatal(err)
		}
		if err := receive.Decode(&a); err != nil || a.Error != "" {
			t.Fatalf("%v, %q", err, a.Error)
		}
		return a
	}
	if a := ask(crowdOrder{Target: target, Params: small, First: 10, Count: 10}); a.Deliveries != 0 {
		t.Errorf("%+v", a)
	}
	ask(askPing)

	s, err := OpenSwarm(t.Context(), target, small, 20, 1, Events{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Clients[0].prepare("", GroupID(10, 1), 1, 64)
	if err := s.Clients[0].Send(1); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "all ten members have the message", func() bool {
		a := ask(askState)
		return a.Deliveries == 10 && a.Last > 0 && a.Lost == 0
	})
	if err := orders.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestTenantAnswersForItsUsersAndGroups(t *testing.T) {
	h, err := TenantHandler(TenantSecret)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ln, h) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	call := func(name string, req hook.Request, res proto.Message) {
		t.Helper()
		if err := hook.Sign(req, TenantSecret); err != nil {
			t.Fatal(err)
		}
		b, err := proto.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		r, err := client.Post("http://"+ln.Addr().String()+"/"+name, "application/protobuf", bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Body.Close() }()
		if b, err = io.ReadAll(r.Body); err != nil || r.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v: %s", name, r.Status, err, b)
		}
		if err := proto.Unmarshal(b, res); err != nil {
			t.Fatal(err)
		}
	}
	meta := func() *hookv1.HookMeta {
		return &hookv1.HookMeta{TenantId: TenantName, RequestId: "1", TimestampMs: time.Now().UnixMilli()}
	}
	var auth hookv1.AuthResponse
	call(hook.NameAuth, &hook.AuthRequest{Meta: meta(), Token: tokenPrefix + "u5"}, &auth)
	if !auth.GetOk() || auth.GetUserId() != "u5" || auth.GetConfig().GetCheckMessageEnabled() || auth.GetConfig().CheckMessageEnabled == nil {
		t.Errorf("%v", &auth)
	}
	call(hook.NameAuth, &hook.AuthRequest{Meta: meta(), Token: "stolen"}, &auth)
	if auth.GetOk() {
		t.Errorf("%v", &auth)
	}
	for group, want := range map[string]string{"g-3-2": "u6 u7 u8", "g-1-0": "u0", "g-x-1": "", "nonsense": "", "g--1-1": ""} {
		var members hookv1.GetGroupMembersResponse
		call(hook.NameGroupMembers, &hook.GetGroupMembersRequest{Meta: meta(), GroupId: group}, &members)
		if got := strings.Join(members.GetUserIds(), " "); got != want {
			t.Errorf("%s: %q, want %q", group, got, want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
