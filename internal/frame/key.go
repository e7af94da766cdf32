package frame

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

// Key is the 128-bit name under which a message is deduplicated: (tenant, user,
// device, msg_id) and the fingerprint of type, recipient and body, because V1
// clients number their messages anew in every instance (CONTRACT section 1.2).
// The timestamp is not part of it: a resend carries a new one. Two messages of
// one device that collide would have to be made to; they harm only their sender.
func Key(h Header) (k [16]byte) {
	for half, seed := range [2]uint64{0x6d696373, 0x64656475} {
		d := xxhash.NewWithSeed(seed)
		var n [8]byte
		for _, s := range [...]string{h.Tenant, h.User, h.Device, h.MsgID, h.ToUser, h.Group} {
			binary.LittleEndian.PutUint64(n[:], uint64(len(s)))
			_, _ = d.Write(n[:])
			_, _ = d.WriteString(s)
		}
		binary.LittleEndian.PutUint64(n[:], uint64(h.Type))
		_, _ = d.Write(n[:])
		_, _ = d.Write(h.Body)
		binary.LittleEndian.PutUint64(k[8*half:], d.Sum64())
	}
	return k
}
