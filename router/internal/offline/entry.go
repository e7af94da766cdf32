package offline

import "time"

// Message is one message as it will be delivered.
type Message struct {
	Bytes       []byte // a serialized MessageRequest; never modified
	Unmoderated bool
	// Key names it; a message that is there already is kept once. One without a
	// key gets one when it is kept, for its copies.
	Key [16]byte
}

// Entry is a message and whom it is for.
type Entry struct {
	Message
	// Devices are the absent devices it is kept for; empty: for whichever
	// device of the user comes first.
	Devices []string
	// TTL is how long it is kept.
	TTL time.Duration
	// Front puts it before what is already there: it was handed back by a
	// closing session, so it is older.
	Front bool
	// Moved: another router kept it before. Unless Front, it goes behind what was
	// handed back and before the rest.
	Moved bool
	// At is when a router kept it first, Unix time in nanoseconds; zero: now.
	// What is in front, and what was moved, is in this order.
	At int64
}

// Limits bound the buffer.
type Limits struct {
	MaxMessagesPerUser int
	MaxBytesPerUser    int
	// MaxBytes bounds the whole buffer.
	MaxBytes int64
}

// Drop says why a message was not kept, or not kept longer.
type Drop string

const (
	// DropOverflow: the user's buffer was full and this was the oldest.
	DropOverflow Drop = "overflow"
	// DropExpired: its time was over.
	DropExpired Drop = "expired"
	// DropTooLarge: it alone is over the user's limit.
	DropTooLarge Drop = "too_large"
	// DropFull: the whole buffer is full.
	DropFull Drop = "full"
	// DropDisabled: the tenant keeps nothing.
	DropDisabled Drop = "disabled"
)

// Drops lists every reason, for counters that start at zero.
var Drops = []Drop{DropOverflow, DropExpired, DropTooLarge, DropFull, DropDisabled}

// entryOverhead is what an entry costs besides its bytes, so that empty
// messages are not free.
const entryOverhead = 144
