package allinone

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestSplitArgs(t *testing.T) {
	mine, services, err := splitArgs([]string{
		"--gateways", "3", "--REDIS__CONNECTION=memory", "--base-port=0", "--hook-sign-required",
		"--max_message_bytes", "5", "-h", "stray",
	}, "gateways", "base-port")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"--gateways=3", "--base-port=0", "-h", "stray"}; !reflect.DeepEqual(mine, want) {
		t.Errorf("mine %q, want %q", mine, want)
	}
	want := map[string]flagValue{
		"redis-connection": {"REDIS__CONNECTION", "memory"}, "hook-sign-required": {"hook-sign-required", "true"},
		"max-message-bytes": {"max_message_bytes", "5"},
	}
	if !reflect.DeepEqual(services, want) {
		t.Errorf("services %q, want %q", services, want)
	}
	for _, arg := range []string{"--LISTEN=:1", "--node-id=x", "--router_endpoints=y"} {
		if _, _, err := splitArgs([]string{arg}); !errors.Is(err, config.ErrInvalid) {
			t.Errorf("%s: %v", arg, err)
		}
	}
}

func TestSettingsPrecedence(t *testing.T) {
	env := map[string]string{"A": "env", "B_C": "env", "D": "env", "G": " ", "LISTEN": "env"}
	s := &settings{
		flags:    map[string]flagValue{"b-c": {"b-c", "flag"}, "nobodys": {"NOBODYS", "x"}},
		lookup:   func(n string) (string, bool) { v, ok := env[n]; return v, ok },
		defaults: map[string]string{"A": "default", "E": "default", "G": "default"},
		taken:    map[string]bool{},
	}
	look := s.with(map[string]string{"D": "decided"})
	for name, want := range map[string]string{"A": "env", "B_C": "flag", "D": "decided", "E": "default", "G": "default", "LISTEN": "", "F": ""} {
		if got, ok := look(name); got != want || ok != (want != "") {
			t.Errorf("%s: %q %v, want %q", name, got, ok, want)
		}
	}
	err := s.unknown()
	if !errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), "--NOBODYS") || strings.Contains(err.Error(), "b-c") {
		t.Errorf("unknown: %v", err)
	}
}
