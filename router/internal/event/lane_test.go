package event

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"context"

	"github.com/IBM/sarama"
	"github.com/mics-im/mics/internal/config"
)

// nowhere is a network on which nothing answers.
func nowhere(ctx context.Context, _, _ string) (net.Conn, error) {
	return nil, errors.New("nobody there")
}

func standing(t *testing.T, with func(*Options)) *world {
	w := newWorld(t, []string{"broker:9092"}, func(o *Options) {
		o.Dial = nowhere
		if with != nil {
			with(o)
		}
	})
	w.patience = 0
	return w
}

func fill(w *world, tenant string, n int) (taken int) {
	for i := range n {
		if w.Publish(tenant, chat(fmt.Sprint(i), "a", "b")) {
			taken++
		}
	}
	return taken
}

func TestATenantHasABound(t *testing.T) {
	w := standing(t, nil)
	if n := fill(w, "one", 12_000); n != 10_000 || w.drops(DropTenantQueue) != 2000 {
		t.Errorf("%d taken, %d dropped", n, w.drops(DropTenantQueue))
	}
}

func TestAllTenantsHaveABoundAndRoomIsLeftForAnother(t *testing.T) {
	w := standing(t, nil)
	all := 0
	for i := range 12 {
		n := fill(w, fmt.Sprint("tenant-", i), 12_000)
		if all += n; n == 0 {
			t.Fatalf("tenant %d finds no room", i)
		}
		if i < 4 && n != 10_000 {
			t.Errorf("tenant %d has %d, although there is room for its bound", i, n)
		}
	}
	if all > 50_000 || w.drops(DropQueue) == 0 {
		t.Errorf("%d are taken", all)
	}
}

func TestBytesHaveABound(t *testing.T) {
	w := standing(t, func(o *Options) { o.QueueMaxBytes = 8 << 20 })
	big := chat("m", "a", "b")
	big.Data = make([]byte, 1<<20)
	n := 0
	for w.Publish("one", big) {
		n++
	}
	if n != 4 && n != 3 || w.drops(DropBytes) != 1 {
		t.Errorf("%d taken of a MiB each", n)
	}
	if !w.Publish("two", big) {
		t.Error("another tenant finds no room")
	}
}

func TestATenantWithoutATopicIsDropped(t *testing.T) {
	w := standing(t, nil)
	if w.Publish("a b", chat("m", "a", "b")) || w.drops(DropTopic) != 1 {
		t.Error("taken")
	}
}

func TestWhatIsDroppedAtTheEntranceHasNoNumber(t *testing.T) {
	w := standing(t, func(o *Options) { o.MaxPendingPerTenant = 3 })
	fill(w, "one", 10)
	l := w.lane("one")
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seq != 3 {
		t.Errorf("%d numbers are given for 3 events", l.seq)
	}
}

func TestJudgements(t *testing.T) {
	for err, want := range map[error]struct {
		v       verdict
		unclear bool
	}{
		nil:                                   {stored, false},
		sarama.ErrDuplicateSequenceNumber:     {stored, false},
		errors.New("connection reset"):        {moved, true},
		fmt.Errorf("%w: refused", errNotSent): {moved, false},
		sarama.ErrMessageSizeTooLarge:         {large, false},
		sarama.ErrPolicyViolation:             {refused, false},
		sarama.ErrRequestTimedOut:             {again, true},
		sarama.ErrTopicAuthorizationFailed:    {again, false},
		sarama.ErrUnknownProducerID:           {lostCount, false},
	} {
		if v, unclear := judge(err); v != want.v || unclear != want.unclear {
			t.Errorf("%v: %d, %v", err, v, unclear)
		}
	}
}

func TestSequenceNumbersWrap(t *testing.T) {
	if got := following(1<<31-2, 3); got != 1 {
		t.Errorf("got %d", got)
	}
}

func TestSettings(t *testing.T) {
	parse := func(env map[string]string) (Config, error) {
		var c Config
		s := config.New("test")
		c.Register(s)
		return c, s.Parse(nil, func(name string) (string, bool) { v, ok := env[name]; return v, ok })
	}
	c, err := parse(nil)
	if err != nil || len(c.Brokers) != 0 || c.MaxAttempts != 3 || c.QueueCapacity != 50_000 || c.MaxPendingPerTenant != 10_000 || c.RetryBackoff != 50*time.Millisecond {
		t.Errorf("the defaults are %+v, %v", c, err)
	}
	for _, env := range []map[string]string{
		{"KAFKA__BOOTSTRAP_SERVERS": "broker"},
		{"KAFKA__BOOTSTRAP_SERVERS": "http://a:9092"},
		{"KAFKA_MAX_ATTEMPTS": "0"},
		{"KAFKA_SASL_MECHANISM": "GSSAPI"},
		{"KAFKA_SASL_MECHANISM": "PLAIN"},
		{"KAFKA_SASL_USERNAME": "u", "KAFKA_SASL_PASSWORD": "p"},
		{"KAFKA_TLS_CA_FILE": "/ca.pem"},
		{"KAFKA_TLS": "true", "KAFKA_TLS_CERT_FILE": "/c.pem"},
	} {
		if _, err := parse(env); !errors.Is(err, config.ErrInvalid) {
			t.Errorf("%v: %v", env, err)
		}
	}
	if c, err = parse(map[string]string{
		"KAFKA__BOOTSTRAP_SERVERS": "a:1, b:2", "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512", "KAFKA_SASL_USERNAME": "u", "KAFKA_SASL_PASSWORD": "p", "KAFKA_TLS": "true",
	}); err != nil || len(c.Brokers) != 2 {
		t.Errorf("%+v, %v", c, err)
	}
}
