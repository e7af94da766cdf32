// Package stats holds the metrics and the rate-limited log lines that several
// packages of a router share (CONTRACT section 5). Everything is registered at
// zero when the router is made.
package stats

import (
	"log/slog"
	"sync"
	"time"

	"github.com/mics-im/mics/internal/telemetry"
)

// Kinds of mics_rate_limited_total beyond those of the message limiter.
const (
	KindTenantConnections = "connection_limit"
	KindUserConnections   = "user_connection_limit"
	KindInFlight          = "in_flight"
)

// Stats are a router's counters. Safe for concurrent use.
type Stats struct {
	Rejected *telemetry.CounterVec // by reason, see Register of each package
	Failed   *telemetry.Counter
	// Online and Offline count recipients by how a message was brought to them.
	Online, Offline  *telemetry.Counter
	DedupHits        *telemetry.Counter
	DedupForgotten   *telemetry.Counter
	RateLimited      *telemetry.CounterVec
	Check            *telemetry.CounterVec // by allow, deny, degraded
	GroupMessages    *telemetry.Counter
	GroupMembers     *telemetry.Counter
	GroupNodes       *telemetry.Counter
	GroupBuffered    *telemetry.Counter
	Buffered         *telemetry.Counter
	Skipped          *telemetry.Counter
	Notified         *telemetry.Counter
	Drained          *telemetry.Counter
	DrainedFromHook  *telemetry.Counter
	PullsSkipped     *telemetry.Counter
	BufferDropped    *telemetry.CounterVec // by reason
	ForwardFailed    *telemetry.Counter
	ForwardDuration  telemetry.Recorder
	Refused          *telemetry.CounterVec // by the gateway's reason
	Recovered        *telemetry.Counter
	Lost             *telemetry.Counter
	Sessions         *telemetry.CounterVec // admissions by outcome
	HandedBack       *telemetry.Counter
	OutcomesRefused  *telemetry.Counter
	ReleasesFailed   *telemetry.Counter
	AdmissionsForgot *telemetry.Counter
	// KeysForgot counts names of messages that were forgotten before their time.
	KeysForgot     *telemetry.Counter
	SyncFailed     *telemetry.Counter
	SingleCopy     *telemetry.Counter
	Moved          *telemetry.Counter
	SyncOverflowed *telemetry.Counter
	CopiesRefused  *telemetry.Counter

	log *slog.Logger

	mu     sync.Mutex
	logged map[limited]*quiet // guarded by mu: bounded by tenants × kinds
}

// limited names what a rate_limited line is about.
type limited struct{ tenant, kind string }

// quiet is the state of one kind of line.
type quiet struct {
	at       time.Time
	unlogged int
}

// logEvery bounds how often one tenant's limit of one kind is logged.
const logEvery = 10 * time.Second

