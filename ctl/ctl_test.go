package ctl_test

import (
	"bytes"
	"context"
	"flag"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/mics-im/mics/ctl"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// now is what every test shows ages against.
var now = time.Date(2030, 5, 1, 12, 0, 0, 0, time.UTC)

// control is a control plane that answers what it is told to. The fields are
// set before it serves.
type control struct {
	controlv1connect.UnimplementedControlServiceHandler
	version  *controlv1.VersionResponse
	nodes    *controlv1.ListNodesResponse
	sessions *controlv1.ListSessionsResponse
	kick     *controlv1.KickResponse
	letters  []*routerv1.DeadLetter
	redrive  []*routerv1.RedriveProgress
	drains
	canaries
	err error
	// watch serves WatchNodes.
	watch func(context.Context, *connect.ServerStream[controlv1.WatchNodesResponse]) error

	mu       sync.Mutex
	requests []proto.Message // guarded by mu
}

func (c *control) saw(m proto.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests = append(c.requests, m)
}

// asked returns the requests that changed or searched something.
func (c *control) asked() []proto.Message {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]proto.Message(nil), c.requests...)
}

func reply[T any](m *T, err error) (*connect.Response[T], error) {
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(m), nil
}

func (c *control) Version(context.Context, *connect.Request[controlv1.VersionRequest]) (*connect.Response[controlv1.VersionResponse], error) {
	return reply(c.version, c.err)
}

func (c *control) ListNodes(context.Context, *connect.Request[controlv1.ListNodesRequest]) (*connect.Response[controlv1.ListNodesResponse], error) {
	return reply(c.nodes, c.err)
}

func (c *control) ListSessions(_ context.Context, r *connect.Request[controlv1.ListSessionsRequest]) (*connect.Response[controlv1.ListSessionsResponse], error) {
	c.saw(r.Msg)
	return reply(c.sessions, c.err)
}

func (c *control) Kick(_ context.Context, r *connect.Request[controlv1.KickRequest]) (*connect.Response[controlv1.KickResponse], error) {
	c.saw(r.Msg)
	return reply(c.kick, c.err)
}

func (c *control) WatchNodes(ctx context.Context, _ *connect.Request[controlv1.WatchNodesRequest], out *connect.ServerStream[controlv1.WatchNodesResponse]) error {
	return c.watch(ctx, out)
}

func (c *control) ListDLQ(_ context.Context, r *connect.Request[controlv1.ListDLQRequest], out *connect.ServerStream[controlv1.ListDLQResponse]) error {
	c.saw(r.Msg)
	if c.err != nil {
		return c.err
	}
	if r.Msg.GetRequest().GetOnly() != nil {
		return out.Send(&controlv1.ListDLQResponse{Response: &routerv1.ListDLQResponse{Letters: c.letters[:1]}})
	}
	for _, l := range c.letters { // an answer may come in pieces
		if err := out.Send(&controlv1.ListDLQResponse{Response: &routerv1.ListDLQResponse{Letters: []*routerv1.DeadLetter{l}}}); err != nil {
			return err
		}
	}
	return out.Send(&controlv1.ListDLQResponse{Response: &routerv1.ListDLQResponse{Truncated: c.sessions.GetTruncated()}})
}

func (c *control) RedriveDLQ(_ context.Context, r *connect.Request[controlv1.RedriveDLQRequest], out *connect.ServerStream[controlv1.RedriveDLQResponse]) error {
	c.saw(r.Msg)
	for _, p := range c.redrive {
		if err := out.Send(&controlv1.RedriveDLQResponse{Progress: p}); err != nil {
			return err
		}
	}
	return c.err
}

// serve puts c on a loopback port and returns its base URL.
func serve(t *testing.T, c *control) string { t.Helper(); return serveControl(t, c) }

func serveControl(t *testing.T, c controlv1connect.ControlServiceHandler) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(controlv1connect.NewControlServiceHandler(c))
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: mux, Protocols: p}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return "http://" + ln.Addr().String()
}

// term is the process around one run.
type term struct {
	in            string
	inTTY, outTTY bool
	env           map[string]string
	out           interface {
		Write([]byte) (int, error)
	}
}

type result struct {
	code     int
	out, err string
}

// run runs micsctl and returns all that it left behind.
func run(ctx context.Context, tm term, args ...string) result {
	var out, errs bytes.Buffer
	io := ctl.IO{
		In: strings.NewReader(tm.in), Out: &out, Err: &errs, InTTY: tm.inTTY, OutTTY: tm.outTTY,
		Getenv: func(k string) string { return tm.env[k] },
		Now:    func() time.Time { return now },
	}
	if tm.out != nil {
		io.Out = tm.out
	}
	code := ctl.Run(ctx, io, args)
	return result{code, out.String(), errs.String()}
}

