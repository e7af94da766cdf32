package fleet

import (
	"slices"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

func TestMain(m *testing.M) { testkit.Main(m) }

var t0 = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func info(id string, incarnation uint64, phase gatewayv1.Phase) *gatewayv1.GatewayInfo {
	return &gatewayv1.GatewayInfo{
		NodeId: id, Incarnation: incarnation, Endpoint: "http://" + id, Track: "stable", Version: "v1", Phase: phase,
	}
}

const (
	serving  = gatewayv1.Phase_PHASE_SERVING
	draining = gatewayv1.Phase_PHASE_DRAINING
)

func dir(gateways ...*gatewayv1.GatewayInfo) *routerv1.DirectoryResponse {
	return &routerv1.DirectoryResponse{Gateways: gateways}
}

func answer(g *gatewayv1.GatewayInfo, sessions uint64) poll {
	return poll{at: t0, status: &gatewayv1.StatusResponse{Gateway: g, Sessions: sessions, RoutersLinked: 1}}
}

func ids(entries []entry) (out []string) {
	for _, e := range entries {
		out = append(out, e.ID)
	}
	return out
}

func TestMerge(t *testing.T) {
	known := merge(nil, &routerv1.DirectoryResponse{
		Gateways: []*gatewayv1.GatewayInfo{info("b", 5, serving), info("a", 5, serving), info("", 1, serving)},
		Routers:  []*routerv1.RouterInfo{{NodeId: "a", Incarnation: 1, Endpoint: "http://r"}},
	}, t0)
	if got := ids(known); !slices.Equal(got, []string{"a", "b", "a"}) || known[0].Kind != Gateway || known[2].Kind != Router {
		t.Fatalf("want gateways a and b, then router a, and none without a name; got %v", got)
	}
	known[0] = observe(known[0], answer(info("a", 5, draining), 10))
	before := slices.Clone(known)

	t.Run("what is not named is missing since then", func(t *testing.T) {
		got := merge(known, dir(info("b", 5, serving)), t0.Add(time.Second))
		if !got[0].missingSince.Equal(t0.Add(time.Second)) || got[0].Unreachable {
			t.Errorf("gateway: %+v", got[0])
		}
		if !got[1].missingSince.IsZero() {
			t.Errorf("named, and missing: %+v", got[1])
		}
		if !got[2].Unreachable || got[2].Reason != notListed {
			t.Errorf("router: %+v", got[2])
		}
		again := merge(got, dir(), t0.Add(2*time.Second))
		if !again[0].missingSince.Equal(t0.Add(time.Second)) {
			t.Errorf("missing since %v", again[0].missingSince)
		}
		back := merge(again, &routerv1.DirectoryResponse{
			Gateways: []*gatewayv1.GatewayInfo{info("a", 5, serving)}, Routers: []*routerv1.RouterInfo{{NodeId: "a", Incarnation: 1}},
		}, t0.Add(3*time.Second))
		if !back[0].missingSince.IsZero() || back[2].Unreachable || back[2].Reason != "" {
			t.Errorf("back, and still missing: %+v", back)
		}
	})
	t.Run("a gateway's own word stands until it falls silent", func(t *testing.T) {
		if got := merge(known, dir(info("a", 5, serving)), t0); got[0].Phase != draining || got[0].Sessions != 10 {
			t.Errorf("%+v", got[0].Node)
		}
		silent := slices.Clone(known)
		silent[0] = observe(silent[0], poll{at: t0, failure: "gone"})
		if got := merge(silent, dir(info("a", 5, serving)), t0); got[0].Phase != serving || got[0].Sessions != 10 || !got[0].Unreachable {
			t.Errorf("%+v", got[0].Node)
		}
	})
	t.Run("a restart starts anew", func(t *testing.T) {
		got := merge(known, dir(info("a", 6, serving)), t0)
		if got[0].Incarnation != 6 || got[0].Sessions != 0 || len(got[0].samples) != 0 || got[0].Phase != serving {
			t.Errorf("%+v", got[0])
		}
	})
	t.Run("an outdated directory does not undo a restart", func(t *testing.T) {
		if got := merge(known, dir(info("a", 4, serving)), t0); got[0].Incarnation != 5 || got[0].Sessions != 10 {
			t.Errorf("%+v", got[0])
		}
		twice := merge(nil, dir(info("a", 6, serving), info("a", 4, serving)), t0)
		if len(twice) != 1 || twice[0].Incarnation != 6 {
			t.Errorf("%+v", twice)
		}
	})
	for i := range known {
		if known[i].Node != before[i].Node || known[i].missingSince != before[i].missingSince {
			t.Errorf("merge changed what it was given: %+v, was %+v", known[i], before[i])
		}
	}
}

func TestObserve(t *testing.T) {
	e := merge(nil, dir(info("a", 5, serving)), t0)[0]
	e = observe(e, answer(info("a", 5, serving), 10))
	for name, tc := range map[string]struct {
		poll        poll
		unreachable bool
		sessions    uint64
		incarnation uint64
		samples     int
	}{
		"answers":            {answer(info("a", 5, draining), 12), false, 12, 5, 2},
		"silent":             {poll{failure: "no answer in time"}, true, 10, 5, 1},
		"another node":       {answer(info("b", 9, serving), 99), true, 10, 5, 1},
		"nameless":           {answer(nil, 99), true, 10, 5, 1},
		"an earlier start":   {answer(info("a", 4, serving), 99), true, 10, 5, 1},
		"restarted just now": {answer(info("a", 6, serving), 1), false, 1, 6, 1},
	} {
		t.Run(name, func(t *testing.T) {
			got := observe(e, tc.poll)
			if got.Unreachable != tc.unreachable || (got.Reason != "") != tc.unreachable {
				t.Errorf("unreachable %v, reason %q", got.Unreachable, got.Reason)
			}
			if got.Sessions != tc.sessions || got.Incarnation != tc.incarnation || len(got.samples) != tc.samples {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestExpire(t *testing.T) {
	const keep = 30 * time.Second
	at := t0.Add(time.Minute)
	for name, tc := range map[string]struct {
		unreachable bool
		phase       gatewayv1.Phase
		missing     time.Time
		stays       bool
	}{
		"named, answers":             {false, serving, time.Time{}, true},
		"named, silent":              {true, serving, time.Time{}, true},
		"named, silent, draining":    {true, draining, time.Time{}, true},
		"missing, answers":           {false, serving, t0, true},
		"missing, answers, drains":   {false, draining, t0, true},
		"gone lately":                {true, serving, at.Add(-keep + time.Millisecond), true},
		"gone for long":              {true, serving, at.Add(-keep), false},
		"left as announced":          {true, draining, at, false},
		"left as announced, drained": {true, gatewayv1.Phase_PHASE_DRAINED, at, false},
	} {
		e := entry{Node: Node{Kind: Gateway, ID: "a", Unreachable: tc.unreachable, Phase: tc.phase}, missingSince: tc.missing}
		if got := len(expire([]entry{e}, at, keep)) == 1; got != tc.stays {
			t.Errorf("%s: stays %v, want %v", name, got, tc.stays)
		}
	}
}

func TestRates(t *testing.T) {
	at := func(s float64, n uint64) sample {
		return sample{at: t0.Add(time.Duration(s * float64(time.Second))), connects: n, messagesIn: 10 * n, deliveries: 100 * n}
	}
	for name, tc := range map[string]struct {
		in   []sample
		want float64
		kept int
	}{
		"none":                 {nil, 0, 0},
		"one":                  {[]sample{at(0, 7)}, 0, 1},
		"two":                  {[]sample{at(0, 7), at(2, 11)}, 2, 2},
		"still":                {[]sample{at(0, 7), at(1, 7)}, 0, 2},
		"same instant":         {[]sample{at(0, 7), at(0, 9)}, 0, 2},
		"clock went back":      {[]sample{at(1, 7), at(0, 9)}, 0, 2},
		"window":               {[]sample{at(0, 0), at(1, 100), at(2, 200), at(3, 200), at(4, 200), at(5, 200), at(6, 200), at(7, 200)}, 0, 6},
		"window stays covered": {[]sample{at(0, 0), at(4, 4), at(8, 8)}, 1, 3},
		"restart":              {[]sample{at(0, 1000), at(1, 5), at(2, 8)}, 3, 2},
		"long silence":         {[]sample{at(0, 0), at(60, 120)}, 2, 2},
	} {
		t.Run(name, func(t *testing.T) {
			var samples []sample
			for _, s := range tc.in {
				before := slices.Clone(samples)
				next := addSample(samples, s)
				if !slices.Equal(samples, before) {
					t.Fatal("addSample changed what it was given")
				}
				samples = next
			}
			if len(samples) != tc.kept {
				t.Errorf("kept %d, want %d", len(samples), tc.kept)
			}
			if got, want := rates(samples), (Rates{tc.want, 10 * tc.want, 100 * tc.want}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}
