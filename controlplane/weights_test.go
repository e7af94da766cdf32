package controlplane

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWeightsConfig(t *testing.T) {
	form := filepath.Join(t.TempDir(), "form")
	if err := os.WriteFile(form, []byte("canary {{.Canary}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, []byte("{{.No}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		cfg        WeightsConfig
		name, fail string
	}{
		{WeightsConfig{}, "none", ""},
		{WeightsConfig{File: "w"}, "file", ""},
		{WeightsConfig{File: "w", Template: form}, "file", ""},
		{WeightsConfig{URL: "http://lb/weights"}, "http", ""},
		{WeightsConfig{URL: "lb/weights"}, "", "CANARY_WEIGHTS_URL: "},
		{WeightsConfig{URL: "http://lb", File: "w"}, "", "only one of them"},
		{WeightsConfig{Template: form}, "", "CANARY_WEIGHTS_FILE is required"},
		{WeightsConfig{File: "w", Template: bad}, "", "CANARY_WEIGHTS_TEMPLATE: template of the weights"},
		{WeightsConfig{File: "w", Template: form + "x"}, "", "CANARY_WEIGHTS_TEMPLATE: "},
	} {
		a, err := c.cfg.actuator()
		if c.fail != "" {
			if err == nil || !strings.Contains(err.Error(), c.fail) {
				t.Errorf("%+v: %v, want %q", c.cfg, err, c.fail)
			}
			continue
		}
		if err != nil || a.Name() != c.name {
			t.Errorf("%+v: %v, %v", c.cfg, a, err)
		}
	}
	if _, err := LoadConfig([]string{"--router-endpoints=http://r", "--canary-weights-url=lb"}, func(string) (string, bool) { return "", false }); err == nil {
		t.Error("a bad URL passes")
	}
}
