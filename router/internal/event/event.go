// Package event publishes what happens to Kafka, for the tenants' own systems
// (CONTRACT section 3). Publishing never blocks: an event enters its tenant's
// lane or is dropped and counted there and then.
//
//	Publish → lane (bounded, numbers it) → partition (by key) → batch →
//	topic, KAFKA_MAX_ATTEMPTS times → dead letters → the lane again (fallback)
//
// It stands on sarama's connections and protocol, not on its AsyncProducer,
// which all tenants of a process would share, where a topic without a leader
// fills channels that the others' events must pass, and where an event that has
// used up its attempts comes back under a new sequence number, behind newer
// ones of its key. Here a batch keeps its producer id and sequence number for as
// long as it is unknown whether the broker has it, so that the broker recognises
// it whenever it is sent again, and nothing of its partition is sent before it is
// settled.
//
// This is the only package that imports sarama.
package event

import (
	"errors"
	"time"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
)

// Errors that Event.Done may get, wrapped; compare with errors.Is.
var (
	// ErrDeadLettered: the tenant's topic did not take it, its dead letter topic
	// did.
	ErrDeadLettered = errors.New("dead-lettered")
	// ErrDropped: no broker has it, nor will have, as far as is known.
	ErrDropped = errors.New("dropped")
)

// Event is something that happened.
type Event struct {
	Type hookv1.EventType
	// Key: events of one tenant with the same key keep their order.
	Key string

	MsgID, User, Device, ToUser, Group string

	// Data is a serialized ConnectAck or MessageRequest; nobody may modify it.
	Data        []byte
	Time        time.Time
	TraceID     string
	Unmoderated bool

	// Expires: if it has not been sent once by then it is dropped; zero: never.
	Expires time.Time
	// Done, unless nil, is called once, from any goroutine, if Publish took the
	// event: with nil when the tenant's topic has it. It must not block. An event
	// with it is sent without waiting for company.
	Done func(error)
}

// Drop is a reason of mics_mq_dropped_total.
type Drop string

// Reasons of drops. Those before DropTooLarge happen before an event is
// numbered and leave no gap in tenant_seq; after the others the gap shows.
const (
	DropTenantQueue Drop = "tenant_queue_full" // KAFKA_MAX_PENDING_PER_TENANT
	DropQueue       Drop = "queue_full"        // the tenant's share of KAFKA_QUEUE_CAPACITY
	DropBytes       Drop = "queue_bytes_full"  // the tenant's share of KAFKA_QUEUE_MAX_BYTES
	DropTopic       Drop = "topic_invalid"     // the tenant's name cannot be part of a topic's
	DropStopped     Drop = "stopped"           // published after Stop

	DropTooLarge Drop = "too_large" // for both topics
	DropRejected Drop = "rejected"  // by both topics
	DropExpired  Drop = "expired"   // Event.Expires
	DropShutdown Drop = "shutdown"  // not sent when the time of Stop was over
)

var drops = []Drop{
	DropTenantQueue, DropQueue, DropBytes, DropTopic, DropStopped, DropTooLarge, DropRejected, DropExpired, DropShutdown,
}

// Topic is the tenant's topic.
func Topic(tenant string) string { return "im-mics-" + tenant + "-event" }

// DeadLetters is where events go that the tenant's topic does not take.
func DeadLetters(tenant string) string { return Topic(tenant) + "-dlq" }

// maxTopic is Kafka's bound on a topic's name.
const maxTopic = 249

// usable tells whether the tenant's topics have names that Kafka allows.
func usable(tenant string) bool {
	for _, c := range []byte(tenant) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return len(DeadLetters(tenant)) <= maxTopic
}

// partition places a key as Kafka's own clients do by default (murmur2), so that
// a tenant's tools find it where they expect it.
func partition(key string, n int) int {
	const m, seed = 0x5bd1e995, 0x9747b28c
	h := uint32(seed) ^ uint32(len(key))
	for ; len(key) >= 4; key = key[4:] {
		k := uint32(key[0]) | uint32(key[1])<<8 | uint32(key[2])<<16 | uint32(key[3])<<24
		k *= m
		k ^= k >> 24
		h = h*m ^ k*m
	}
	switch len(key) {
	case 3:
		h ^= uint32(key[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(key[1]) << 8
		fallthrough
	case 1:
		h ^= uint32(key[0])
		h *= m
	}
	h ^= h >> 13
	h *= m
	h ^= h >> 15
	return int(h&0x7fffffff) % n
}
