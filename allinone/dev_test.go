package allinone_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/allinone"
	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/testkit"
	mics "github.com/mics-im/mics/sdk/go"
)

// load is LoadConfig on free ports, with the environment env.
func load(t *testing.T, env map[string]string, args ...string) (allinone.Config, error) {
	t.Helper()
	args = append([]string{"--base-port=0", "--control-port=0", "--playground-port=0"}, args...)
	cfg, err := allinone.LoadConfig(args, func(name string) (string, bool) { v, ok := env[name]; return v, ok })
	cfg.LogWriter = io.Discard
	return cfg, err
}

// start runs a cluster until the test ends.
func start(t *testing.T, args ...string) *allinone.Dev {
	t.Helper()
	cfg, err := load(t, map[string]string{"DRAIN_TIMEOUT_SECONDS": "1"}, args...)
	if err != nil {
		t.Fatal(err)
	}
	d, err := allinone.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := d.Stop(ctx); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return d
}

// user is a connected client and what it has received.
type user struct {
	*mics.Client
	t   *testing.T
	got chan *mics.Delivery
}

func connect(t *testing.T, url, name string) *user {
	t.Helper()
	u := &user{t: t, got: make(chan *mics.Delivery, 64)}
	c, err := mics.New(mics.Options{
		URLs: []string{url}, Tenant: "demo", Device: "d",
		Token:      func(context.Context) (string, error) { return "valid:" + name, nil },
		OnDelivery: func(d *mics.Delivery) { u.got <- d },
	})
	if err != nil {
		t.Fatal(err)
	}
	u.Client = c
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := c.Connect(ctx); err != nil {
		t.Fatalf("connect %s: %v", name, err)
	}
	return u
}

func (u *user) send(m mics.Message) (mics.Ack, error) {
	ctx, cancel := context.WithTimeout(u.t.Context(), 30*time.Second)
	defer cancel()
	return u.Send(ctx, m)
}

func (u *user) wants(from, body string) {
	u.t.Helper()
	select {
	case d := <-u.got:
		if d.From != from || string(d.Body) != body {
			u.t.Errorf("got %q from %s, want %q from %s", d.Body, d.From, body, from)
		}
	case <-time.After(30 * time.Second):
		u.t.Errorf("%q from %s never came", body, from)
	}
}

func TestDemoTenantAcrossGateways(t *testing.T) {
	d := start(t)
	urls := d.URLs()
	if len(urls) != 2 || !d.Demo() || d.PlaygroundURL() != "" {
		t.Fatalf("gateways %v, demo %t, playground %q", urls, d.Demo(), d.PlaygroundURL())
	}
	ann, bob := connect(t, urls[0], "ann"), connect(t, urls[1], "bob")
	if ann.State().Node == bob.State().Node {
		t.Errorf("both are at %s", ann.State().Node)
	}
	if _, err := ann.send(mics.Message{To: "bob", Body: []byte("hello")}); err != nil {
		t.Fatal(err)
	}
	bob.wants("ann", "hello")
	if _, err := bob.send(mics.Message{Group: "demo", Body: []byte("hi all")}); err != nil {
		t.Fatal(err)
	}
	ann.wants("bob", "hi all")
	bob.wants("bob", "hi all")
	var refused *mics.SendError
	if _, err := ann.send(mics.Message{To: "bob", Body: []byte("deny: too rude")}); !errors.As(err, &refused) || refused.Reason != "too rude" {
		t.Errorf("a denied message: %v", err)
	}
	ack, err := ann.send(mics.Message{To: "carl", Body: []byte("for later")})
	if err != nil || ack.OfflineBuffered != 1 {
		t.Errorf("to somebody who is offline: %+v, %v", ack, err)
	}
	connect(t, urls[1], "carl").wants("ann", "for later")
	res, err := http.Get(d.ControlURL() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if res.StatusCode != http.StatusOK {
		t.Errorf("control plane: %s", res.Status)
	}
}

func TestRefusesTokens(t *testing.T) {
	d := start(t, "--gateways=1")
	c, err := mics.New(mics.Options{
		URLs: d.URLs(), Tenant: "demo", Device: "d",
		Token: func(context.Context) (string, error) { return "ann", nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := c.Connect(ctx); !errors.Is(err, mics.ErrUnauthorized) {
		t.Errorf("connected with a bad token: %v", err)
	}
}

func TestPlayground(t *testing.T) {
	port := testkit.FreePort(t)
	d := start(t, "--gateways=1", "--playground-port", strconv.Itoa(port))
	res, err := http.Get(d.PlaygroundURL() + "config.json")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if err != nil || !strings.Contains(string(body), d.URLs()[0]) {
		t.Errorf("config %s, %v", body, err)
	}
}

func TestTwoClustersInOneProcess(t *testing.T) {
	a, b := start(t, "--gateways=1"), start(t, "--gateways=1")
	if slices.Equal(a.URLs(), b.URLs()) {
		t.Fatal("same addresses")
	}
	ann, bob := connect(t, a.URLs()[0], "ann"), connect(t, b.URLs()[0], "bob")
	if ack, err := ann.send(mics.Message{To: "bob", Body: []byte("x")}); err != nil || ack.OfflineBuffered != 1 {
		t.Errorf("ack %+v, %v: bob is in the other cluster", ack, err)
	}
	if len(bob.got) != 0 {
		t.Error("the clusters are one")
	}
}

func TestSettingsAreChecked(t *testing.T) {
	for _, args := range [][]string{
		{"--gateways=0"}, {"--gateways=lots"}, {"--no-such-setting=1"}, {"--max-message-bytes=none"}, {"--drain-timeout-seconds=-1"},
		{"--listen=:1"}, {"stray"},
	} {
		cfg, err := load(t, nil, args...)
		if err == nil {
			var d *allinone.Dev
			if d, err = allinone.New(t.Context(), cfg); err == nil {
				_ = d.Stop(t.Context())
			}
		}
		if !errors.Is(err, config.ErrInvalid) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := allinone.New(t.Context(), allinone.Config{}); err == nil {
		t.Error("a Config made by hand was taken")
	}
}