// golden compares got with the file; the server's address, which changes from
// run to run, is replaced.
func golden(t *testing.T, name, endpoint, got string) {
	t.Helper()
	if endpoint != "" {
		got = strings.ReplaceAll(got, endpoint, "http://ENDPOINT")
	}
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (run with -update if that is meant)\n--- got\n%s--- want\n%s", path, got, want)
	}
}

func gateway(id string) *controlv1.Node {
	return &controlv1.Node{
		Kind: controlv1.NodeKind_NODE_KIND_GATEWAY, NodeId: id, Incarnation: 18446744073709551615, Endpoint: "http://10.0.0.1:9080",
		Version: "dev", Track: "stable", Phase: gatewayv1.Phase_PHASE_SERVING, Sessions: 1200, SessionsV2: 800,
		ConnectsPerSecond: 2.5, MessagesInPerSecond: 1234.4, DeliveriesPerSecond: 0,
		StartedAtMs: now.Add(-26 * time.Hour).UnixMilli(), RoutersLinked: 1,
	}
}

func router(id string) *controlv1.Node {
	return &controlv1.Node{
		Kind: controlv1.NodeKind_NODE_KIND_ROUTER, NodeId: id, Incarnation: 7, Endpoint: "http://10.0.0.9:9080", Version: "dev",
	}
}

func healthy() *control {
	return &control{
		version: &controlv1.VersionResponse{NodeId: "cp-1", Version: "dev"},
		nodes: &controlv1.ListNodesResponse{
			Nodes: []*controlv1.Node{gateway("gw-1"), router("r-1")}, ObservedAtMs: now.UnixMilli(),
		},
		sessions: &controlv1.ListSessionsResponse{Sessions: []*controlv1.Session{{
			NodeId: "gw-1",
			Info: &gatewayv1.SessionInfo{
				SessionId: 42, TenantId: "demo", UserId: "alice", DeviceId: "phone\x1b[2J", Epoch: 3, Version: 2,
				ConnectedAtMs: now.Add(-90 * time.Second).UnixMilli(), RemoteAddr: "192.0.2.7:40000", Queued: 5,
			},
		}}},
		kick: &controlv1.KickResponse{Kicked: 2},
		letters: []*routerv1.DeadLetter{{
			Partition: 0, Offset: 42, TimeMs: now.Add(-90 * time.Minute).UnixMilli(), Reason: "kafka server: not authorized\x1b[2J",
			NodeId: "r-1@7", Key: "alice:bob", DataBytes: 120,
			Event: &hookv1.MqEvent{
				TenantId: "demo", EventType: hookv1.EventType_SINGLE_CHAT_MSG, MsgId: "m-1", UserId: "alice", DeviceId: "phone", ToUserId: "bob",
				Timestamp: now.Add(-91 * time.Minute).UnixMilli(), NodeId: "r-1@7", Sign: "c2ln", TenantSeq: 18446744073709551615,
			},
		}, {
			Partition: 1, Offset: 7, TimeMs: now.UnixMilli(), Reason: "too large", NodeId: "r-2@9", Key: "team",
			Event: &hookv1.MqEvent{EventType: hookv1.EventType_OFFLINE_MESSAGE, MsgId: "m-2", UserId: "alice", ToUserId: "bob", GroupId: "team"},
		}},
		redrive: []*routerv1.RedriveProgress{
			{Total: 2, Read: 1}, {Total: 2, Read: 2, Sent: 2}, {Total: 2, Read: 2, Sent: 2, Done: true},
		},
	}
}

// sick is a cluster with one thing of every kind wrong.
func sick() *control {
	c := healthy()
	dead, draining, fenced, alone := gateway("gw-dead"), gateway("gw-draining"), gateway("gw-fenced"), gateway("gw-alone")
	dead.Unreachable, dead.UnreachableReason = true, "no answer in time"
	draining.Phase, draining.Version = gatewayv1.Phase_PHASE_DRAINING, "v1.1.0"
	fenced.Phase, fenced.RoutersLinked = gatewayv1.Phase_PHASE_FENCED, 0
	alone.RoutersLinked = 0
	lost := router("r-2")
	lost.Unreachable, lost.UnreachableReason = true, "not in the directory any more"
	c.nodes.Nodes = []*controlv1.Node{gateway("gw-1"), alone, dead, draining, fenced, router("r-1"), lost}
	c.nodes.Warnings = []string{"no router answered"}
	c.sessions.Truncated = true
	c.sessions.Warnings = []string{"gateway gw-dead did not answer: no answer in time"}
	c.letters = append(c.letters, &routerv1.DeadLetter{Partition: 2, Offset: 1, TimeMs: now.UnixMilli()}) // no event
	c.redrive = []*routerv1.RedriveProgress{{Total: 3, Read: 3, Sent: 1, Dead: 1, Failed: 1, Done: true}}
	c.kick = &controlv1.KickResponse{Kicked: 1, Warnings: []string{"gateway gw-dead did not answer: no answer in time"}}
	return c
}

