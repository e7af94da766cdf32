package chart

import (
	"fmt"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
)

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		set  []string
		want []string // all of them are in the message
	}{
		"typo":                  {[]string{"gateway.replica=3"}, []string{"/gateway", "'replica' not allowed"}},
		"typo at the top":       {[]string{"drainTimeOut=3"}, []string{"'drainTimeOut' not allowed"}},
		"typo in a setting":     {[]string{"router.settings.GROUP_CHUNK=3"}, []string{"/router/settings", "'GROUP_CHUNK' not allowed"}},
		"wrong type":            {[]string{"drainTimeout=soon"}, []string{"/drainTimeout", "want integer"}},
		"no quantity":           {[]string{"gateway.resources.limits.memory=2GB"}, []string{"/gateway/resources/limits/memory", "2GB"}},
		"deadline":              {[]string{"drainTimeout=60", "gateway.terminationGracePeriodSeconds=70"}, []string{"gateway.terminationGracePeriodSeconds is 70", "= 76 s", "Leave it at 0"}},
		"preStop":               {[]string{"gateway.preStopSeconds=1"}, []string{"gateway.preStopSeconds is 1", "6 or more"}},
		"weight":                {[]string{"canary.enabled=true", "canary.weight=120"}, []string{"canary.weight is 120", "0 to 100"}},
		"negative weight":       {[]string{"canary.enabled=true", "canary.weight=-1"}, []string{"canary.weight is -1"}},
		"weight, no canary":     {[]string{"canary.weight=5"}, []string{"canary.weight is 5", "canary.enabled is false"}},
		"weight, no pods":       {[]string{"canary.enabled=true", "canary.weight=5", "canary.replicas=0"}, []string{"canary.replicas is 0"}},
		"tag, no canary":        {[]string{"canary.tag=v2"}, []string{"canary.tag is set"}},
		"two ways in":           {[]string{"httpRoute.enabled=true", "httpRoute.parentRefs[0].name=p", "ingress.enabled=true", "ingress.hosts={a}"}, []string{"httpRoute.enabled and ingress.enabled"}},
		"route of nobody":       {[]string{"httpRoute.enabled=true"}, []string{"httpRoute.parentRefs is empty"}},
		"ingress of nobody":     {[]string{"ingress.enabled=true"}, []string{"ingress.hosts is empty"}},
		"read timeout":          {[]string{"ingress.enabled=true", "ingress.hosts={a}", "ingress.readTimeoutSeconds=45"}, []string{"ingress.readTimeoutSeconds is 45", "60 or more"}},
		"keepalive":             {[]string{"ingress.enabled=true", "ingress.hosts={a}", "gateway.settings.WS_KEEPALIVE_INTERVAL_SECONDS=3000"}, []string{"ingress.readTimeoutSeconds is 3600", "6000 or more"}},
		"no Redis":              {[]string{"redis.mode=external"}, []string{"set redis.external.connection"}},
		"two Redis":             {[]string{"redis.external.connection=a:1"}, []string{"redis.mode is embedded"}},
		"two connections":       {[]string{"redis.mode=external", "redis.external.connection=a:1", "redis.external.existingSecret=s"}, []string{"which one holds?"}},
		"two tenant sources":    {[]string{"tenants.a.auth_url=http://a", "tenantsSecret=s"}, []string{"tenants and tenantsSecret"}},
		"no client certificate": {[]string{"kafka.bootstrapServers=k:1", "kafka.clientCertificate=true"}, []string{"kafka.tlsSecret is empty"}},
		"TLS without Kafka":     {[]string{"kafka.tls=true"}, []string{"kafka.bootstrapServers is empty"}},
		"SASL half":             {[]string{"kafka.bootstrapServers=k:1", "kafka.sasl.mechanism=SCRAM-SHA-256"}, []string{"kafka.sasl.username"}},
		"password in clear":     {[]string{"kafka.bootstrapServers=k:1", "kafka.sasl.mechanism=PLAIN", "kafka.sasl.username=u", "kafka.sasl.passwordSecret=p"}, []string{"as it is"}},
		"HPA":                   {[]string{"gateway.autoscaling.enabled=true", "gateway.autoscaling.maxReplicas=2"}, []string{"gateway.autoscaling: minReplicas is 3, maxReplicas 2"}},
		"HPA of nothing":        {[]string{"router.autoscaling.enabled=true", "router.resources.requests.cpu=null"}, []string{"router.resources.requests.cpu is not set"}},
		"unreachable metrics":   {[]string{"monitoring.serviceMonitor=true"}, []string{"networkPolicy.monitoring names nobody"}},
		"derived":               {[]string{"gateway.settings.DRAIN_TIMEOUT_SECONDS=5"}, []string{"gateway.settings.DRAIN_TIMEOUT_SECONDS", "drainTimeout"}},
		"another's secret":      {[]string{"router.settings.SESSION_TOKEN_KEYS=k"}, []string{"secrets"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := render(t, values(t, nil, c.set...))
			if err == nil {
				t.Fatal("rendered")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q is not in: %v", w, err)
				}
			}
		})
	}
}

func env(c corev1.Container, name string) string {
	for _, e := range c.Env {
		if e.Name == name {
			return e.Value
		}
	}
	return ""
}

