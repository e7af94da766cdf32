package event

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	"github.com/mics-im/mics/router/internal/memstore"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			_, _ = io.WriteString(os.Stderr, err.Error())
			code = 1
		}
	}
	os.Exit(code)
}

const secret = "s3cret"

// journal is a log that can be read while it is written.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

func (j *journal) count(text string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.b.String(), text)
}

// world is a publisher under test.
type world struct {
	*Publisher
	log      *journal
	patience time.Duration // of the stop at the end
}

// newWorld starts a publisher with the contract's limits, changed by with.
func newWorld(t testing.TB, addrs []string, with func(*Options)) *world {
	t.Helper()
	log := &journal{}
	tel, err := telemetry.New(t.Context(), telemetry.Config{LogWriter: log})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{
		Config: Config{
			Brokers: addrs, MaxAttempts: 3, RetryBackoff: 50 * time.Millisecond, QueueCapacity: 50_000, MaxPendingPerTenant: 10_000,
			QueueMaxBytes: 256 << 20, CreateTopics: true, TopicPartitions: 3,
		},
		MaxMessageBytes: 1 << 20, Node: "router-1@7", Secret: func(string) string { return secret }, Telemetry: tel, Locks: memstore.New(),
	}
	if with != nil {
		with(&o)
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Publisher: p, log: log, patience: 2 * time.Second}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), w.patience)
		defer cancel()
		p.Stop(ctx)
		_ = tel.Shutdown(context.Background())
		if t.Failed() {
			t.Log(log.String())
		}
		if n, b := p.total.Load(), p.bytes.Load(); n != 0 || b != 0 {
			t.Errorf("%d events of %d bytes are still counted after the stop", n, b)
		}
		if n := p.metrics.fallback.Load(); n != 0 {
			t.Errorf("%d events are still counted as kept", n)
		}
	})
	return w
}

func (w *world) published() (n int64) {
	for _, c := range w.metrics.published {
		n += c.Value()
	}
	return n
}

func (w *world) dropped() (n int64) {
	for _, c := range w.metrics.dropped {
		n += c.Value()
	}
	return n
}

func (w *world) drops(why Drop) int64 { return w.metrics.dropped[why].Value() }

// chat is a message event.
func chat(id, from, to string) Event {
	return Event{
		Type: hookv1.EventType_SINGLE_CHAT_MSG, Key: from + ":" + to, MsgID: id, User: from, Device: "phone", ToUser: to,
		Data: []byte("\x0a\x01t"), Time: time.Now(),
	}
}
