package harness

import (
	"context"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/protobuf/proto"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

// seen is an Observer that keeps everything.
type seen struct {
	mu     sync.Mutex
	bodies []string
	ends   []int
}

func (s *seen) Connected(string) {}
func (s *seen) Ended(error)      {}
func (s *seen) Disconnected(code int, _ string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ends = append(s.ends, code)
}

func (s *seen) Delivered(m Incoming) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bodies = append(s.bodies, string(m.Body))
}

// fakeGateway hands the messages of every connection to a function that writes
// what it likes.
func fakeGateway(t *testing.T, got func(write func(*messagev1.ServerFrame), m *messagev1.MessageRequest)) string {
	t.Helper()
	var wg sync.WaitGroup
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		wg.Add(1)
		defer wg.Done()
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = conn.CloseNow() }()
		write := func(f *messagev1.ServerFrame) {
			b, err := proto.Marshal(f)
			if err != nil {
				t.Error(err)
			}
			_ = conn.Write(context.Background(), websocket.MessageBinary, b) // the client may be gone
		}
		write(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_ConnectAck{ConnectAck: &messagev1.ConnectAck{Code: 1000, NodeId: "fake"}}})
		for {
			_, b, err := conn.Read(context.Background())
			if err != nil {
				return
			}
			f := &messagev1.ClientFrame{}
			if err := proto.Unmarshal(b, f); err != nil {
				t.Error(err)
			}
			if m := f.GetMessage(); m != nil {
				got(write, m)
			}
			if f.GetHeartbeatPing() != nil {
				write(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_HeartbeatPong{HeartbeatPong: &messagev1.HeartbeatPong{}}})
			}
		}
	}))
	t.Cleanup(func() { srv.Close(); wg.Wait() })
	return strings.Replace(srv.URL, "http", "ws", 1)
}

func ack(id string) *messagev1.ServerFrame {
	return &messagev1.ServerFrame{Payload: &messagev1.ServerFrame_Ack{Ack: &messagev1.MessageAck{MsgId: id}}}
}

func TestV1NumbersWritesAgainAndIsAnswered(t *testing.T) {
	var mu sync.Mutex
	var ids []string
	stamps := map[string][]int64{}
	url := fakeGateway(t, func(write func(*messagev1.ServerFrame), m *messagev1.MessageRequest) {
		mu.Lock()
		defer mu.Unlock()
		ids = append(ids, m.GetMsgId())
		if stamps[m.GetMsgId()] = append(stamps[m.GetMsgId()], m.GetTimestampMs()); m.GetMsgId() == "1" || len(stamps[m.GetMsgId()]) == 2 {
			write(ack(m.GetMsgId()))
		}
	})
	c := DialV1(Dialing{URLs: []string{url}, Tenant: "acme", User: "ann", Device: "phone", Observer: &seen{}})
	defer c.Close()
	for want := 1; want <= 2; want++ { // the second is answered when it comes again
		answers := make(chan Answer, 1)
		c.Submit(Outgoing{To: "bob", Body: []byte("hi")}, func(a Answer) { answers <- a })
		if a := <-answers; !a.Sent || a.Attempts != want {
			t.Errorf("message %d was answered %+v", want, a)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"1", "2", "2"}; !reflect.DeepEqual(ids, want) {
		t.Errorf("wrote %v, want %v", ids, want)
	}
	if s := stamps["2"]; len(s) != 2 || s[1]-s[0] < ackTimeout.Milliseconds() {
		t.Errorf("written at %v", s)
	}
}

func TestV1GoesInGoodOrder(t *testing.T) {
	o := &seen{}
	url := fakeGateway(t, func(write func(*messagev1.ServerFrame), m *messagev1.MessageRequest) {
		write(ack(m.GetMsgId()))
		for _, body := range []string{"1", "2", "3"} {
			write(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_Delivery{Delivery: &messagev1.MessageDelivery{Message: &messagev1.MessageRequest{MsgBody: []byte(body)}}}})
			time.Sleep(20 * time.Millisecond) // so that the close frame is on its way meanwhile
		}
	})
	c := DialV1(Dialing{URLs: []string{url}, Tenant: "acme", User: "ann", Device: "phone", Observer: o})
	answered := make(chan struct{})
	c.Submit(Outgoing{To: "bob"}, func(Answer) { close(answered) })
	<-answered
	c.Close()
	if want := []string{"1", "2", "3"}; !reflect.DeepEqual(o.bodies, want) || !reflect.DeepEqual(o.ends, []int{1000}) {
		t.Errorf("saw %v, want %v; ended with %v", o.bodies, want, o.ends)
	}
}
