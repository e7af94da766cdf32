package tenant

import (
	"bytes"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// one returns the tenant demo of src.
func one(t *testing.T, src Source) *Tenant {
	t.Helper()
	if src.AuthMap == "" {
		src.AuthMap = `{"demo":"http://auth"}`
	}
	if src.Settings == (Settings{}) {
		src.Settings = DefaultSettings
	}
	r, err := New(src)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	tt, ok := r.Get("demo")
	if _, unknown := r.Get("Demo"); !ok || unknown || r.Len() != 1 {
		t.Fatal("lookup")
	}
	return tt
}

func TestDefaults(t *testing.T) {
	tt := one(t, Source{HookSecrets: `{"demo":"s1"}`})
	if got, want := *tt.Hooks(), (HookConfig{
		AuthBaseURL: "http://auth", AuthSecret: "s1", BaseURL: "http://auth", Secret: "s1",
		MaxConcurrency: 32, QueueTimeout: 10 * time.Millisecond, BreakerThreshold: 5, BreakerOpen: 5 * time.Second,
	}); got != want {
		t.Errorf("hooks %+v", got)
	}
	if tt.Name() != "demo" || tt.HeartbeatTimeout() != 30*time.Second || tt.OfflineTTL() != 30*time.Minute || !tt.CheckEnabled() ||
		tt.EventsRequired() || tt.OfflineHookPull() || tt.SignRequired() || tt.Removed() ||
		tt.MaxConnections() != 0 || tt.UserMaxConnections() != 0 || tt.MaxQPS() != 0 || tt.UserMaxQPS() != 0 {
		t.Errorf("defaults %+v", tt.now.Load())
	}
}

func TestLearnTakesWhatTheTenantSays(t *testing.T) {
	tt := one(t, Source{HookSecrets: `{"demo":"s1"}`})
	tt.Learn(&hookv1.TenantRuntimeConfig{
		HookBaseUrl: "https://hooks", TenantSecret: "s2", HeartbeatTimeoutSeconds: 20, OfflineBufferTtlSeconds: 60,
		TenantMaxConnections: 1, UserMaxConnections: 2, TenantMaxMessageQps: 3, UserMaxMessageQps: proto.Int32(4),
		HookMaxConcurrency: proto.Int32(9), HookQueueTimeoutMs: proto.Int32(0), HookBreakerFailureThreshold: proto.Int32(7), HookBreakerOpenMs: proto.Int32(800),
		HookSignRequired: proto.Bool(true), OfflineUseHookPull: proto.Bool(true), CheckMessageEnabled: proto.Bool(false), EventsRequired: proto.Bool(true),
	})
	if got, want := *tt.Hooks(), (HookConfig{
		AuthBaseURL: "http://auth", AuthSecret: "s1", BaseURL: "https://hooks", Secret: "s2", SignRequired: true,
		MaxConcurrency: 9, BreakerThreshold: 7, BreakerOpen: 800 * time.Millisecond,
	}); got != want {
		t.Errorf("hooks %+v", got)
	}
	if tt.HookBaseURL() != "https://hooks" || tt.Secret() != "s2" || tt.AuthSecret() != "s1" || !tt.SignRequired() ||
		tt.HeartbeatTimeout() != 20*time.Second || tt.OfflineTTL() != time.Minute || tt.CheckEnabled() || !tt.EventsRequired() || !tt.OfflineHookPull() ||
		tt.MaxConnections() != 1 || tt.UserMaxConnections() != 2 || tt.MaxQPS() != 3 || tt.UserMaxQPS() != 4 {
		t.Errorf("learnt %+v", tt.now.Load())
	}
	// What it does not say any more is the default again.
	tt.Learn(&hookv1.TenantRuntimeConfig{})
	if fresh := one(t, Source{HookSecrets: `{"demo":"s1"}`}); *tt.now.Load() != *fresh.now.Load() {
		t.Errorf("after an empty answer %+v", tt.now.Load())
	}
}

func TestLearnMakesANewPictureOnlyOfSomethingNew(t *testing.T) {
	tt := one(t, Source{})
	first := tt.Hooks()
	tt.Learn(nil)
	if tt.Hooks() != first {
		t.Error("nil changed the picture")
	}
	tt.Learn(&hookv1.TenantRuntimeConfig{TenantSecret: "a"})
	second, before := tt.Hooks(), *first
	if second == first || *first != before || second.Secret != "a" {
		t.Errorf("%+v became %+v", before, *second)
	}
	tt.Learn(&hookv1.TenantRuntimeConfig{TenantSecret: "a"})
	if tt.Hooks() != second {
		t.Error("the same answer made a new picture")
	}
}

func TestLearnClampsAndIgnores(t *testing.T) {
	for k, rule := range intRules {
		for said, want := range map[int32]optional[int]{
			int32(rule.max):              say(rule.max),
			int32(min(rule.min+1, 1000)): say(rule.min + 1),
			math.MaxInt32:                say(rule.max),
			math.MinInt32:                {},
			-1:                           {},
			int32(rule.min - 1):          {},
		} {
			c := &hookv1.TenantRuntimeConfig{}
			field := c.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(rule.name))
			c.ProtoReflect().Set(field, protoreflect.ValueOfInt32(said))
			if said == 0 && !field.HasPresence() {
				continue // unsaid
			}
			got, notes := learnt(c)
			odd := want != say(int(said))
			if got.ints[k] != want || (len(notes) == 1) != odd || odd && !strings.Contains(notes[0], rule.name) {
				t.Errorf("%s: %d: %+v, want %+v, notes %q", rule.name, said, got.ints[k], want, notes)
			}
		}
	}
	for _, bad := range []string{"ftp://x", "x", "http://", "http://u:hush@h?q", "http://u:hush@h#f", "http://h:0", "http://%zz", " http://h"} {
		got, notes := learnt(&hookv1.TenantRuntimeConfig{HookBaseUrl: bad, TenantMaxMessageQps: 7})
		if got.hookBaseURL != "" || got.ints[tenantQPS] != say(7) || len(notes) != 1 || !strings.Contains(notes[0], "hook_base_url") || strings.Contains(notes[0], "hush") {
			t.Errorf("%q: %+v, notes %q", bad, got, notes)
		}
	}
}

