package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/mics-im/mics/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestWrongUsageIsToldApart(t *testing.T) {
	for _, args := range [][]string{
		{}, {"nonsense"}, {"idle", "--no-such-flag"}, {"idle", "more"}, {"idle", "-o", "xml"}, {"idle", "--runs", "0"},
		{"idle", "--clients", "1"}, {"idle", "--gateways", "0"}, {"idle", "--routers", "2", "--redis=false"},
		{"idle", "--url", "ws://127.0.0.1:1/ws"}, {"idle", "--pids", "gateway-1=1"},
		{"idle", "--url", "http://127.0.0.1:1/ws", "--pids", "gateway-1=1"},
		{"idle", "--url", "ws://127.0.0.1:1/ws", "--pids", "mystery=1"}, {"bare", "--nonsense"},
		{"drain", "--parts", "v3"}, {"drain", "--sessions", "7"}, {"drain", "more"}, {"drain", "-o", "xml"}, {"drain", "--rate", "0"},
	} {
		var out bytes.Buffer
		err := run(t.Context(), args, strings.NewReader(""), &out, &out)
		var usage *usageError
		if !errors.As(err, &usage) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestHelpNamesEveryScenario(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"help"}, strings.NewReader(""), &out, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"idle", "connect", "saturation", "latency", "fanout", "biggroup", "drain", "--profile", "Exit codes"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s is missing", want)
		}
	}
}

func TestAMissingBinaryIsAnError(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir()) // the logs are kept
	var out bytes.Buffer
	err := run(t.Context(), []string{"idle", "--runs", "1", "--redis=false", "--bin", t.TempDir()}, strings.NewReader(""), &out, &out)
	if err == nil || !strings.Contains(err.Error(), "mics-router") {
		t.Errorf("%v", err)
	}
}
