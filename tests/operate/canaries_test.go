package operate

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/controlplane"
	"github.com/mics-im/mics/internal/cohort"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/proto/mics/gateway/v1/gatewayv1connect"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
)

// tracks is two gateways, whose users move as soon as a rule says so, and a router.
type tracks struct {
	routerv1connect.UnimplementedRouterServiceHandler
	mu       sync.Mutex
	gateways []*steered
	at       map[string]string // track of each user; guarded by mu
}

type steered struct {
	gatewayv1connect.UnimplementedGatewayServiceHandler
	all  *tracks
	info *gatewayv1.GatewayInfo
	rule cohort.Rule // guarded by all.mu, like places
	// places: Status tells them.
	places bool
}

func (s *steered) Status(context.Context, *connect.Request[gatewayv1.StatusRequest]) (*connect.Response[gatewayv1.StatusResponse], error) {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	res := &gatewayv1.StatusResponse{Gateway: s.info, RuleGeneration: s.rule.Generation(), RoutersLinked: 1}
	if s.places {
		res.SessionsByPlace = make([]uint32, cohort.Full)
	}
	for user, track := range s.all.at {
		if track == s.info.GetTrack() {
			res.Sessions++
			res.SessionsV2++
			if s.places {
				res.SessionsByPlace[s.rule.Place("demo", user)]++
			}
			if s.rule.Canary("demo", user) {
				res.SessionsOfCanary++
			}
		}
	}
	return connect.NewResponse(res), nil
}

func (s *steered) Steer(_ context.Context, r *connect.Request[gatewayv1.SteerRequest]) (*connect.Response[gatewayv1.SteerResponse], error) {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	s.rule, s.places = cohort.Compile(r.Msg.GetRule()), r.Msg.GetCountPlaces()
	for user, track := range s.all.at {
		if track == s.info.GetTrack() {
			s.all.at[user] = s.rule.Track("demo", user)
		}
	}
	return connect.NewResponse(&gatewayv1.SteerResponse{Generation: s.rule.Generation()}), nil
}

func (a *tracks) Directory(context.Context, *connect.Request[routerv1.DirectoryRequest]) (*connect.Response[routerv1.DirectoryResponse], error) {
	res := &routerv1.DirectoryResponse{}
	for _, g := range a.gateways {
		res.Gateways = append(res.Gateways, g.info)
	}
	return connect.NewResponse(res), nil
}

func (a *tracks) on(track string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range a.at {
		if t == track {
			n++
		}
	}
	return n
}

func TestAnOperatorTriesANewVersion(t *testing.T) {
	all := &tracks{at: map[string]string{}}
	for i := range 200 {
		all.at[fmt.Sprint("user", i)] = cohort.Stable
	}
	for id, track := range map[string]string{"g1": cohort.Stable, "g2": cohort.Canary} {
		g := &steered{all: all, info: &gatewayv1.GatewayInfo{NodeId: id, Incarnation: 5, Track: track, Version: "v-" + track, Phase: gatewayv1.Phase_PHASE_SERVING}}
		path, h := gatewayv1connect.NewGatewayServiceHandler(g, rpc.HandlerOptions()...)
		g.info.Endpoint, _ = serve(t, path, h)
		all.gateways = append(all.gateways, g)
	}
	path, h := routerv1connect.NewRouterServiceHandler(all, rpc.HandlerOptions()...)
	routerURL, _ := serve(t, path, h)
	weights := filepath.Join(t.TempDir(), "weights")
	cp, err := controlplane.New(t.Context(), controlplane.Config{
		NodeID: "cp", Listen: "127.0.0.1:0", InternalListen: "127.0.0.1:0", RouterEndpoints: []string{routerURL},
		Weights: controlplane.WeightsConfig{File: weights}, Telemetry: telemetry.Config{LogWriter: io.Discard},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := cp.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cp.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	at := "http://" + cp.Addr()
	if out, code := micsctl(t, at, "canary", "status"); code != 1 || !strings.Contains(out, "no canary yet") {
		t.Fatalf("exit %d\n%s", code, out)
	}
	testkit.Eventually(t, "the canary begins", func() bool {
		out, code := micsctl(t, at, "canary", "start", "--steps", "50", "--bake", "1m")
		return code == 0 && strings.Contains(out, "version v-canary")
	})
	if out, code := micsctl(t, at, "canary", "start"); code != 1 || !strings.Contains(out, "one at a time") {
		t.Errorf("a second one: exit %d\n%s", code, out)
	}
	testkit.Eventually(t, "half of the users are on the canary, and the proxy knows", func() bool {
		b, _ := os.ReadFile(weights)
		return all.on(cohort.Canary) >= 97 && all.on(cohort.Canary) <= 103 && string(b) == "{\"stable\":50,\"canary\":50}\n"
	})
	testkit.Eventually(t, "the status tells it", func() bool { // gateways are polled
		out, code := micsctl(t, at, "canary", "status", "-o", "json")
		var doc struct {
			Weight float64
			Canary struct{ Sessions int }
		}
		return json.Unmarshal([]byte(out), &doc) == nil && code == 0 && doc.Weight == 50 && doc.Canary.Sessions >= 97 && doc.Canary.Sessions <= 103
	})
	out, code := micsctl(t, at, "rebalance")
	if code != 0 || !strings.Contains(out, "the sessions are even") {
		t.Errorf("exit %d\n%s", code, out)
	}
	if out, code = micsctl(t, at, "canary", "abort", "--reason", "drill"); code != 0 || !strings.Contains(out, "aborting") {
		t.Errorf("exit %d\n%s", code, out)
	}
	testkit.Eventually(t, "everybody is back", func() bool {
		out, code = micsctl(t, at, "canary", "status")
		return code == 1 && strings.Contains(out, "was aborted: drill") && all.on(cohort.Canary) == 0
	})
}
