package frame

import (
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"pgregory.net/rapid"
)

// drawMessage draws a message that is well-formed but otherwise what no honest
// client would send: fields in any order, repeated, with wire types that are
// not their own, nested, with tags longer than need be.
func drawMessage(t *rapid.T, depth int) []byte {
	var b []byte
	for range rapid.IntRange(0, 6).Draw(t, "fields") {
		num := protowire.Number(rapid.OneOf(rapid.IntRange(1, 11), rapid.IntRange(1, int(protowire.MaxValidNumber))).Draw(t, "number"))
		kinds := []protowire.Type{protowire.BytesType, protowire.BytesType, protowire.VarintType, protowire.Fixed32Type, protowire.Fixed64Type}
		if depth > 0 {
			kinds = append(kinds, protowire.StartGroupType)
		}
		typ := rapid.SampledFrom(kinds).Draw(t, "type")
		b = protowire.AppendTag(b, num, typ)
		if rapid.IntRange(0, 9).Draw(t, "overlong") == 0 {
			b[len(b)-1] |= 0x80
			b = append(b, 0x00)
		}
		switch typ {
		case protowire.BytesType:
			var v []byte
			if depth > 0 && rapid.Bool().Draw(t, "nested") {
				v = drawMessage(t, depth-1)
			} else {
				v = []byte(rapid.StringN(0, 12, -1).Draw(t, "text"))
			}
			b = protowire.AppendBytes(b, v)
		case protowire.VarintType:
			b = protowire.AppendVarint(b, rapid.Uint64().Draw(t, "varint"))
		case protowire.Fixed32Type:
			b = protowire.AppendFixed32(b, rapid.Uint32().Draw(t, "fixed32"))
		case protowire.Fixed64Type:
			b = protowire.AppendFixed64(b, rapid.Uint64().Draw(t, "fixed64"))
		case protowire.StartGroupType:
			b = protowire.AppendGroup(b, num, drawMessage(t, depth-1))
		}
	}
	return b
}

// drawBytes also damages some of the messages.
func drawBytes(t *rapid.T) []byte {
	b := drawMessage(t, 2)
	if len(b) > 0 && rapid.IntRange(0, 3).Draw(t, "damage") == 0 {
		b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "flip"))
		b = b[:rapid.IntRange(0, len(b)).Draw(t, "cut")]
	}
	return b
}

func TestRandomMessagesAgainstTheLibrary(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := drawBytes(rt)
		checkClient(rt, b)
		checkMessage(rt, b)
		checkStamp(rt, b)
		// As a payload, alone or with others.
		framed := protowire.AppendTag(nil, protowire.Number(rapid.IntRange(1, 3).Draw(rt, "payload")), protowire.BytesType)
		framed = protowire.AppendBytes(framed, b)
		if rapid.IntRange(0, 3).Draw(rt, "company") == 0 {
			framed = append(framed, drawMessage(rt, 2)...)
		}
		checkClient(rt, framed)
	})
}
