package frame

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
)

// Key is the 128-bit name under which a message is deduplicated: (tenant, user,
// device, msg_id) and the fingerprint of type, recipient and body, because V1
// clients number their messages anew in every instance (CONTRACT section 1.2).
// The timestamp is not part of it: a resend carries a new one.
//
// It is a cryptographic hash because one table serves all tenants: who could
// make a message with the key of somebody else's next one ("1", "2", …) would
// have that one taken for a repeat and dropped.
func Key(h Header) [16]byte {
	// Each part comes after its length: ("a", "bc") is not ("ab", "c"). The
	// usual header fits the array and so does not reach the heap.
	var space [512]byte
	b := space[:0]
	for _, s := range [...]string{h.Tenant, h.User, h.Device, h.MsgID, h.ToUser, h.Group} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	b = binary.AppendVarint(b, int64(h.Type))
	// The body by its hash, so that it need not be copied.
	body := sha256.Sum256(h.Body)
	b = append(b, body[:]...)
	sum := sha256.Sum256(b)
	return [16]byte(sum[:16])
}

// IsRepeat tells whether the two have the same Key, without a hash.
func IsRepeat(a, b Header) bool {
	return a.MsgID == b.MsgID && a.Type == b.Type && a.ToUser == b.ToUser && a.Group == b.Group &&
		a.Tenant == b.Tenant && a.User == b.User && a.Device == b.Device && bytes.Equal(a.Body, b.Body)
}
