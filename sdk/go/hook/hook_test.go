package hook

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = "s3cret"

// recording implements every hook and keeps the last request.
func recording(seen *Request) Options {
	return Options{
		Secret: secret,
		Auth: func(_ context.Context, r *AuthRequest) (*AuthResponse, error) {
			*seen = r
			return Accept("ann", nil), nil
		},
		CheckMessage: func(_ context.Context, r *CheckMessageRequest) (*CheckMessageResponse, error) {
			*seen = r
			return Allow(), nil
		},
		GroupMembers: func(_ context.Context, r *GetGroupMembersRequest) ([]string, error) {
			*seen = r
			return []string{"ann", "bob"}, nil
		},
		OfflineMessages: func(_ context.Context, r *GetOfflineMessagesRequest) (*GetOfflineMessagesResponse, error) {
			*seen = r
			return &GetOfflineMessagesResponse{Ok: true, Messages: []*Message{{MsgId: "1"}}}, nil
		},
	}
}

func handler(t testing.TB, o Options) *Handler {
	t.Helper()
	h, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func post(h http.Handler, name string, body []byte) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/base/"+name, bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/protobuf")
	return serve(h, r)
}

func serve(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

func meta() *hookv1.HookMeta {
	return &hookv1.HookMeta{TenantId: "acme", RequestId: "r-1", TimestampMs: time.Now().UnixMilli()}
}

func encode(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// signed encodes a request after signing it.
func signed(t testing.TB, r Request, secret string) []byte {
	t.Helper()
	if err := Sign(r, secret); err != nil {
		t.Fatal(err)
	}
	return encode(t, r)
}

func TestAnswers(t *testing.T) {
	var seen Request
	h := handler(t, recording(&seen))
	for name, c := range map[string]struct {
		req  Request
		into proto.Message
		want proto.Message
	}{
		NameAuth:         {&AuthRequest{Meta: meta(), Token: "t"}, &AuthResponse{}, &AuthResponse{Ok: true, UserId: "ann"}},
		NameCheckMessage: {&CheckMessageRequest{Meta: meta(), Message: &Message{MsgBody: []byte("b")}}, &CheckMessageResponse{}, &CheckMessageResponse{Allow: true}},
		NameGroupMembers: {&GetGroupMembersRequest{Meta: meta(), GroupId: "g"}, &hookv1.GetGroupMembersResponse{}, &hookv1.GetGroupMembersResponse{UserIds: []string{"ann", "bob"}}},
		NameOfflineMessages: {&GetOfflineMessagesRequest{Meta: meta(), UserId: "ann"}, &GetOfflineMessagesResponse{},
			&GetOfflineMessagesResponse{Ok: true, Messages: []*Message{{MsgId: "1"}}}},
	} {
		rec := post(h, name, signed(t, c.req, secret))
		if rec.Code != http.StatusOK || rec.Header().Get("Content-Type") != "application/protobuf" {
			t.Errorf("%s: %d %v: %s", name, rec.Code, rec.Header(), rec.Body)
			continue
		}
		if err := proto.Unmarshal(rec.Body.Bytes(), c.into); err != nil || !proto.Equal(c.into, c.want) {
			t.Errorf("%s: %v, %v, want %v", name, c.into, err, c.want)
		}
		if !proto.Equal(seen, c.req) {
			t.Errorf("%s: the tenant got %v, want %v", name, seen, c.req)
		}
	}
}

func TestRefusals(t *testing.T) {
	var seen Request
	o := recording(&seen)
	o.GroupMembers, o.MaxRequestBytes = nil, 200
	h := handler(t, o)
	good := signed(t, &AuthRequest{Meta: meta(), Token: "t"}, secret)
	for name, c := range map[string]struct {
		method, path, kind string
		body               []byte
		want               int
	}{
		"good":                    {want: http.StatusOK},
		"good, with a charset":    {kind: "application/protobuf; charset=binary", want: http.StatusOK},
		"good, old type":          {kind: "application/x-protobuf", want: http.StatusOK},
		"good, at the root":       {path: "/auth", want: http.StatusOK},
		"unknown hook":            {path: "/base/authorize", want: http.StatusNotFound},
		"no hook":                 {path: "/base/auth/", want: http.StatusNotFound},
		"get":                     {method: http.MethodGet, want: http.StatusMethodNotAllowed},
		"not implemented":         {path: "/base/get-group-members", want: http.StatusNotImplemented},
		"JSON":                    {kind: "application/json", want: http.StatusUnsupportedMediaType},
		"no type":                 {kind: "-", want: http.StatusUnsupportedMediaType},
		"garbage":                 {body: []byte("hello"), want: http.StatusBadRequest},
		"no UTF-8":                {body: []byte{0x12, 0x01, 0xff}, want: http.StatusBadRequest},
		"as large as may be":      {body: bytes.Repeat([]byte{0x7f}, 200), want: http.StatusBadRequest},
		"too large":               {body: bytes.Repeat([]byte{0x7f}, 201), want: http.StatusRequestEntityTooLarge},
		"empty":                   {body: []byte{}, want: http.StatusUnauthorized},
		"unsigned":                {body: encode(t, &AuthRequest{Meta: meta(), Token: "t"}), want: http.StatusUnauthorized},
		"signed by somebody else": {body: signed(t, &AuthRequest{Meta: meta()}, "theirs"), want: http.StatusUnauthorized},
	} {
		seen = nil
		if c.method == "" {
			c.method = http.MethodPost
		}
		if c.path == "" {
			c.path = "/base/auth"
		}
		if c.body == nil {
			c.body = good
		}
		r := httptest.NewRequest(c.method, c.path, bytes.NewReader(c.body))
		switch c.kind {
		case "":
			r.Header.Set("Content-Type", "application/protobuf")
		case "-":
		default:
			r.Header.Set("Content-Type", c.kind)
		}
		rec := serve(h, r)
		if rec.Code != c.want || (seen != nil) != (c.want == http.StatusOK) {
			t.Errorf("%s: status %d, want %d; the tenant got %v", name, rec.Code, c.want, seen)
		}
		if c.want != http.StatusOK && strings.TrimSpace(rec.Body.String()) == "" {
			t.Errorf("%s: nothing says why", name)
		}
		if c.want == http.StatusMethodNotAllowed && rec.Header().Get("Allow") != "POST" {
			t.Errorf("%s: Allow: %q", name, rec.Header().Get("Allow"))
		}
	}
	cutOff := httptest.NewRequest(http.MethodPost, "/auth", io.MultiReader(bytes.NewReader(good[:3]), errorReader{}))
	cutOff.Header.Set("Content-Type", "application/protobuf")
	if rec := serve(h, cutOff); rec.Code != http.StatusBadRequest {
		t.Errorf("cut off: status %d", rec.Code)
	}
}

type errorReader struct{}

func (errorReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestFailuresOfTheTenant(t *testing.T) {
	var log bytes.Buffer
	cases := map[string]func(context.Context, *AuthRequest) (*AuthResponse, error){
		"error":       func(context.Context, *AuthRequest) (*AuthResponse, error) { return nil, errors.New("hunter2") },
		"panic":       func(context.Context, *AuthRequest) (*AuthResponse, error) { panic("hunter2") },
		"nil":         func(context.Context, *AuthRequest) (*AuthResponse, error) { return nil, nil },
		"no user":     func(context.Context, *AuthRequest) (*AuthResponse, error) { return Accept("", nil), nil },
		"not encoded": func(context.Context, *AuthRequest) (*AuthResponse, error) { return Refuse("\xff"), nil },
	}
	for name, f := range cases {
		log.Reset()
		h := handler(t, Options{Secret: secret, Auth: f, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		rec := post(h, NameAuth, signed(t, &AuthRequest{Meta: meta(), Token: "the-token"}, secret))
		if rec.Code != http.StatusInternalServerError || strings.Contains(rec.Body.String(), "hunter2") {
			t.Errorf("%s: %d %s", name, rec.Code, rec.Body)
		}
		if !strings.Contains(log.String(), "hook_failed") || strings.Contains(log.String(), "the-token") || strings.Contains(log.String(), secret) {
			t.Errorf("%s: log %s", name, log.String())
		}
	}
	abort := func(context.Context, *AuthRequest) (*AuthResponse, error) { panic(http.ErrAbortHandler) }
	defer func() {
		if p := recover(); p != any(http.ErrAbortHandler) {
			t.Errorf("recovered %v", p)
		}
	}()
	post(handler(t, Options{AllowUnsigned: true, Auth: abort}), NameAuth, nil)
}

// TestAcceptedConfig: a tenant without CheckMessage is not asked, unless it
// said something else.
func TestAcceptedConfig(t *testing.T) {
	shared := &RuntimeConfig{UserMaxConnections: 3}
	check := func(context.Context, *CheckMessageRequest) (*CheckMessageResponse, error) { return Allow(), nil }
	for name, c := range map[string]struct {
		cfg   *RuntimeConfig
		check func(context.Context, *CheckMessageRequest) (*CheckMessageResponse, error)
		want  *RuntimeConfig
	}{
		"none":           {nil, nil, &RuntimeConfig{CheckMessageEnabled: proto.Bool(false)}},
		"some":           {shared, nil, &RuntimeConfig{UserMaxConnections: 3, CheckMessageEnabled: proto.Bool(false)}},
		"said":           {&RuntimeConfig{CheckMessageEnabled: proto.Bool(true)}, nil, &RuntimeConfig{CheckMessageEnabled: proto.Bool(true)}},
		"hooks are away": {&RuntimeConfig{HookBaseUrl: "http://other/"}, nil, &RuntimeConfig{HookBaseUrl: "http://other/"}},
		"implemented":    {shared, check, shared},
	} {
		h := handler(t, Options{
			AllowUnsigned: true, CheckMessage: c.check,
			Auth: func(context.Context, *AuthRequest) (*AuthResponse, error) { return Accept("ann", c.cfg), nil },
		})
		res := &AuthResponse{}
		if err := proto.Unmarshal(post(h, NameAuth, nil).Body.Bytes(), res); err != nil || !proto.Equal(res.GetConfig(), c.want) {
			t.Errorf("%s: %v, %v, want %v", name, res.GetConfig(), err, c.want)
		}
	}
	if shared.CheckMessageEnabled != nil {
		t.Error("the tenant's own configuration was written to")
	}
}

func TestTraceParent(t *testing.T) {
	const good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	var got string
	h := handler(t, Options{AllowUnsigned: true, Auth: func(ctx context.Context, _ *AuthRequest) (*AuthResponse, error) {
		got = TraceParent(ctx)
		return Refuse(""), nil
	}})
	for header, taken := range map[string]bool{
		good: true, "": false, "00": false, good + "-more": false, "01" + good[2:] + "-more": true, "01" + good[2:] + "more": false,
		"ff" + good[2:]: false, strings.ToUpper(good): false, "00-" + strings.Repeat("0", 32) + good[35:]: false,
		good[:36] + strings.Repeat("0", 16) + good[52:]: false, strings.ReplaceAll(good, "-", "_"): false,
		"01" + good[2:] + "-" + strings.Repeat("x", 300): false,
	} {
		got = "unset"
		r := httptest.NewRequest(http.MethodPost, "/auth", nil)
		r.Header.Set("Content-Type", "application/protobuf")
		r.Header.Set("traceparent", header)
		serve(h, r)
		if want := map[bool]string{true: header}[taken]; got != want {
			t.Errorf("%q: %q", header, got)
		}
	}
}

func TestNewRefusesNonsense(t *testing.T) {
	var seen Request
	good := recording(&seen)
	for name, change := range map[string]func(*Options){
		"no secret":   func(o *Options) { o.Secret = "" },
		"two secrets": func(o *Options) { o.Secrets = func(context.Context, string) ([]string, error) { return nil, nil } },
		"no hook":     func(o *Options) { *o = Options{Secret: secret} },
	} {
		o := good
		change(&o)
		if _, err := New(o); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if err := Sign(&AuthRequest{}, secret); err == nil {
		t.Error("signed a request without a meta")
	}
	if err := Sign(&AuthRequest{Meta: meta()}, ""); !errors.Is(err, ErrNoSecret) {
		t.Errorf("signed with nothing: %v", err)
	}
	if err := SignEvent(&hookv1.MqEvent{}, ""); !errors.Is(err, ErrNoSecret) {
		t.Errorf("signed with nothing: %v", err)
	}
	if names := slices.Sorted(maps.Keys(handler(t, good).hooks)); !slices.Equal(names, []string{"auth", "check-message", "get-group-members", "get-offline-messages"}) {
		t.Errorf("hooks %v", names)
	}
}