func TestGoldenOutputs(t *testing.T) {
	empty := &control{
		version: &controlv1.VersionResponse{NodeId: "cp-1", Version: "dev"},
		nodes:   &controlv1.ListNodesResponse{}, sessions: &controlv1.ListSessionsResponse{}, kick: &controlv1.KickResponse{},
		redrive: []*routerv1.RedriveProgress{{Done: true}},
	}
	clusters := map[string]*control{"healthy": healthy(), "sick": sick(), "empty": empty}
	commands := []struct {
		name string
		args []string
		code map[string]int
	}{
		{"nodes", []string{"nodes"}, map[string]int{}},
		{"sessions", []string{"sessions"}, map[string]int{}},
		{"kick", []string{"kick", "--tenant", "demo", "--user", "alice", "--yes"}, map[string]int{"sick": 1, "empty": 1}},
		{"dlq-list", []string{"dlq", "list", "--tenant", "demo"}, map[string]int{}},
		{"dlq-redrive", []string{"dlq", "redrive", "--tenant", "demo"}, map[string]int{"sick": 1}},
		{"dlq-dry", []string{"dlq", "redrive", "--tenant", "demo", "--dry-run"}, map[string]int{"sick": 1}},
		{"check", []string{"check"}, map[string]int{"sick": 1, "empty": 1}},
		{"version", []string{"version"}, map[string]int{}},
	}
	for cluster, c := range clusters {
		endpoint := serve(t, c)
		for _, cmd := range commands {
			for _, format := range []string{"table", "json", "yaml"} {
				name := cmd.name + "-" + cluster + "-" + format
				t.Run(name, func(t *testing.T) {
					got := run(t.Context(), term{}, append(cmd.args, "--endpoint", endpoint, "-o", format)...)
					if got.code != cmd.code[cluster] {
						t.Errorf("exit code %d, want %d", got.code, cmd.code[cluster])
					}
					text := got.out
					if got.err != "" {
						text += "--- stderr\n" + got.err
					}
					golden(t, name, endpoint, text)
				})
			}
		}
	}
}

func TestTerminalEscapesOfStrangersAreNotPrinted(t *testing.T) {
	got := run(t.Context(), term{outTTY: true}, "sessions", "--endpoint", serve(t, healthy()))
	if strings.ContainsRune(got.out, '\x1b') || !strings.Contains(got.out, `phone\x1b[2J`) {
		t.Fatalf("printed %q", got.out)
	}
}