// New registers everything.
func New(tel *telemetry.Telemetry) *Stats {
	deliveries := tel.CounterVec("mics_deliveries_total", "Recipients that a message was brought to, by way.", "via")
	s := &Stats{
		Rejected:        tel.CounterVec("mics_messages_rejected_total", "Messages refused by a rule, by reason.", "reason"),
		Failed:          tel.Counter("mics_messages_failed_total", "Messages that could not be brought to anybody."),
		Online:          deliveries.With("online"),
		Offline:         deliveries.With("offline"),
		DedupHits:       tel.Counter("mics_dedup_hits_total", "Messages recognised as a repeat."),
		DedupForgotten:  tel.Counter("mics_dedup_evicted_total", "Message ids forgotten before their time, because the table was full."),
		RateLimited:     tel.CounterVec("mics_rate_limited_total", "Messages and connections over a limit, by kind.", "kind"),
		Check:           tel.CounterVec("mics_hook_check_message_total", "Outcomes of check-message.", "result"),
		GroupMessages:   tel.Counter("mics_group_messages_total", "Group messages dispatched."),
		GroupMembers:    tel.Counter("mics_group_members_total", "Members of their groups, summed."),
		GroupNodes:      tel.Counter("mics_group_fanout_nodes_total", "Gateways that they went to, summed."),
		GroupBuffered:   tel.Counter("mics_group_offline_buffered_total", "Recipients of group messages served by the offline buffer."),
		Buffered:        tel.Counter("mics_offline_buffered_total", "Recipients served by the offline buffer."),
		Skipped:         tel.Counter("mics_offline_buffer_skipped_total", "Recipients that were not served: the tenant or a bound did not allow it."),
		Notified:        tel.Counter("mics_offline_notified_total", "Absent recipients whose messages their tenant keeps itself."),
		Drained:         tel.Counter("mics_offline_drained_total", "Messages taken from the offline buffer by a connecting device."),
		DrainedFromHook: tel.Counter("mics_offline_drained_from_hook_total", "Messages pulled from a tenant for a connecting device."),
		PullsSkipped:    tel.Counter("mics_offline_hook_pulls_skipped_total", "Connects for which no message was pulled, because too many pulls were under way."),
		BufferDropped:   tel.CounterVec("mics_offline_dropped_total", "Entries not kept in the offline buffer, or not kept longer, by reason.", "reason"),
		ForwardFailed:   tel.Counter("mics_grpc_forward_failed_total", "Deliveries that could not be handed to a gateway."),
		ForwardDuration: tel.Histogram("mics_grpc_forward_duration_ms", "Time until a gateway answered a delivery, in milliseconds.", "op",
			0.25, 0.5, 1, 2, 5, 10, 25, 50, 100, 250, 1000, 3000)("deliver"),
		Refused:          tel.CounterVec("mics_deliveries_refused_total", "Copies that a gateway did not take, by reason; they are looked up again.", "reason"),
		Recovered:        tel.Counter("mics_copies_recovered_total", "Copies delivered again because their gateway was gone before it confirmed them."),
		Lost:             tel.Counter("mics_copies_lost_total", "Copies that were promised and could not be kept: a bound or the tenant did not allow it."),
		Sessions:         tel.CounterVec("mics_sessions_opened_total", "Connections asked for, by outcome.", "result"),
		HandedBack:       tel.Counter("mics_messages_handed_back_total", "Messages that an ending session had not delivered."),
		OutcomesRefused:  tel.Counter("mics_publish_streams_overflowed_total", "Publish streams ended because their gateway did not read its outcomes."),
		ReleasesFailed:   tel.Counter("mics_connection_count_releases_failed_total", "Connections whose count the store could not give back."),
		KeysForgot:       tel.Counter("mics_recall_forgotten_total", "Names of messages that devices took, forgotten before their time, because there was no room."),
		AdmissionsForgot: tel.Counter("mics_admissions_forgotten_total", "Admissions forgotten before their time, because the table was full."),
		SyncFailed:       tel.Counter("mics_peer_sync_failed_total", "Calls to the router that holds the copies which failed; they are made again."),
		SingleCopy:       tel.Counter("mics_offline_single_copy_total", "Entries kept although their copy could not be made in time; it is made later."),
		Moved:            tel.Counter("mics_offline_moved_total", "Offline entries that went to another home router."),
		SyncOverflowed:   tel.Counter("mics_peer_sync_overflowed_total", "What was not passed on to another router because too much waited."),
		CopiesRefused:    tel.Counter("mics_peer_copies_refused_total", "Entries of other routers for which there was no room."),
		log:              tel.Log,
		logged:           map[limited]*quiet{},
	}
	for _, kind := range []string{"message_qps", "user_message_qps", KindTenantConnections, KindUserConnections, KindInFlight} {
		s.RateLimited.With(kind)
	}
	for _, result := range []string{"allow", "deny", "degraded"} {
		s.Check.With(result)
	}
	return s
}

// Limited counts one refusal and logs rate_limited now and then. tenant is one
// of those that operators configured.
func (s *Stats) Limited(tenant, kind string, threshold, current int) {
	s.RateLimited.With(kind).Inc()
	now := time.Now()
	key := limited{tenant, kind}
	s.mu.Lock()
	q := s.logged[key]
	if q == nil {
		q = &quiet{}
		s.logged[key] = q
	}
	if !q.at.IsZero() && now.Sub(q.at) < logEvery {
		q.unlogged++
		s.mu.Unlock()
		return
	}
	unlogged := q.unlogged
	q.at, q.unlogged = now, 0
	s.mu.Unlock()
	s.log.Warn("rate_limited", telemetry.TenantID, tenant, "type", kind, "threshold", threshold, "current", current, "unlogged", unlogged)
}
