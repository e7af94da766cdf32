package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	"github.com/mics-im/mics/sdk/go/hook"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	secret = "s3cret"
	topic  = "im-mics-demo-event"
)

// world is a Kafka and the program, which can be started again.
type world struct {
	t       *testing.T
	kafka   *kfake.Cluster
	cluster *kgo.Client // publishes as the cluster does
	db      string
	url     string
	seq     uint64
	stop    func()
}

func newWorld(t *testing.T, topics ...string) *world {
	t.Helper()
	k, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(3, topics...))
	if err != nil {
		t.Fatal(err)
	}
	c, err := kgo.NewClient(kgo.SeedBrokers(k.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, kafka: k, cluster: c, db: filepath.Join(t.TempDir(), "history.db")}
	w.start()
	t.Cleanup(func() {
		w.stop()
		c.Close()
		k.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	return w
}

func (w *world) start() {
	w.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.url = "http://" + ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, config{
			database: w.db, tenant: "demo", secret: secret, brokers: w.kafka.ListenAddrs(), trusting: true, listener: ln,
			kafka: []kgo.Opt{kgo.FetchMaxWait(50 * time.Millisecond)},
		}, slog.New(slog.NewTextHandler(io.Discard, nil)))
	}()
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	}
}

// publish sends an event; times more than one: it comes again.
func (w *world) publish(e *hookv1.MqEvent, times int) {
	w.t.Helper()
	w.seq++
	e.TenantId, e.NodeId, e.TenantSeq, e.Timestamp = "demo", "r@1", w.seq, time.Now().UnixMilli()
	if err := hook.SignEvent(e, secret); err != nil {
		w.t.Fatal(err)
	}
	raw, err := proto.Marshal(e)
	if err != nil {
		w.t.Fatal(err)
	}
	for range times {
		if err := w.cluster.ProduceSync(w.t.Context(), &kgo.Record{Topic: topic, Key: []byte("k"), Value: raw}).FirstErr(); err != nil {
			w.t.Fatal(err)
		}
	}
}

func chat(i int) *hook.Message {
	return &hook.Message{TenantId: "demo", UserId: "ann", DeviceId: "phone", MsgId: fmt.Sprint(i), ToUserId: "bob", MsgBody: []byte(fmt.Sprint("text ", i)), TimestampMs: int64(i)}
}

// misses says that bob was away when ann wrote.
func (w *world) misses(i int) {
	raw, err := proto.Marshal(chat(i))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, kind := range []hookv1.EventType{hook.SingleChat, hook.OfflineMessage} {
		w.publish(&hookv1.MqEvent{EventType: kind, MsgId: fmt.Sprint(i), UserId: "ann", DeviceId: "phone", ToUserId: "bob", EventData: raw}, 1+i%2)
	}
}

// ask calls a hook as the cluster does.
func ask[T proto.Message](w *world, name string, req hook.Request, res T) T {
	w.t.Helper()
	req.GetMeta().TenantId, req.GetMeta().RequestId, req.GetMeta().TimestampMs = "demo", "1", time.Now().UnixMilli()
	if err := hook.Sign(req, secret); err != nil {
		w.t.Fatal(err)
	}
	body, err := proto.Marshal(req)
	if err != nil {
		w.t.Fatal(err)
	}
	r, err := http.Post(w.url+"/mics/"+name, "application/protobuf", bytes.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	raw, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		w.t.Fatalf("%s: %s, %v", name, r.Status, err)
	}
	if err := proto.Unmarshal(raw, res); err != nil {
		w.t.Fatal(err)
	}
	return res
}

// page asks for what bob missed.
func (w *world) page(limit int32, cursor string) (texts []string, next string) {
	w.t.Helper()
	res := ask(w, hook.NameOfflineMessages, &hook.GetOfflineMessagesRequest{
		Meta: &hookv1.HookMeta{}, UserId: "bob", DeviceId: "pad", MaxMessages: limit, Cursor: cursor,
	}, &hook.GetOfflineMessagesResponse{})
	for _, m := range res.GetMessages() {
		texts = append(texts, string(m.GetMsgBody()))
	}
	if res.GetHasMore() {
		next = res.GetNextCursor()
	}
	return texts, next
}

// history returns the texts of ann's and bob's conversation, newest first.
func (w *world) history() (texts []string) {
	w.t.Helper()
	r, err := http.Get(w.url + "/history?user=bob&with=ann")
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	var page struct {
		Messages []struct{ Body []byte }
	}
	if err := json.NewDecoder(r.Body).Decode(&page); err != nil {
		w.t.Fatal(err)
	}
	for _, m := range page.Messages {
		texts = append(texts, string(m.Body))
	}
	return texts
}

// until waits for the program to have consumed what was published.
func (w *world) until(n int) {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); len(w.history()) < n; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("history %q", w.history())
		}
	}
}

