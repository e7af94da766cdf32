package router

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/testkit"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"google.golang.org/protobuf/proto"
)

const acmeTopic = "im-mics-acme-event"

// startKafka starts a cluster at the level of the protocol.
func startKafka(t *testing.T) *kfake.Cluster {
	t.Helper()
	k, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, acmeTopic, acmeTopic+"-dlq"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// events reads n events, as "type msg_id from>to", and checks that they are
// numbered and signed.
func events(t *testing.T, k *kfake.Cluster, n int) (out []string) {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(k.ListenAddrs()...), kgo.ConsumeTopics(acmeTopic), kgo.FetchMaxWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for len(out) < n && ctx.Err() == nil {
		c.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			e := &hookv1.MqEvent{}
			if err := proto.Unmarshal(r.Value, e); err != nil || e.Sign == "" || e.TenantSeq != uint64(len(out)+1) || e.TenantId != "acme" {
				t.Errorf("%v, %v", e, err)
			}
			id := e.MsgId
			if e.EventType < hookv1.EventType_SINGLE_CHAT_MSG {
				id = "" // the connection's epoch
			}
			out = append(out, fmt.Sprintf("%v %s %s>%s", e.EventType, id, e.UserId, e.ToUserId))
		})
	}
	return out
}

func TestWhatHappensIsOnKafka(t *testing.T) {
	k := startKafka(t)
	yes := true
	a := &acme{config: &hookv1.TenantRuntimeConfig{TenantSecret: "s", OfflineUseHookPull: &yes}}
	r := startRouter(t, "r1", Memory, a.serve(t), map[string]string{"KAFKA__BOOTSTRAP_SERVERS": k.ListenAddrs()[0]})
	g := startGateway(t, "g1", 1)
	g.register(r)
	g.open(r, 1, "ann")
	epoch := g.open(r, 2, "ben").Epoch
	p := g.publisher(r)
	for i, to := range []string{"ben", "cat"} {
		if ack := p.send(text("ann", to, fmt.Sprint("m", i), "hi")); ack.Status != messagev1.AckStatus_SENT || ack.OfflineNotifiedUsers != uint32(i) {
			t.Fatalf("ack %v", ack)
		}
	}
	if _, err := g.client(r).CloseSessions(t.Context(), connect.NewRequest(&routerv1.CloseSessionsRequest{Gateway: g.ref(), Sessions: []*routerv1.ClosedSession{
		{SessionId: 2, TenantId: "acme", UserId: "ben", DeviceId: "phone", Epoch: epoch, Stage: routerv1.ClosedSession_STAGE_FINAL},
	}})); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"CONNECT_ONLINE  ann>", "CONNECT_ONLINE  ben>", "SINGLE_CHAT_MSG m0 ann>ben", "SINGLE_CHAT_MSG m1 ann>cat", "OFFLINE_MESSAGE m1 ann>cat",
		"CONNECT_OFFLINE  ben>",
	}
	if got := events(t, k, len(want)); !slices.Equal(got, want) {
		t.Errorf("events %q", got)
	}
}

func TestSentWaitsForTheBrokerWhereTheTenantWantsIt(t *testing.T) {
	k := startKafka(t)
	yes := true
	a := &acme{config: &hookv1.TenantRuntimeConfig{TenantSecret: "s", EventsRequired: &yes}}
	r := startRouter(t, "r1", Memory, a.serve(t), map[string]string{"KAFKA__BOOTSTRAP_SERVERS": k.ListenAddrs()[0]})
	g := startGateway(t, "g1", 1)
	g.register(r)
	g.open(r, 1, "ann")
	g.open(r, 2, "ben")
	p := g.publisher(r)
	if ack := p.send(text("ann", "ben", "1", "one")); ack.Status != messagev1.AckStatus_SENT {
		t.Fatalf("ack %v", ack)
	}
	broken := k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Count: -1, Err: kerr.NotEnoughReplicas})
	if ack := p.send(text("ann", "ben", "2", "two")); ack.Status != messagev1.AckStatus_FAILED || ack.Reason != "event not stored" {
		t.Fatalf("ack %v", ack)
	}
	broken.Remove()
	g.wants(2, "one")
}

func TestDeadLettersAreRedrivenOverRPC(t *testing.T) {
	k := startKafka(t)
	a := &acme{config: &hookv1.TenantRuntimeConfig{TenantSecret: "s"}}
	r := startRouter(t, "r1", Memory, a.serve(t), map[string]string{"KAFKA__BOOTSTRAP_SERVERS": k.ListenAddrs()[0]})
	broken := k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: acmeTopic, Count: -1, Err: kerr.TopicAuthorizationFailed})
	g := startGateway(t, "g1", 1)
	g.register(r)
	g.open(r, 1, "ann")
	testkit.Eventually(t, "it is a dead letter", func() bool { return k.PartitionInfo(acmeTopic+"-dlq", 0).HighWatermark == 1 })
	broken.Remove()
	st, err := g.client(r).RedriveDLQ(t.Context(), connect.NewRequest(&routerv1.RedriveDLQRequest{TenantId: "acme"}))
	if err != nil {
		t.Fatal(err)
	}
	var last *routerv1.RedriveProgress
	for st.Receive() {
		last = st.Msg().Progress
	}
	if st.Err() != nil || !last.GetDone() || last.Sent != 1 {
		t.Errorf("%v, %v", last, st.Err())
	}
	_ = st.Close()
	if got := events(t, k, 1); !slices.Equal(got, []string{"CONNECT_ONLINE  ann>"}) {
		t.Errorf("events %q", got)
	}
}
