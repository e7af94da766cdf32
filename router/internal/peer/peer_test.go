package peer

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/testkit"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/memstore"
	"github.com/mics-im/mics/router/internal/offline"
	"github.com/mics-im/mics/router/internal/recall"
	"github.com/mics-im/mics/router/internal/route"
)

// pair is two routers that share a store; r2 is everybody's home.
type pair struct {
	store  *memstore.Store
	home   *Buffer // at r2
	away   *Buffer // at r1
	buffer *offline.Buffer
	fail   bool
}

type seenFrom struct{ self bool }

func (s seenFrom) Home(route.UserKey) (route.Router, bool) {
	return route.Router{NodeRef: route.NodeRef{ID: "r2", Incarnation: 1}}, s.self
}
func (seenFrom) Alive(route.NodeRef) bool { return true }

// wire is r1's client of r2, without a network.
type wire struct {
	routerv1connect.PeerServiceClient
	p *pair
}

func (w wire) Buffer(ctx context.Context, req *connect.Request[routerv1.BufferRequest]) (*connect.Response[routerv1.BufferResponse], error) {
	if w.p.fail {
		return nil, connect.NewError(connect.CodeUnavailable, nil)
	}
	return connect.NewResponse(w.p.home.KeepAll(ctx, req.Msg)), nil
}

func newPair() *pair {
	p := &pair{store: memstore.New()}
	p.buffer = offline.New(offline.Limits{MaxMessagesPerUser: 100, MaxBytesPerUser: 1 << 20, MaxBytes: 1 << 20}, func(string, offline.Drop, int) {})
	o := Options{
		Directory: seenFrom{self: true}, Local: p.buffer, Recall: recall.New(func(int) {}), Lookup: p.store.LookupFresh,
		Client: func(route.Router) routerv1connect.PeerServiceClient { return wire{p: p} },
		TTL:    func(string) time.Duration { return time.Hour },
	}
	p.home = NewBuffer(o)
	o.Directory, o.Local = seenFrom{}, offline.New(offline.Limits{}, func(string, offline.Drop, int) {})
	p.away = NewBuffer(o)
	return p
}

func TestMain(m *testing.M) { testkit.Main(m) }

var phone = route.DeviceKey{UserKey: route.UserKey{Tenant: "t", User: "ann"}, Device: "phone"}

func TestAnEntryIsKeptAtTheHomeInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair()
		var mu sync.Mutex
		stored := 0
		for i := range 50 {
			p.away.Put(dispatch.BufferEntry{Key: phone.UserKey, Message: &dispatch.Message{Bytes: []byte(fmt.Sprint(i))}, Done: func(r dispatch.BufferResult) {
				mu.Lock()
				defer mu.Unlock()
				if r == dispatch.Stored {
					stored++
				}
			}})
		}
		p.away.Close()
		p.home.Close()
		_, got := p.buffer.Take(phone)
		if stored != 50 || len(got) != 50 {
			t.Fatalf("%d stored, %d kept", stored, len(got))
		}
		for i, m := range got {
			if string(m.Bytes) != fmt.Sprint(i) {
				t.Fatalf("entry %d is %s", i, m.Bytes)
			}
		}
	})
}

// What another router had sent to a session that never came to be is put where it was
// in time among what is kept.
func TestWhatIsGivenBackComesInItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair()
		begin := time.Now().UnixNano()
		time.Sleep(time.Second) // fake time
		put := func(b *Buffer, text string, at int64, front bool) {
			stored := make(chan dispatch.BufferResult, 1)
			b.Put(dispatch.BufferEntry{
				Key: phone.UserKey, Devices: []string{"phone"}, Message: &dispatch.Message{Bytes: []byte(text), At: at}, Front: front,
				Done: func(r dispatch.BufferResult) { stored <- r },
			})
			if r := <-stored; r != dispatch.Stored {
				t.Errorf("%s: %v", text, r)
			}
		}
		put(p.away, "first", begin+1, false)
		put(p.home, "third", begin+3, false)
		put(p.away, "handed back", 0, true)
		put(p.away, "second", begin+2, false) // given back
		put(p.away, "last", 0, false)
		p.away.Close()
		p.home.Close()
		front, rest := p.buffer.Take(phone)
		var texts []string
		for _, m := range append(front, rest...) {
			texts = append(texts, string(m.Bytes))
		}
		if want := []string{"handed back", "first", "second", "third", "last"}; !slices.Equal(texts, want) {
			t.Errorf("%q, want %q", texts, want)
		}
	})
}