// TestDeadlines: drainTimeout is the source of all of them.
func TestDeadlines(t *testing.T) {
	for _, c := range []struct {
		set             []string
		drain           string
		preStop, grace  int64
		progress        int32
		window, perStep int32
	}{
		{nil, "30", 6, 46, 346, 300, 60},
		{[]string{"drainTimeout=120", "gateway.preStopSeconds=15"}, "120", 15, 145, 445, 300, 145},
		{[]string{"drainTimeout=3600"}, "3600", 6, 3616, 3916, 3600, 1800}, // the HPA's own bounds
		{[]string{"gateway.terminationGracePeriodSeconds=90"}, "30", 6, 90, 390, 300, 90},
	} {
		r, _ := mustRender(t, values(t, nil, append(c.set, "gateway.autoscaling.enabled=true", "canary.enabled=true")...))
		for _, name := range []string{"Deployment/mics-gateway", "Deployment/mics-gateway-canary"} {
			d := typed[appsv1.Deployment](t, r.want(t, name))
			pod := d.Spec.Template.Spec
			g := pod.Containers[0]
			if got := env(g, "DRAIN_TIMEOUT_SECONDS"); got != c.drain {
				t.Errorf("%v: %s DRAIN_TIMEOUT_SECONDS=%s, want %s", c.set, name, got, c.drain)
			}
			if got := g.Lifecycle.PreStop.Sleep.Seconds; got != c.preStop {
				t.Errorf("%v: %s preStop %d, want %d", c.set, name, got, c.preStop)
			}
			if got := *pod.TerminationGracePeriodSeconds; got != c.grace {
				t.Errorf("%v: %s grace %d, want %d", c.set, name, got, c.grace)
			}
			if got := *d.Spec.ProgressDeadlineSeconds; got != c.progress {
				t.Errorf("%v: %s progress %d, want %d", c.set, name, got, c.progress)
			}
			if s := d.Spec.Strategy.RollingUpdate; s.MaxUnavailable.IntValue() != 0 || s.MaxSurge.IntValue() != 1 {
				t.Errorf("%s: %+v", name, s)
			}
		}
		hpa := typed[autoscalingv2.HorizontalPodAutoscaler](t, r.want(t, "HorizontalPodAutoscaler/mics-gateway"))
		down := hpa.Spec.Behavior.ScaleDown
		if *down.StabilizationWindowSeconds != c.window || down.Policies[0].PeriodSeconds != c.perStep {
			t.Errorf("%v: scale-down %d/%d, want %d/%d", c.set, *down.StabilizationWindowSeconds, down.Policies[0].PeriodSeconds, c.window, c.perStep)
		}
	}
}

func TestMemoryFollowsItsLimit(t *testing.T) {
	for limit, want := range map[string]string{"1Gi": "966367641", "512Mi": "483183820", "1.5Gi": "1449551462", "2G": "1800000000"} {
		r, _ := mustRender(t, values(t, nil, "gateway.resources.limits.memory="+limit))
		g := typed[appsv1.Deployment](t, r.want(t, "Deployment/mics-gateway")).Spec.Template.Spec.Containers[0]
		if got := env(g, "GOMEMLIMIT"); got != want {
			t.Errorf("%s: GOMEMLIMIT=%s, want %s", limit, got, want)
		}
	}
	r, _ := mustRender(t, values(t, nil, "gateway.resources.limits=null"))
	g := typed[appsv1.Deployment](t, r.want(t, "Deployment/mics-gateway")).Spec.Template.Spec.Containers[0]
	if got := env(g, "GOMEMLIMIT"); got != "" {
		t.Errorf("without a limit: %s", got)
	}
}

func TestCanaryRoute(t *testing.T) {
	r, _ := mustRender(t, values(t, []string{"values-ha.yaml"}, "canary.weight=25", "canary.tag=v2"))
	got := map[string]string{} // which clients → backends
	for _, rule := range r.want(t, "HTTPRoute/mics-gateway").at("spec", "rules").([]any) {
		rule := rule.(map[string]any)
		who := "all"
		match := rule["matches"].([]any)[0].(map[string]any)
		if q, found := match["queryParams"].([]any); found {
			who = fmt.Sprint(q[0].(map[string]any)["name"], "=", q[0].(map[string]any)["value"])
		}
		var to []string
		for _, b := range rule["backendRefs"].([]any) {
			b := b.(map[string]any)
			to = append(to, fmt.Sprint(b["name"], " ", b["weight"]))
		}
		got[who] = strings.Join(to, ", ")
	}
	want := map[string]string{
		"track=canary": "mics-gateway-canary <nil>",
		"track=stable": "mics-gateway <nil>",
		"all":          "mics-gateway 75, mics-gateway-canary 25",
	}
	for who, to := range want {
		if got[who] != to {
			t.Errorf("%s → %s, want %s", who, got[who], to)
		}
	}
	d := typed[appsv1.Deployment](t, r.want(t, "Deployment/mics-gateway-canary"))
	if c := d.Spec.Template.Spec.Containers[0]; env(c, "TRACK") != "canary" || env(c, "VERSION") != "v2" || !strings.HasSuffix(c.Image, ":v2") {
		t.Errorf("canary: %s %s %s", env(c, "TRACK"), env(c, "VERSION"), c.Image)
	}
	// The stable Service must not lead into the canary, or weights would be wrong.
	s := typed[corev1.Service](t, r.want(t, "Service/mics-gateway"))
	if s.Spec.Selector["mics.io/track"] != "stable" || s.Spec.Selector["mics.io/accept"] != "true" {
		t.Errorf("stable Service selects %v", s.Spec.Selector)
	}
}

func TestNotes(t *testing.T) {
	for name, vals := range variants(t) {
		_, notes := mustRender(t, vals)
		if !strings.HasSuffix(strings.TrimSpace(notes), "micsctl check") {
			t.Errorf("%s: notes do not end in micsctl check:\n%s", name, notes)
		}
	}
	_, notes := mustRender(t, values(t, nil))
	if !strings.Contains(notes, "There is no tenant") || !strings.Contains(notes, "30 s for its sessions and 46 s in all") {
		t.Error(notes)
	}
}
