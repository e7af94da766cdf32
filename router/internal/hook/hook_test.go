package hook

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	"github.com/mics-im/mics/router/internal/tenant"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func newClient(t *testing.T) *Client { return newLoggingClient(t, io.Discard) }

func newLoggingClient(t *testing.T, log io.Writer) *Client {
	t.Helper()
	tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: log})
	if err != nil {
		t.Fatal(err)
	}
	c := New(tel)
	t.Cleanup(func() {
		c.Close()
		_ = tel.Shutdown(context.Background())
	})
	return c
}

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.Start()
	t.Cleanup(s.Close)
	return s.URL
}

func newTenant(t *testing.T, name, url, secret string) *tenant.Tenant {
	t.Helper()
	secrets := "{}"
	if secret != "" {
		secrets = fmt.Sprintf(`{%q:%q}`, name, secret)
	}
	settings := tenant.DefaultSettings
	settings.SignRequired = true
	r, err := tenant.New(tenant.Source{AuthMap: fmt.Sprintf(`{%q:%q}`, name, url), HookSecrets: secrets, Settings: settings})
	if err != nil {
		t.Fatal(err)
	}
	tt, _ := r.Get(name)
	return tt
}

func resultOf(err error) Result {
	if err == nil {
		return OK
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return Result(err.Error())
	}
	return e.Result
}

func TestSignaturesMatchTheGoldenVectors(t *testing.T) {
	text, err := os.ReadFile("../../../proto/testdata/hooks.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct{ Name, Message, Hex, Direction, Secret, Sign string }
	if err := json.Unmarshal(text, &vectors); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, v := range vectors {
		if v.Direction != "request" || v.Secret == "" {
			continue
		}
		req, ok := map[string]request{
			"mics.hook.v1.AuthRequest": &hookv1.AuthRequest{}, "mics.hook.v1.CheckMessageRequest": &hookv1.CheckMessageRequest{},
			"mics.hook.v1.GetGroupMembersRequest": &hookv1.GetGroupMembersRequest{}, "mics.hook.v1.GetOfflineMessagesRequest": &hookv1.GetOfflineMessagesRequest{},
		}[v.Message]
		raw, err := hex.DecodeString(v.Hex)
		if !ok || err != nil || proto.Unmarshal(raw, req) != nil {
			t.Fatalf("%s: cannot be read", v.Name)
		}
		if got, err := Sign(v.Secret, req); err != nil || got != v.Sign {
			t.Errorf("%s: sign %q, want %q, %v", v.Name, got, v.Sign, err)
		}
		n++
	}
	if n < 4 {
		t.Fatalf("only %d signed requests in the vectors", n)
	}
}

func TestASignedCallArrivesAndIsAnswered(t *testing.T) {
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		var req hookv1.GetGroupMembersRequest
		if err := proto.Unmarshal(raw, &req); err != nil || r.URL.Path != "/im/get-group-members" || r.Header.Get("Content-Type") != contentType {
			http.Error(w, "bad", http.StatusBadRequest)
			return
		}
		got := req.Meta.Sign
		if want, _ := Sign("hush", &req); got != want || req.Meta.TenantId != "demo" || req.Meta.RequestId == "" || req.GroupId != "g" {
			http.Error(w, "sign", http.StatusForbidden)
			return
		}
		out, _ := proto.Marshal(&hookv1.GetGroupMembersResponse{UserIds: []string{"ann", "bob", "ann", "", "carl"}})
		_, _ = w.Write(out)
	})
	c := newClient(t)
	got, err := c.Members(t.Context(), newTenant(t, "demo", base+"/im", "hush"), "g")
	if err != nil || !slices.Equal(got, []string{"ann", "bob", "carl"}) {
		t.Fatalf("%v, %v", got, err)
	}
	if _, err := c.Members(t.Context(), newTenant(t, "other", base+"/im", ""), "g"); !errors.Is(err, ErrUnsigned) {
		t.Fatalf("an unsigned call was not refused: %v", err)
	}
}

func TestEveryFailureHasItsName(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	for want, h := range map[Result]http.HandlerFunc{
		HTTP5xx: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		HTTP4xx: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) },
		Timeout: func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			select {
			case <-r.Context().Done():
			case <-release:
			}
		},
		BadResponse: func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("\xff\xffnonsense")) },
		Network:     nil,
	} {
		base := "http://" + closed.Addr().String()
		if h != nil {
			base = serve(t, h)
		}
		c := newClient(t)
		_, err := c.Authenticate(t.Context(), newTenant(t, "demo", base, "s"), "token", "d")
		if resultOf(err) != want || c.requests[Auth][want].Value() != 1 {
			t.Errorf("want %s: %v", want, err)
		}
	}
	redirect := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
	})
	huge := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		for range maxResponse>>20 + 1 {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	})
	for _, base := range []string{redirect, huge} {
		c := newClient(t)
		if _, err := c.Authenticate(t.Context(), newTenant(t, "demo", base, "s"), "", ""); resultOf(err) != BadResponse && resultOf(err) != Timeout {
			t.Errorf("redirect or huge answer: %v", err)
		}
	}
}

func TestTheBreakerOpensAfterFiveFailuresAndIsTheTenantsOwn(t *testing.T) {
	var calls atomic.Int32
	down := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	up := serve(t, func(w http.ResponseWriter, _ *http.Request) {})
	c := newClient(t)
	bad, good := newTenant(t, "bad", down, "s"), newTenant(t, "good", up, "s")
	for i := range 8 {
		want := HTTP5xx
		if i >= 5 {
			want = CircuitOpen
		}
		if _, err := c.Authenticate(t.Context(), bad, "", ""); resultOf(err) != want {
			t.Fatalf("call %d: %v, want %s", i, err, want)
		}
	}
	if calls.Load() != 5 {
		t.Fatalf("%d calls reached the tenant", calls.Load())
	}
	if _, err := c.Authenticate(t.Context(), good, "", ""); err != nil {
		t.Fatalf("another tenant suffers: %v", err)
	}
	if _, err := c.Check(t.Context(), bad, nil); resultOf(err) != HTTP5xx {
		t.Fatalf("another hook of the tenant suffers: %v", err)
	}
}

func TestTheBulkheadRejectsAndIsTheTenantsOwn(t *testing.T) {
	arrived, release := make(chan struct{}, 64), make(chan struct{})
	slow := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	up := serve(t, func(http.ResponseWriter, *http.Request) {})
	c := newClient(t)
	busy, other := newTenant(t, "busy", slow, "s"), newTenant(t, "other", up, "s")
	one, wait := int32(1), int32(1)
	busy.Learn(&hookv1.TenantRuntimeConfig{HookMaxConcurrency: &one, HookQueueTimeoutMs: &wait, TenantSecret: "s"})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(release)
	wg.Go(func() { _, _ = c.Check(context.Background(), busy, nil) })
	select {
	case <-arrived:
	case <-time.After(30 * time.Second):
		t.Fatal("the first call never arrived")
	}
	if _, err := c.Check(t.Context(), busy, nil); resultOf(err) != QueueRejected || c.rejected[CheckMessage].Value() != 1 {
		t.Fatalf("a second call: %v", err)
	}
	if _, err := c.Check(t.Context(), other, nil); err != nil {
		t.Fatalf("another tenant suffers: %v", err)
	}
}