func TestADeviceThatCameMeanwhileIsNotStranded(t *testing.T) {
	for name, devices := range map[string][]string{"its own entry": {"phone"}, "whichever comes first": nil} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair()
				defer p.away.Close()
				defer p.home.Close()
				if _, _, err := p.store.Bind(t.Context(), phone, route.Location{Node: route.NodeRef{ID: "g"}, Session: 1}, 1); err != nil {
					t.Fatal(err)
				}
				results := make(chan dispatch.BufferResult, 1)
				p.away.Put(dispatch.BufferEntry{Key: phone.UserKey, Devices: devices, Message: &dispatch.Message{}, Done: func(r dispatch.BufferResult) { results <- r }})
				if r, left := <-results, p.buffer.Bytes(); r != dispatch.Online || left != 0 {
					t.Fatalf("result %v, or it was kept as well", r)
				}
			})
		})
	}
}

// A message that another router has put as well stays in its place: given back it would
// come behind what its sender sent after it.
func TestARepeatIsNotTakenOutOfItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair()
		defer p.away.Close()
		defer p.home.Close()
		put := func(b *Buffer, text string) {
			t.Helper()
			results := make(chan dispatch.BufferResult, 1)
			b.Put(dispatch.BufferEntry{
				Key: phone.UserKey, Devices: []string{"phone"}, Message: &dispatch.Message{Bytes: []byte(text), Key: [16]byte{text[0]}},
				Done: func(r dispatch.BufferResult) { results <- r },
			})
			if r := <-results; r != dispatch.Stored {
				t.Errorf("%s: %v", text, r)
			}
		}
		put(p.away, "1")
		put(p.away, "2")
		if _, _, err := p.store.Bind(t.Context(), phone, route.Location{Node: route.NodeRef{ID: "g"}, Session: 1}, 1); err != nil {
			t.Fatal(err)
		}
		put(p.home, "1") // while the device is let in
		_, got := p.buffer.Take(phone)
		if len(got) != 2 || string(got[0].Bytes) != "1" {
			t.Errorf("it takes %d", len(got))
		}
	})
}

func TestNoRoomWhereTheHomeIsOutOfReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair() // away has room for nothing
		defer p.away.Close()
		defer p.home.Close()
		p.fail = true
		results := make(chan dispatch.BufferResult, 1)
		p.away.Put(dispatch.BufferEntry{Key: phone.UserKey, Message: &dispatch.Message{}, Done: func(r dispatch.BufferResult) { results <- r }})
		if r := <-results; r != dispatch.NotKept {
			t.Fatalf("result %v: SENT would be said for it", r)
		}
	})
}

// TestConnectAgainstBuffer runs the two orders against each other: insert then
// check, register then take. Whatever the interleaving, the message is taken by
// the session or delivered live, exactly once.
func TestConnectAgainstBuffer(t *testing.T) {
	for range 300 {
		p := newPair()
		results := make(chan dispatch.BufferResult, 1)
		taken := make(chan int, 1)
		go func() {
			_, _, _ = p.store.Bind(context.Background(), phone, route.Location{Node: route.NodeRef{ID: "g"}, Session: 1}, 1)
			_, rest := p.buffer.Take(phone)
			taken <- len(rest)
		}()
		p.home.Put(dispatch.BufferEntry{Key: phone.UserKey, Message: &dispatch.Message{}, Done: func(r dispatch.BufferResult) { results <- r }})
		got, result := <-taken, <-results
		if result == dispatch.Online {
			got++
		}
		if got != 1 {
			t.Fatalf("the message reaches the session %d times", got)
		}
		p.home.Close()
		p.away.Close()
	}
}