func TestOddConfigurationIsLoggedOnceAMinuteWithoutSecrets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		tt := one(t, Source{Log: slog.New(slog.NewJSONHandler(&log, nil))})
		say := func(n int32) int {
			tt.Learn(&hookv1.TenantRuntimeConfig{TenantSecret: "hush", HookBaseUrl: "x:hush", TenantMaxMessageQps: -n})
			return strings.Count(log.String(), "tenant_config_odd")
		}
		for i := range int32(30) {
			if n := say(i + 1); n != 1 {
				t.Fatalf("%d lines", n)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(31 * time.Second)
		if n := say(99); n != 2 {
			t.Fatalf("%d lines after a minute", n)
		}
		if text := log.String(); strings.Contains(text, "hush") || !strings.Contains(text, `"TenantId":"demo"`) ||
			!strings.Contains(text, "hook_base_url") || !strings.Contains(text, "tenant_max_message_qps") {
			t.Errorf("log %s", text)
		}
	})
}

// TestPrecedence: the operator's override, what the tenant said, the operator's
// default, for every value there is.
func TestPrecedence(t *testing.T) {
	settings := Settings{HookMaxConcurrency: 11, HookQueueTimeout: 12 * time.Millisecond, SignRequired: true}
	for k, rule := range intRules {
		var said, override values
		said.ints[k], override.ints[k] = say(rule.min+1), say(rule.min+2)
		def := decide(settings, entry{}, values{}).ints[k]
		for what, tc := range map[string]struct{ got, want int }{
			"said":     {decide(settings, entry{}, said).ints[k], rule.min + 1},
			"override": {decide(settings, entry{override: override}, values{}).ints[k], rule.min + 2},
			"both":     {decide(settings, entry{override: override}, said).ints[k], rule.min + 2},
		} {
			if tc.got != tc.want || def < rule.min || def > rule.max {
				t.Errorf("%s, %s: %d, want %d (default %d)", rule.name, what, tc.got, tc.want, def)
			}
		}
	}
	for k, name := range boolNames {
		for _, b := range []bool{false, true} {
			var said, override values
			said.bools[k], override.bools[k] = say(!b), say(b)
			if decide(settings, entry{override: override}, said).bools[k] != b || decide(settings, entry{}, override).bools[k] != b {
				t.Errorf("%s: %v does not win", name, b)
			}
		}
	}
	if h := decide(settings, entry{}, values{}).hooks; h.MaxConcurrency != 11 || h.QueueTimeout != 12*time.Millisecond || !h.SignRequired {
		t.Errorf("settings: %+v", h)
	}
	said := values{hookBaseURL: "http://said", secret: "said"}
	said.ints[hookConcurrency] = say(22)
	e := entry{authURL: "http://auth", authSecret: "auth", concurrency: 33}
	for what, tc := range map[string]struct {
		e    entry
		said values
		want [3]string
	}{
		"operators only":     {e, values{}, [3]string{"http://auth", "auth", "33"}},
		"the tenant said":    {e, said, [3]string{"http://said", "said", "22"}},
		"an override stands": {entry{authURL: "http://auth", override: values{hookBaseURL: "http://over"}}, said, [3]string{"http://over", "said", "22"}},
	} {
		h := decide(settings, tc.e, tc.said).hooks
		if got := [3]string{h.BaseURL, h.Secret, fmt.Sprint(h.MaxConcurrency)}; got != tc.want || h.AuthBaseURL != "http://auth" || h.AuthSecret != tc.e.authSecret {
			t.Errorf("%s: %+v", what, h)
		}
	}
}
