package broker

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/testkit"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
	"github.com/mics-im/mics/tests/harness"
)

// TestEvents is several stories of one cluster, because a broker costs seconds to
// start. Each leaves it whole, but the last.
func TestEvents(t *testing.T) {
	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2, Kafka: true, Proxied: true})
	s := &story{Cluster: c}
	s.ann = c.Client("ann", harness.On("gw2"))
	s.produced++
	t.Run("redriven through two routers at once", s.redriven)
	t.Run("slow, silent and cut off", s.network)
	t.Run("a gateway dies", s.gatewayDies)
}

type story struct {
	*harness.Cluster
	ann      *harness.Device
	produced int // events so far
	redrawn  int // of these, dead letters that were published after all
}

// send sends messages from ann and waits for all answers.
func (s *story) send(t *testing.T, n, size int) {
	t.Helper()
	var all []*harness.Sending
	for i := range n {
		all = append(all, s.ann.Sends(fmt.Sprintf("%d %s", i, strings.Repeat("x", size))).Submit(harness.Outgoing{To: fmt.Sprint("user-", i%7)}))
	}
	for i, m := range all {
		if a := m.Answer(); !a.Sent {
			t.Errorf("message %d was answered %+v", i, a)
		}
	}
	s.produced += n
}

func (s *story) redriven(t *testing.T) {
	const n = 400
	topic := s.Tenant().Topic()
	s.MakeTopic(topic, "2000") // of the records' batches
	s.send(t, n, 5000)
	l := settled(t, s.Cluster, s.produced)
	if l.dead != n {
		t.Fatalf("%v dead letters, want %d", l.dead, n)
	}
	s.MakeTopic(topic, "1000000")
	var mu sync.Mutex
	var sent uint64
	var both sync.WaitGroup
	for _, name := range []string{"r1", "r2"} {
		both.Go(func() {
			last, err := redrive(t, "http://"+s.Router(name).Internal, s.Tenant().Name)
			mu.Lock()
			defer mu.Unlock()
			sent += last.GetSent()
			if err != nil && connect.CodeOf(err) != connect.CodeFailedPrecondition {
				t.Errorf("through %s: %v", name, err)
			}
			t.Logf("through %s: %d of %d, %v", name, last.GetSent(), last.GetTotal(), err)
		})
	}
	both.Wait()
	if sent != n {
		t.Errorf("%d were sent, want %d", sent, n)
	}
	s.redrawn += n
	came := map[string]int{}
	for _, r := range s.Events(s.Tenant(), topic) {
		came[r.ID()]++
	}
	for id, times := range came {
		if times != 1 {
			t.Errorf("%s came %d times", id, times)
		}
	}
	if len(came) != s.produced {
		t.Errorf("%d events came of %d", len(came), s.produced)
	}
}

// redrive returns the last that was heard of it.
func redrive(t *testing.T, router, tenant string) (*routerv1.RedriveProgress, error) {
	hc := rpc.NewClient()
	defer hc.CloseIdleConnections()
	st, err := routerv1connect.NewRouterServiceClient(hc, router, rpc.ClientOptions()...).
		RedriveDLQ(t.Context(), connect.NewRequest(&routerv1.RedriveDLQRequest{TenantId: tenant}))
	if err != nil {
		return nil, err
	}
	defer func() { _ = st.Close() }()
	var last *routerv1.RedriveProgress
	for st.Receive() {
		last = st.Msg().GetProgress()
	}
	return last, st.Err()
}

// network: whatever becomes of the way to the broker, messages are answered, and
// the accounts of afterwards add up.
func (s *story) network(t *testing.T) {
	for _, bad := range []harness.Condition{{Delay: 300 * time.Millisecond}, {Blackhole: true}, {Cut: true}} {
		s.Net.Set("r1", "kafka", bad)
		s.Net.Set("r2", "kafka", bad)
		s.send(t, 500, 100)
		if bad.Delay == 0 {
			testkit.Eventually(t, "somebody notices", func() bool { return s.Sum("r", "mics_mq_retried_total")+s.Sum("r", "mics_mq_queue_events") > 0 })
		}
		s.Net.Heal()
		s.send(t, 100, 100)
	}
	s.audit(t)
}

func (s *story) audit(t *testing.T) []harness.Record {
	t.Helper()
	return settled(t, s.Cluster, s.produced+s.redrawn).audit(t, s.Cluster, happened{produced: s.produced, redriven: s.redrawn})
}

// gatewayDies: each device whose session ended with it is told to be offline once;
// one that is back elsewhere is online afterwards.
func (s *story) gatewayDies(t *testing.T) {
	const stay = 20
	for i := range stay {
		s.V1(fmt.Sprint("stays-", i), harness.On("gw1"))
	}
	var back []*harness.Device
	for i := range 5 {
		back = append(back, s.V1(fmt.Sprint("moves-", i), harness.On("gw1")))
	}
	s.Gateway("gw1").Kill()
	for i := range back { // at once, before anybody knows
		s.V1(fmt.Sprint("moves-", i), harness.On("gw2"))
		back[i].Leaves()
	}
	testkit.Eventually(t, "it is cleaned up after", func() bool { return s.Sum("r", "mics_dead_node_cleanups_total") == 1 })
	if got := s.Sum("r", "mics_dead_node_routes_processed_total"); got < stay || int(got) > stay+len(back) {
		t.Errorf("%v routes were cleaned up, want %d, or those too that were slow to move", got, stay)
	}
	s.produced += stay*2 + len(back)*3 // online, offline; online, offline, online
	kinds, epochs := map[string]string{}, map[string]int{}
	for _, r := range s.audit(t) {
		u, epoch := r.Text[testkit.MQUser], r.Text[testkit.MQUser]+"/"+r.Text[testkit.MQMsgID]
		switch r.Type() {
		case testkit.MQOnline:
			epochs[epoch] = strings.Count(kinds[u], "+") + 1
			kinds[u] += fmt.Sprintf("+%d ", epochs[epoch])
		case testkit.MQOffline:
			kinds[u] += fmt.Sprintf("-%d ", epochs[epoch])
		}
	}
	for u, got := range kinds {
		want := "+1 -1 "
		switch {
		case u == "ann":
			want = "+1 "
		case strings.HasPrefix(u, "moves"):
			want = "+1 -1 +2 "
		}
		if got != want {
			t.Errorf("%s: %q, want %q", u, got, want)
		}
	}
	if len(kinds) != 1+stay+len(back) {
		t.Errorf("%d users had connection events", len(kinds))
	}
}
