package pipeline

import (
	"sync/atomic"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/stats"
	"github.com/mics-im/mics/router/internal/tenant"
	"google.golang.org/protobuf/proto"
)

// outcome counts a message's recipients by what became of them.
type outcome struct {
	dispatch.Result
	// notified are absent users whose messages their tenant keeps itself.
	notified int
}

// served is how many recipients the cluster or their tenant takes care of.
func (o outcome) served() int { return o.Delivered + o.Buffered + o.notified }

func ackSent(m *message, o outcome) []byte {
	return marshal(m, &messagev1.MessageAck{
		Status:               messagev1.AckStatus_SENT,
		PartialDelivery:      o.Skipped > 0,
		OfflineNotifiedUsers: uint32(o.notified),
		OfflineBufferedUsers: uint32(o.Buffered),
		OfflineSkippedUsers:  uint32(o.Skipped),
	})
}

func ackDuplicate(m *message) []byte {
	return marshal(m, &messagev1.MessageAck{Status: messagev1.AckStatus_SENT, Reason: reasonDuplicate})
}

func ackFailed(m *message, reason string) []byte {
	return marshal(m, &messagev1.MessageAck{Status: messagev1.AckStatus_FAILED, Reason: reason})
}

func marshal(m *message, ack *messagev1.MessageAck) []byte {
	ack.MsgId = m.header.MsgID
	ack.TimestampMs = time.Now().UnixMilli()
	b, err := proto.Marshal(ack)
	if err != nil {
		// The only error of an in-memory message is text that is not UTF-8. The
		// header's is checked, and a hook's reason came through protobuf: never.
		panic(err)
	}
	return b
}

// share is a tenant's part of the pipeline.
type share struct {
	inFlight atomic.Int64
}

func (p *Pipeline) share(t *tenant.Tenant) *share {
	if s, ok := p.tenants.Load(t); ok {
		return s.(*share)
	}
	s, _ := p.tenants.LoadOrStore(t, &share{})
	return s.(*share)
}

// leave gives the message's place back; a tenant that was taken away goes with
// its last message.
func (p *Pipeline) leave(m *message) {
	if m.share.inFlight.Add(-1) == 0 && m.tenant.Removed() {
		p.tenants.Delete(m.tenant)
	}
}

// metrics are the prebuilt counters of the hot path.
type metrics struct {
	allow, deny, degraded *telemetry.Counter
	reasons               map[string]*telemetry.Counter // never modified
}

func newMetrics(s *stats.Stats) metrics {
	m := metrics{
		allow: s.Check.With("allow"), deny: s.Check.With("deny"), degraded: s.Check.With("degraded"),
		reasons: map[string]*telemetry.Counter{},
	}
	for _, r := range rejections {
		m.reasons[r] = s.Rejected.With(r)
	}
	return m
}

func (m *metrics) rejected(reason string) { m.reasons[reason].Inc() }

func (p *Pipeline) countOutcome(m *message, o outcome) {
	s := p.opts.Stats
	s.Online.Add(int64(o.Delivered))
	s.Offline.Add(int64(o.Buffered + o.notified))
	s.Buffered.Add(int64(o.Buffered))
	s.Skipped.Add(int64(o.Skipped))
	s.Notified.Add(int64(o.notified))
	if m.group() {
		s.GroupBuffered.Add(int64(o.Buffered))
	}
}
