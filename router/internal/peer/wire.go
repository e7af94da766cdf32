package peer

import (
	"time"

	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/offline"
	"github.com/mics-im/mics/router/internal/route"
)

// wireOverhead is what an entry is taken to need in a call besides its message.
const wireOverhead = 256

func ref(n route.NodeRef) *routerv1.RouterRef {
	return &routerv1.RouterRef{NodeId: n.ID, Incarnation: n.Incarnation}
}

func wireEntry(key route.UserKey, e offline.Entry) *routerv1.BufferEntry {
	return &routerv1.BufferEntry{
		TenantId: key.Tenant, UserId: key.User, DeviceIds: e.Devices,
		Message: e.Bytes, Unmoderated: e.Unmoderated, Key: e.Key[:],
		Front: e.Front, Moved: e.Moved, StoredAt: e.At, TtlMs: uint64(max((e.TTL+time.Millisecond-1)/time.Millisecond, 0)),
	}
}

// entryOf reads an entry; ttl is for one that says none.
func entryOf(e *routerv1.BufferEntry, ttl time.Duration) offline.Entry {
	if e.TtlMs > 0 {
		ttl = time.Duration(min(e.TtlMs, maxTTLMs)) * time.Millisecond
	}
	return offline.Entry{
		Message: offline.Message{Bytes: e.Message, Unmoderated: e.Unmoderated, Key: KeyOf(e.Key)},
		Devices: e.DeviceIds, TTL: ttl, Front: e.Front, Moved: e.Moved, At: e.StoredAt,
	}
}

// maxTTLMs is a year: more is an overflow.
const maxTTLMs = 365 * 24 * 3600 * 1000

// KeyOf is a message's key from the wire; one of another size is none.
func KeyOf(b []byte) (key [16]byte) {
	if len(b) == len(key) {
		copy(key[:], b)
	}
	return key
}

func userOf(e *routerv1.BufferEntry) route.UserKey {
	return route.UserKey{Tenant: e.TenantId, User: e.UserId}
}
