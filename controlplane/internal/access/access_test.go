package access

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/controlplane/internal/store"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func sum(token string) string {
	h := sha256.Sum256([]byte(token))
	return hex.EncodeToString(h[:])
}

type operatorKey struct{}

// control is a ControlService that knows who asks.
type control struct {
	controlv1connect.UnimplementedControlServiceHandler
}

func (control) Version(ctx context.Context, _ *connect.Request[controlv1.VersionRequest]) (*connect.Response[controlv1.VersionResponse], error) {
	return connect.NewResponse(&controlv1.VersionResponse{NodeId: fmt.Sprint(ctx.Value(operatorKey{}))}), nil
}

func (control) WatchNodes(_ context.Context, _ *connect.Request[controlv1.WatchNodesRequest], s *connect.ServerStream[controlv1.WatchNodesResponse]) error {
	return s.Send(&controlv1.WatchNodesResponse{})
}

func (control) Kick(_ context.Context, r *connect.Request[controlv1.KickRequest]) (*connect.Response[controlv1.KickResponse], error) {
	switch r.Msg.GetUserId() {
	case "nobody":
		return nil, fault.Wrap(fault.NotFound, "no such user", errors.New("a cause that is nobody's business"))
	case "panic":
		panic("boom")
	}
	return connect.NewResponse(&controlv1.KickResponse{Kicked: 1}), nil
}

func (control) RedriveDLQ(_ context.Context, _ *connect.Request[controlv1.RedriveDLQRequest], s *connect.ServerStream[controlv1.RedriveDLQResponse]) error {
	return s.Send(&controlv1.RedriveDLQResponse{})
}

type logText struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// world is a guarded server.
type world struct {
	t     *testing.T
	base  string
	audit *Audit
	log   *logText
	file  string
	http  *http.Client
	guard *Guard
}

func serve(t *testing.T, operators string) *world {
	t.Helper()
	w := &world{t: t, log: &logText{}, http: rpc.NewClient()}
	t.Cleanup(w.http.CloseIdleConnections)
	tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: w.log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tel.Shutdown(context.Background()) })
	var c Config
	if operators != "" {
		w.file = filepath.Join(t.TempDir(), "operators.yaml")
		w.write(operators)
		c.File = w.file
	}
	st := store.NewMemory()
	t.Cleanup(st.Close)
	w.audit = NewAudit("cp1", st, tel)
	w.guard, err = New(Options{Config: c, Audit: w.audit, Telemetry: tel, As: func(ctx context.Context, name string) context.Context {
		return context.WithValue(ctx, operatorKey{}, name)
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.guard.Close(); err != nil {
			t.Error(err)
		}
	})
	mux := http.NewServeMux()
	mux.Handle(controlv1connect.NewControlServiceHandler(control{}, append(rpc.HandlerOptions(), connect.WithInterceptors(w.guard.Interceptor()))...))
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("page")) })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := w.guard.Server(ln, mux)
	srv.Start()
	t.Cleanup(func() { _ = srv.Stop(context.Background()) })
	w.base = "http://" + srv.Addr()
	return w
}

func (w *world) write(text string) {
	w.t.Helper()
	if err := os.WriteFile(w.file+".new", []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(w.file+".new", w.file); err != nil {
		w.t.Fatal(err)
	}
}

// with returns a client that shows the token.
func (w *world) with(token string) controlv1connect.ControlServiceClient {
	return controlv1connect.NewControlServiceClient(w.http, w.base, append(rpc.ClientOptions(), connect.WithInterceptors(bearerOf(token)))...)
}

type bearerOf string

func (b bearerOf) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		if b != "" {
			r.Header().Set("Authorization", "Bearer "+string(b))
		}
		return next(ctx, r)
	}
}

func (b bearerOf) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		c := next(ctx, spec)
		if b != "" {
			c.RequestHeader().Set("Authorization", "Bearer "+string(b))
		}
		return c
	}
}

func (bearerOf) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func version(t *testing.T, c controlv1connect.ControlServiceClient) (string, error) {
	t.Helper()
	res, err := c.Version(t.Context(), connect.NewRequest(&controlv1.VersionRequest{}))
	if err != nil {
		return "", err
	}
	return res.Msg.GetNodeId(), nil
}

