package k8s

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestAChart: every values file passes lint and a dry run by the API server, and
// mistakes are refused with a sentence.
func TestAChart(t *testing.T) {
	k := reach(t)
	defer k.leave(t)
	if k.own {
		k.command(t, time.Minute, nil, k.tool, "crds")
	}
	files, err := filepath.Glob(chartDir + "/values*.yaml")
	if err != nil || len(files) < 2 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			k.run(t, time.Minute, nil, "helm", "lint", "--strict", chartDir, "--values", f)
			text := k.run(t, time.Minute, nil, "helm", "template", "mics", chartDir, "--values", f)
			out := k.run(t, time.Minute, []byte(text), "kubectl", "apply", "--dry-run=server", "--filename", "-")
			if n := strings.Count(out, "(server dry run)"); n < 20 {
				t.Errorf("%d objects:\n%s", n, out)
			}
		})
	}
	for set, want := range map[string]string{
		"gateway.replica=3":                        "additional properties 'replica' not allowed",
		"gateway.terminationGracePeriodSeconds=20": "kubelet would kill it while it still moves sessions",
		"canary.weight=120":                        "canary.weight is 120, but it is a percentage",
	} {
		t.Run(set, func(t *testing.T) {
			_, err := k.try(t.Context(), time.Minute, nil, append(k.prefix, "helm", "template", "mics", chartDir, "--set", set)...)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("want a refusal with %q, got %v", want, err)
			}
		})
	}
}