func TestTheWholeLoop(t *testing.T) {
	w := newWorld(t, topic)
	auth := ask(w, hook.NameAuth, &hook.AuthRequest{Meta: &hookv1.HookMeta{}, Token: "user:ann"}, &hook.AuthResponse{})
	if !auth.GetOk() || auth.GetUserId() != "ann" || !auth.GetConfig().GetOfflineUseHookPull() || auth.GetConfig().GetCheckMessageEnabled() {
		t.Errorf("auth %v", auth)
	}
	w.publish(&hookv1.MqEvent{EventType: hook.ConnectOnline, UserId: "ann"}, 2)
	for i := range 5 {
		w.misses(i)
	}
	w.until(5)
	if got := w.history(); !slices.Equal(got, []string{"text 4", "text 3", "text 2", "text 1", "text 0"}) {
		t.Errorf("history %q", got)
	}
	if got := ask(w, hook.NameGroupMembers, &hook.GetGroupMembersRequest{Meta: &hookv1.HookMeta{}, GroupId: "g"}, &hookv1.GetGroupMembersResponse{}); !slices.Equal(got.GetUserIds(), []string{"ann"}) {
		t.Errorf("members %v", got)
	}
	first, cursor := w.page(3, "")
	if !slices.Equal(first, []string{"text 0", "text 1", "text 2"}) || cursor == "" {
		t.Fatalf("page %q, next %q", first, cursor)
	}
	// The answer was lost: nothing is.
	if again, _ := w.page(3, ""); !slices.Equal(again, first) {
		t.Errorf("again %q", again)
	}
	second, cursor2 := w.page(3, cursor)
	if !slices.Equal(second, []string{"text 3", "text 4"}) {
		t.Errorf("second page %q", second)
	}
	// So was this one, and the user connects anew: what he has is not sent again.
	if got, _ := w.page(3, ""); !slices.Equal(got, second) {
		t.Errorf("at the next connect %q", got)
	}
	if last, next := w.page(3, cursor2); len(last) != 0 || next != "" {
		t.Errorf("last page %q, next %q", last, next)
	}
	if got, _ := w.page(3, ""); len(got) != 0 {
		t.Errorf("after all was taken %q", got)
	}
}

func TestItGoesOnWhereItWas(t *testing.T) {
	w := newWorld(t, topic)
	for i := range 3 {
		w.misses(i)
	}
	w.until(3)
	w.stop()
	for i := 3; i < 6; i++ {
		w.misses(i)
	}
	w.start()
	w.until(6)
	if got, _ := w.page(100, ""); len(got) != 6 {
		t.Errorf("missed %q", got)
	}
}

func TestTheTopicMayComeLater(t *testing.T) {
	w := newWorld(t)
	time.Sleep(500 * time.Millisecond) // it has looked, and found nothing
	if err := w.kafka.CreateTopic(topic, 3, nil); err != nil {
		t.Fatal(err)
	}
	w.misses(1)
	w.until(1)
}

func TestForgedEventsAreNotStored(t *testing.T) {
	w := newWorld(t, topic)
	raw, err := proto.Marshal(chat(1))
	if err != nil {
		t.Fatal(err)
	}
	forged := &hookv1.MqEvent{TenantId: "demo", EventType: hook.SingleChat, EventData: raw}
	if err := hook.SignEvent(forged, "another secret"); err != nil {
		t.Fatal(err)
	}
	value, err := proto.Marshal(forged)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range [][]byte{value, []byte("garbage")} {
		if err := w.cluster.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: v}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	w.misses(2)
	w.until(1)
	if got := w.history(); !slices.Equal(got, []string{"text 2"}) {
		t.Errorf("history %q", got)
	}
}

func TestLongConversationsComeInPages(t *testing.T) {
	ctx := t.Context()
	s, err := openStore(ctx, filepath.Join(t.TempDir(), "h.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.close() }()
	var events []*hook.Event
	for i := range 120 {
		raw, err := proto.Marshal(chat(i))
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, &hook.Event{MqEvent: &hookv1.MqEvent{EventType: hook.SingleChat, EventData: raw}, Message: chat(i)})
	}
	if err := s.add(ctx, events); err != nil {
		t.Fatal(err)
	}
	want, before := 119, int64(0)
	for _, n := range []int{50, 50, 20, 0} {
		page, last, err := s.history(ctx, conversation("ann", "bob", ""), before, 50)
		if err != nil || len(page) != n {
			t.Fatalf("%d messages, %v", len(page), err)
		}
		for _, m := range page {
			if m.GetMsgId() != strconv.Itoa(want) {
				t.Fatalf("message %s, not %d", m.GetMsgId(), want)
			}
			want--
		}
		before = last
	}
}