func TestWrongCommandLinesAskNobody(t *testing.T) {
	c := healthy()
	endpoint := serve(t, c)
	kick := []string{"kick", "--tenant", "demo", "--user", "alice"}
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"no command":        {nil, "a command is missing"},
		"unknown command":   {[]string{"nodez"}, `unknown command "nodez"`},
		"unknown flag":      {[]string{"nodes", "--wat"}, "unknown flag: --wat"},
		"argument":          {[]string{"nodes", "x"}, `"x"`},
		"output":            {[]string{"nodes", "-o", "xml"}, `--output: "xml": want one of table, json, yaml`},
		"timeout":           {[]string{"nodes", "--timeout", "0s"}, "--timeout: 0s: must be above zero"},
		"timeout text":      {[]string{"nodes", "--timeout", "soon"}, "--timeout"},
		"endpoint scheme":   {[]string{"nodes", "--endpoint", "ftp://x"}, `--endpoint: "ftp://x": want http://HOST`},
		"endpoint secret":   {[]string{"nodes", "--endpoint", "http://u:p@x"}, "--endpoint"},
		"check endpoint":    {[]string{"check", "--endpoint", "http://"}, "--endpoint"},
		"limit zero":        {[]string{"sessions", "--limit", "0"}, "--limit: 0: want 1 to 10000"},
		"limit high":        {[]string{"sessions", "--limit", "10001"}, "--limit: 10001: want 1 to 10000"},
		"limit negative":    {[]string{"sessions", "--limit", "-1"}, "--limit"},
		"kick no tenant":    {[]string{"kick", "--user", "alice", "--yes"}, "--tenant: required"},
		"kick no user":      {[]string{"kick", "--tenant", "demo", "--yes"}, "--user: required"},
		"kick no terminal":  {kick, "--yes: required when there is no terminal to ask on"},
		"kick reason":       {append(kick, "--yes", "--reason", strings.Repeat("x", 124)), "--reason: 124 bytes: want at most 123"},
		"dlq":               {[]string{"dlq"}, "list, show or redrive"},
		"dlq list tenant":   {[]string{"dlq", "list"}, "--tenant: required"},
		"dlq list since":    {[]string{"dlq", "list", "--tenant", "t", "--since", "yesterday"}, "--since: \"yesterday\": want a time"},
		"dlq list limit":    {[]string{"dlq", "list", "--tenant", "t", "--limit", "0"}, "--limit: 0: want 1 to 10000"},
		"dlq show tenant":   {[]string{"dlq", "show", "0/1"}, "--tenant: required"},
		"dlq show id":       {[]string{"dlq", "show", "--tenant", "t", "7"}, "want PARTITION/OFFSET"},
		"dlq show none":     {[]string{"dlq", "show", "--tenant", "t"}, "accepts 1 arg"},
		"dlq redrive":       {[]string{"dlq", "redrive", "--since", "1h"}, "--tenant: required"},
		"kick stray device": {append(kick, "--yes", "phone"), `"phone"`},
	} {
		t.Run(name, func(t *testing.T) {
			got := run(t.Context(), term{env: map[string]string{"MICS_ENDPOINT": endpoint}}, tc.args...)
			if got.code != 2 || !strings.Contains(got.err, tc.want) || !strings.Contains(got.err, "--help") {
				t.Errorf("exit code %d, stderr %q; want 2, %q and a way to the help", got.code, got.err, tc.want)
			}
			if got.out != "" {
				t.Errorf("stdout %q", got.out)
			}
		})
	}
	if asked := c.asked(); len(asked) > 0 {
		t.Errorf("the control plane was asked: %v", asked)
	}
}

func TestFailuresSayWhatToDo(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + closed.Addr().String()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0") // connects and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close() //nolint:errcheck // the test is over
	failing := func(code connect.Code, text string) string {
		return serve(t, &control{err: connect.NewError(code, &textError{text})})
	}
	for name, tc := range map[string]struct {
		endpoint string
		args     []string
		want     []string
	}{
		"refused":      {nobody, []string{"nodes"}, []string{"connection refused", "is the control plane at " + nobody + " running?", "MICS_ENDPOINT"}},
		"watch":        {nobody, []string{"nodes", "--watch"}, []string{"connection refused", "MICS_ENDPOINT"}},
		"silent":       {"http://" + silent.Addr().String(), []string{"nodes", "--timeout", "50ms"}, []string{"within 50ms", "--timeout"}},
		"silent watch": {"http://" + silent.Addr().String(), []string{"nodes", "-w", "--timeout", "50ms"}, []string{"within 50ms"}},
		"not found": {failing(connect.CodeNotFound, `node_id: no gateway "x" is known`), []string{"sessions", "--node", "x"},
			[]string{`no gateway "x" is known`, "micsctl nodes"}},
		"internal": {failing(connect.CodeInternal, "internal error"), []string{"nodes"}, []string{"internal error", "log"}},
		"escapes":  {failing(connect.CodeInternal, "a\x1b[2Jb"), []string{"nodes"}, []string{`a\x1b[2Jb`}},
	} {
		t.Run(name, func(t *testing.T) {
			got := run(t.Context(), term{}, append(tc.args, "--endpoint", tc.endpoint)...)
			if got.code != 1 || got.out != "" {
				t.Errorf("exit code %d, stdout %q; want 1 and nothing", got.code, got.out)
			}
			for _, w := range tc.want {
				if !strings.Contains(got.err, w) {
					t.Errorf("stderr %q lacks %q", got.err, w)
				}
			}
		})
	}
	t.Run("check", func(t *testing.T) {
		got := run(t.Context(), term{}, "check", "--endpoint", nobody)
		if got.code != 1 || !strings.Contains(got.out, "docs/runbook.md#control-plane-unreachable") || got.err != "" {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("version is no failure", func(t *testing.T) {
		got := run(t.Context(), term{}, "version", "--endpoint", nobody)
		if got.code != 0 || !strings.Contains(got.out, "Server: unavailable") {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("version of the client asks nobody", func(t *testing.T) {
		got := run(t.Context(), term{}, "version", "--client", "--endpoint", nobody)
		if got.code != 0 || got.out != "Client: dev\n" {
			t.Errorf("got %+v", got)
		}
	})
}

type textError struct{ s string }

func (e *textError) Error() string { return e.s }