func kick(t *testing.T, c controlv1connect.ControlServiceClient, user string) error {
	t.Helper()
	_, err := c.Kick(t.Context(), connect.NewRequest(&controlv1.KickRequest{TenantId: "acme", UserId: user}))
	return err
}

func two() string {
	return "operators: [{name: ann, role: operator, token_sha256: [" + sum("ann-old") + ", " + sum("ann-new") + "]}, {name: vic, role: viewer, token_sha256: " + sum("vic") + "}]"
}

func TestRoles(t *testing.T) {
	w := serve(t, two())
	ann, vic, stranger, nobody := w.with("ann-new"), w.with("vic"), w.with("else"), w.with("")
	for who, c := range map[string]controlv1connect.ControlServiceClient{"ann": ann, "vic": vic} {
		if got, err := version(t, c); err != nil || got != who {
			t.Errorf("%s looks: %q, %v", who, got, err)
		}
		s, err := c.WatchNodes(t.Context(), connect.NewRequest(&controlv1.WatchNodesRequest{}))
		if err != nil || !s.Receive() {
			t.Errorf("%s watches: %v", who, err)
		}
		_ = s.Close()
	}
	if _, err := version(t, w.with("ann-old")); err != nil {
		t.Errorf("an operator's other token: %v", err)
	}
	if err := kick(t, ann, "bob"); err != nil {
		t.Errorf("an operator kicks: %v", err)
	}
	if err := kick(t, vic, "bob"); fault.KindOf(err) != fault.PermissionDenied || !strings.Contains(err.Error(), "vic is a viewer") {
		t.Errorf("a viewer kicks: %v", err)
	}
	redrive, err := vic.RedriveDLQ(t.Context(), connect.NewRequest(&controlv1.RedriveDLQRequest{Request: &routerv1.RedriveDLQRequest{TenantId: "acme"}}))
	if err != nil {
		t.Fatal(err)
	}
	if redrive.Receive() || connect.CodeOf(redrive.Err()) != connect.CodePermissionDenied {
		t.Errorf("a viewer redrives: %v", redrive.Err())
	}
	_ = redrive.Close()
	for _, c := range []controlv1connect.ControlServiceClient{stranger, nobody} {
		if _, err := version(t, c); fault.KindOf(err) != fault.Unauthenticated {
			t.Errorf("nobody known looks: %v", err)
		}
		if err := kick(t, c, "bob"); fault.KindOf(err) != fault.Unauthenticated {
			t.Errorf("nobody known kicks: %v", err)
		}
	}
	for path, want := range map[string]int{"/healthz": 200, "/": 401, "/index.html": 401} {
		res, err := http.Get(w.base + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %d", path, res.StatusCode)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	log := w.log.String()
	for _, secret := range []string{"ann-new", "else", sum("vic")} {
		if strings.Contains(log, secret) {
			t.Errorf("%s is in the log", secret)
		}
	}
	if !strings.Contains(log, "operator_unauthenticated") {
		t.Error("nobody known is not logged")
	}
}

func TestEveryChangeIsRecorded(t *testing.T) {
	w := serve(t, two())
	ann, vic := w.with("ann-new"), w.with("vic")
	_ = kick(t, ann, "bob")
	_ = kick(t, ann, "nobody")
	_ = kick(t, vic, "bob")
	_ = kick(t, ann, "panic")
	_ = kick(t, w.with("else"), "bob") // in the log only
	_, _ = version(t, ann)             // no change
	for _, c := range []controlv1connect.ControlServiceClient{vic, ann} {
		s, err := c.RedriveDLQ(t.Context(), connect.NewRequest(&controlv1.RedriveDLQRequest{Request: &routerv1.RedriveDLQRequest{TenantId: "acme"}}))
		if err != nil {
			t.Fatal(err)
		}
		for s.Receive() { // to its end
		}
		_ = s.Close()
	}
	testkit.Eventually(t, "the last one is recorded", func() bool {
		all, err := w.audit.List(t.Context(), time.Time{}, 100)
		return err == nil && len(all) == 6
	})
	all, _ := w.audit.List(t.Context(), time.Time{}, 100)
	want := []struct{ who, role, what, outcome, detail, arguments string }{
		{"ann", "operator", "RedriveDLQ", "ok", "", `{"request":{"tenant_id":"acme"}}`},
		{"vic", "viewer", "RedriveDLQ", "permission_denied", "vic is a viewer", `{"request":{"tenant_id":"acme"}}`},
		{"ann", "operator", "Kick", "internal", "panicked", `{"tenant_id":"acme","user_id":"panic"}`},
		{"vic", "viewer", "Kick", "permission_denied", "vic is a viewer", `{"tenant_id":"acme","user_id":"bob"}`},
		{"ann", "operator", "Kick", "not_found", "no such user", `{"tenant_id":"acme","user_id":"nobody"}`},
		{"ann", "operator", "Kick", "ok", "", `{"tenant_id":"acme","user_id":"bob"}`},
	}
	for i, x := range want {
		e := all[i]
		if e.Who != x.who || e.Role != x.role || !strings.HasSuffix(e.Procedure, "/"+x.what) || e.Outcome != x.outcome ||
			!strings.Contains(e.Detail, x.detail) || strings.Contains(e.Detail, "cause") || e.Node != "cp1" || !strings.HasPrefix(e.From, "127.0.0.1:") || e.At.IsZero() {
			t.Errorf("entry %d: %+v, want %+v", i, e, x)
		}
		if string(e.Arguments) != x.arguments {
			t.Errorf("entry %d: arguments %s", i, e.Arguments)
		}
	}
	if got := strings.Count(w.log.String(), `"msg":"operator_change"`); got != len(want) {
		t.Errorf("%d lines in the log", got)
	}
}

func TestOperatorsComeAndGo(t *testing.T) {
	w := serve(t, two())
	ann := w.with("ann-new")
	if err := kick(t, ann, "bob"); err != nil {
		t.Fatal(err)
	}
	w.write("operators: [{name: ann, role: viewer, token_sha256: " + sum("ann-new") + "}]")
	testkit.Eventually(t, "ann is a viewer now", func() bool { return fault.KindOf(kick(t, ann, "bob")) == fault.PermissionDenied })
	w.write("operators: [{name: ann}]")
	testkit.Eventually(t, "a file with a mistake is refused", func() bool { return strings.Contains(w.log.String(), "operators_file_refused") })
	if _, err := version(t, ann); err != nil {
		t.Errorf("and changed something: %v", err)
	}
}

func TestWithoutOperatorsWhoeverComesIsOne(t *testing.T) {
	w := serve(t, "")
	if err := kick(t, w.with(""), "bob"); err != nil {
		t.Fatal(err)
	}
	if all, err := w.audit.List(t.Context(), time.Time{}, 1); err != nil || len(all) != 1 || all[0].Who != anonymous {
		t.Errorf("%+v, %v", all, err)
	}
	req := connect.NewRequest(&controlv1.KickRequest{})
	req.Header().Set("Sec-Fetch-Site", "cross-site")
	if _, err := w.with("").Kick(t.Context(), req); connect.CodeOf(err) == connect.CodeUnknown || err == nil {
		t.Errorf("another site's page: %v", err)
	}
}

// down is a store that does not answer.
type down struct{}

func (down) Append(context.Context, store.Entry) error { return store.ErrUnavailable }
func (down) Tail(context.Context, string, time.Time, int) ([]store.Record, error) {
	return nil, store.ErrUnavailable
}

func TestAnEntryThatIsNotKeptIsLogged(t *testing.T) {
	log := &logText{}
	tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: log})
	if err != nil {
		t.Fatal(err)
	}
	defer tel.Shutdown(context.Background()) //nolint:errcheck // of a test
	a := NewAudit("cp", down{}, tel)
	a.Record(t.Context(), Entry{Who: "ann", Procedure: "/x"})
	if a.failed.Value() != 1 || !strings.Contains(log.String(), "operator_change") || !strings.Contains(log.String(), "audit_not_kept") {
		t.Error(log.String())
	}
}
