package harness

import "testing"

func TestMetricsAreRead(t *testing.T) {
	m, err := parseMetrics("# HELP x y\nmics_a_total{node=\"gw1\",reason=\"b c\"} 3\nmics_a_total{node=\"gw1\",reason=\"d\"} 4\nmics_b 1.5e+03\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Sum("mics_a_total"); got != 7 {
		t.Errorf("sum %v", got)
	}
	if got := m.With("mics_a_total", "reason", "d"); got != 4 {
		t.Errorf("with %v", got)
	}
	if got := m.Sum("mics_b"); got != 1500 {
		t.Errorf("mics_b %v", got)
	}
	if _, err := parseMetrics("nonsense\n"); err == nil {
		t.Error("nonsense was read")
	}
}
