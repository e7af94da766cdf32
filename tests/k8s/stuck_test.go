package k8s

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// stuck: rollouts that do not go on, as docs/runbook.md has them. The old gateways
// serve, the commands there show what is wrong, and `rollout undo` gives up.
func (r *release) stuck(t *testing.T) {
	deployment := "deployment/mics-gateway"
	for _, s := range []struct {
		name  string
		cause []string   // kubectl
		shows string     // in STATUS of `kubectl get pods`
		look  [][]string // kubectl, the pod's name is added
		want  []string   // of each
	}{
		{
			"not-ready", []string{"set", "env", deployment, "ROUTER_ENDPOINTS=http://127.0.0.1:1"}, "Running",
			[][]string{{"describe", "pod"}, {"logs"}},
			[]string{"Readiness probe failed: HTTP probe failed with statuscode: 503", `"msg":"router_lost"`},
		},
		{
			"refused-setting", []string{"set", "env", deployment, "DRAIN_TIMEOUT_SECONDS=soon"}, "CrashLoopBackOff",
			[][]string{{"describe", "pod"}, {"logs"}},
			[]string{"Exit Code:    2", `DRAIN_TIMEOUT_SECONDS="soon": must be a whole number`},
		},
		{
			"no-room", []string{"set", "resources", deployment, "--containers=gateway", "--requests=cpu=1000"}, "Pending",
			[][]string{{"describe", "pod"}},
			[]string{"Insufficient cpu"},
		},
	} {
		t.Run(s.name, func(t *testing.T) {
			old := r.names(t)
			report := r.under(t, s.name, func() {
				r.kubectl(t, s.cause...)
				fresh := r.fresh(t, old, s.shows)
				for i, look := range s.look {
					r.tells(t, s.want[i], append(look, fresh)...)
				}
				r.kubectl(t, "rollout", "undo", deployment)
				r.rolled(t)
			}, 3*time.Second)
			unharmed(t, report)
			if len(report.DisconnectsV1) > 0 {
				t.Errorf("V1 clients were disconnected: %v", report.DisconnectsV1)
			}
			if now := r.names(t); !slices.Equal(now, old) {
				t.Errorf("the gateways are %v, and were %v", now, old)
			}
		})
	}
	// Given up when a new gateway was there already: whoever was left out takes
	// connections again.
	t.Run("given-up", func(t *testing.T) {
		old := r.names(t)
		report := r.under(t, "given-up", func() {
			r.kubectl(t, "rollout", "restart", deployment)
			r.accepting(t, func(accept, refuse int) bool { return accept > 0 && refuse > 0 })
			r.kubectl(t, "rollout", "undo", deployment)
			r.rolled(t)
			r.accepting(t, func(accept, refuse int) bool { return accept == 3 && refuse == 0 })
		}, 3*time.Second)
		unharmed(t, report)
		stayed := 0
		for _, name := range r.names(t) {
			if slices.Contains(old, name) {
				stayed++
			}
		}
		if stayed == 0 {
			t.Error("none of the old gateways is left: it was not given up in time to see anything")
		}
	})
}

// names are those of the stable gateways, in order.
func (r *release) names(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, p := range r.pods(t, gateways) {
		if p.Metadata.DeletionTimestamp == "" {
			out = append(out, p.Metadata.Name)
		}
	}
	slices.Sort(out)
	return out
}

// fresh waits for a gateway that is not among the old ones, and until `kubectl get
// pods` shows it as wanted.
func (r *release) fresh(t *testing.T, old []string, shows string) string {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; {
		out := r.kubectl(t, "get", "pods", "--selector", gateways, "--no-headers")
		for line := range strings.Lines(out) {
			f := strings.Fields(line) // NAME READY STATUS …
			if len(f) > 2 && !slices.Contains(old, f[0]) && f[1] == "0/1" && f[2] == shows {
				return f[0]
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("no new pod is %s:\n%s", shows, out)
		}
		time.Sleep(500 * time.Millisecond) // polling a real system
	}
}

// tells waits until a kubectl command prints something.
func (r *release) tells(t *testing.T, want string, args ...string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		out := r.kubectl(t, args...)
		for line := range strings.Lines(out) {
			if strings.Contains(line, want) {
				t.Log(strings.TrimSpace(line))
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("kubectl %s does not say %q:\n%s", strings.Join(args, " "), want, out)
		}
		time.Sleep(time.Second) // polling a real system
	}
}

// accepting waits until as many stable gateways take new connections, and as many do
// not, as ok wants.
func (r *release) accepting(t *testing.T, ok func(accept, refuse int) bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; {
		accept, refuse := 0, 0
		for _, p := range r.pods(t, gateways) {
			switch {
			case p.Metadata.DeletionTimestamp != "":
			case p.Metadata.Labels["mics.io/accept"] == "true":
				accept++
			default:
				refuse++
			}
		}
		if ok(accept, refuse) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d gateways accept, %d do not\n%s", accept, refuse, r.kubectl(t, "get", "pods", "-L", "mics.io/accept"))
		}
		time.Sleep(300 * time.Millisecond) // polling a real system
	}
}
