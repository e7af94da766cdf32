package tenant

import (
	"strings"
	"testing"
	"time"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	"google.golang.org/protobuf/proto"
)

func one(t *testing.T) *Tenant {
	t.Helper()
	r, err := New(Source{AuthMap: `{"demo":"http://auth"}`, HookSecrets: `{"demo":"s1"}`, MaxConcurrency: `{"demo":4}`, Settings: DefaultSettings})
	if err != nil {
		t.Fatal(err)
	}
	tt, ok := r.Get("demo")
	if _, unknown := r.Get("Demo"); !ok || unknown {
		t.Fatal("lookup")
	}
	return tt
}

func TestDefaultsThenWhatTheTenantSaid(t *testing.T) {
	tt := one(t)
	if tt.HookURL() != "http://auth" || tt.Secret() != "s1" || tt.MaxConcurrency() != 4 || tt.HeartbeatTimeout() != 30*time.Second ||
		!tt.CheckEnabled() || tt.OfflineTTL() != DefaultOfflineTTL || tt.MaxQPS() != 0 || tt.SignRequired() {
		t.Fatalf("defaults of %+v", tt)
	}
	if err := tt.Learn(&hookv1.TenantRuntimeConfig{
		HookBaseUrl: "https://hooks", TenantSecret: "s2", HeartbeatTimeoutSeconds: 1 << 30, OfflineBufferTtlSeconds: -1,
		TenantMaxMessageQps: -5, CheckMessageEnabled: proto.Bool(false), HookMaxConcurrency: proto.Int32(9), HookSignRequired: proto.Bool(true),
	}); err != nil {
		t.Fatal(err)
	}
	if tt.HookURL() != "https://hooks" || tt.AuthURL() != "http://auth" || tt.Secret() != "s2" || tt.AuthSecret() != "s1" || tt.MaxConcurrency() != 9 ||
		tt.HeartbeatTimeout() != time.Hour || tt.CheckEnabled() || tt.OfflineTTL() != 0 || tt.MaxQPS() != 0 || !tt.SignRequired() {
		t.Fatalf("learnt %v", tt.Config())
	}
	if err := tt.Learn(&hookv1.TenantRuntimeConfig{HookBaseUrl: "ftp://x", TenantMaxMessageQps: 7}); err == nil || tt.HookURL() != "http://auth" || tt.MaxQPS() != 7 {
		t.Fatalf("a bad URL: %v, %q", err, tt.HookURL())
	}
}

func TestProblemsNameSettingAndKeyButNoSecret(t *testing.T) {
	for _, tc := range []struct {
		src  Source
		want []string
	}{
		{Source{AuthMap: `{"a":"ftp://x","b":""}`}, []string{"TENANT_AUTH_MAP", `"a"`, `"b"`, "http://"}},
		{Source{AuthMap: `[`}, []string{"TENANT_AUTH_MAP", "JSON"}},
		{Source{HookSecrets: `{"a":"hush"}`}, []string{"TENANT_HOOK_SECRETS", "not in TENANT_AUTH_MAP"}},
		{Source{HookSecrets: `{"a":["hush"]}`}, []string{"TENANT_HOOK_SECRETS", "string"}},
		{Source{AuthMap: `{"a":"http://x"}`, MaxConcurrency: `{"a":0}`}, []string{"TENANT_HOOK_MAX_CONCURRENCY", `"a"`, "1 to 10000"}},
		{Source{AuthMap: `{"":"http://x"}`}, []string{"1 to 128"}},
	} {
		_, err := New(tc.src)
		if err == nil {
			t.Errorf("%+v accepted", tc.src)
			continue
		}
		for _, w := range tc.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q does not say %q", err, w)
			}
		}
		if strings.Contains(err.Error(), "hush") {
			t.Errorf("a secret is in %q", err)
		}
	}
}
