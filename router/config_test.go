package router

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/telemetry"
)

func env(m map[string]string) func(string) (string, bool) {
	return func(k string) (string, bool) { v, ok := m[k]; return v, ok }
}

func TestLoadConfig(t *testing.T) {
	c, err := LoadConfig([]string{"--group-route-chunk-size=7"}, env(map[string]string{"CLUSTER_TOKEN": "sixteen-or-more.", "REDIS__CONNECTION": "redis://h:1", "OFFLINE_BUFFER_MAX_BYTES": "5"}))
	if err != nil {
		t.Fatal(err)
	}
	if c.InternalListen != ":9080" || c.NodeID == "" || c.messages.GroupChunk != 7 || c.messages.GroupMaxUsers != 200_000 || c.messages.GroupMaxBuffered != 1024 ||
		c.messages.MaxMessageBytes != 1<<20 || c.offline.MaxMessagesPerUser != 128 || c.offline.MaxBytesPerUser != 1<<20 || c.offline.MaxBytes != 5 ||
		c.tenants.Settings.HookMaxConcurrency != 32 || c.tenants.Settings.HookQueueTimeout != 10*time.Millisecond {
		t.Errorf("%+v", c)
	}
	for want, bad := range map[string]map[string]string{
		"REDIS__CONNECTION: required":      {},
		`PUBLIC_ENDPOINT: "h:1"`:           {"PUBLIC_ENDPOINT": "h:1"},
		`GROUP_ROUTE_CHUNK_SIZE="0"`:       {"GROUP_ROUTE_CHUNK_SIZE": "0"},
		"TENANT_AUTH_MAP":                  {"TENANT_AUTH_MAP": "{"},
		"INTERNAL_LISTEN":                  {},
		"CLUSTER_TOKEN: a token must":      {"CLUSTER_TOKEN": "short"},
		`MAX_MESSAGE_BYTES="99999999999"`:  {"MAX_MESSAGE_BYTES": "99999999999"},
		`HOOK_SIGN_REQUIRED="perhaps"`:     {"HOOK_SIGN_REQUIRED": "perhaps"},
		"NODE_ID: must be 1 to 128 bytes":  {"NODE_ID": ""},
		`TENANT_MAX_IN_FLIGHT="-1"`:        {"TENANT_MAX_IN_FLIGHT": "-1"},
		"SESSION_TOKEN_KEYS: key":          {"SESSION_TOKEN_KEYS": "a:secret"},
		`OFFLINE_BUFFER_MAX_BYTES="a lot"`: {"OFFLINE_BUFFER_MAX_BYTES": "a lot"},
	} {
		if want != "REDIS__CONNECTION: required" {
			bad["REDIS__CONNECTION"] = Memory
		}
		if _, err := LoadConfig(nil, env(bad)); !errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if _, err := LoadConfig([]string{"--help"}, env(nil)); !errors.Is(err, config.ErrHelp) || !strings.Contains(err.Error(), "REDIS__CONNECTION") {
		t.Errorf("help: %v", err)
	}
}

func TestNewThatFailsLeavesNothing(t *testing.T) {
	good := map[string]string{"REDIS__CONNECTION": Memory, "INTERNAL_LISTEN": "127.0.0.1:0"}
	cfg, err := LoadConfig(nil, env(good))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Telemetry = telemetry.Config{LogWriter: io.Discard}
	first, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	taken := cfg
	taken.InternalListen = first.InternalAddr()
	if r, err := New(t.Context(), taken); err == nil || !strings.HasPrefix(err.Error(), "INTERNAL_LISTEN: ") {
		t.Errorf("got %v, %v", r, err)
	}
	if err := first.Stop(t.Context()); err != nil { // never started
		t.Error(err)
	}
	for want, change := range map[string]func(*Config){
		"REDIS__CONNECTION": func(c *Config) { c.Redis = "ftp://secret@h" },
		"TENANTS_FILE":      func(c *Config) { c.tenants.File = t.TempDir() + "/none.yaml" },
		"PUBLIC_ENDPOINT":   func(c *Config) { c.PublicEndpoint = "h:1" },
	} {
		bad := cfg
		change(&bad)
		if r, err := New(t.Context(), bad); !errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v, %v", r, err)
		}
	}
}
