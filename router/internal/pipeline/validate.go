package pipeline

import (
	"strings"
	"unicode/utf8"

	"github.com/mics-im/mics/internal/frame"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

// Reasons of a FAILED message. Those that V1 clients match on are the
// contract's (section 1.2).
const (
	reasonNoRecipient   = "missing to_user_id"
	reasonNoGroup       = "missing group_id"
	reasonType          = "invalid msg_type"
	reasonTooLarge      = "msg_body_too_large"
	reasonRate          = "tenant qps limited"
	reasonEmptyGroup    = "group members empty"
	reasonLargeGroup    = "group too large"
	reasonUndelivered   = "delivery failed"
	reasonInternal      = "internal error"
	reasonDuplicate     = "duplicate"
	reasonNoMembers     = "group members unavailable"
	reasonOverloaded    = "overloaded"
	reasonNotStored     = "event not stored"
	reasonMalformed     = "malformed message"
	reasonTenant        = "invalid tenant"
	reasonBadRecipient  = "invalid to_user_id"
	reasonBadGroup      = "invalid group_id"
	reasonBadID         = "invalid msg_id"
	reasonLongRecipient = "to_user_id too long"
	reasonLongGroup     = "group_id too long"
	reasonLongID        = "msg_id too long"

	// reasonDenied is what a hook that denies without a word means, and the label
	// under which all denials count.
	reasonDenied = "rejected"
)

// rejections are the reasons that mics_messages_rejected_total knows.
var rejections = []string{
	reasonNoRecipient, reasonNoGroup, reasonType, reasonTooLarge, reasonRate, reasonEmptyGroup, reasonLargeGroup,
	reasonNoMembers, reasonOverloaded, reasonMalformed, reasonTenant, reasonBadRecipient, reasonBadGroup, reasonBadID,
	reasonLongRecipient, reasonLongGroup, reasonLongID, reasonDenied,
}

const (
	// maxID bounds the ids of a message, in bytes.
	maxID = 1024
	// maxReason bounds a hook's own reason, in bytes.
	maxReason = 256
)

// validate reads the header, finds the tenant and applies the rules that need
// nothing else.
func (p *Pipeline) validate(m *message) (reason string) {
	h, err := frame.ParseMessage(m.bytes)
	if err != nil {
		return reasonMalformed
	}
	m.header = h
	if h.User == "" || h.Device == "" {
		return reasonMalformed // the gateway stamps them
	}
	t, ok := p.opts.Tenant(h.Tenant)
	if !ok {
		return reasonTenant
	}
	m.tenant = t
	if len(h.Body) > p.opts.Limits.MaxMessageBytes {
		return reasonTooLarge
	}
	if reason := checkID(h.MsgID, reasonBadID, reasonLongID); reason != "" {
		return reason
	}
	switch h.Type {
	case messagev1.MessageType_SINGLE_CHAT:
		if h.ToUser == "" {
			return reasonNoRecipient
		}
		return checkID(h.ToUser, reasonBadRecipient, reasonLongRecipient)
	case messagev1.MessageType_GROUP_CHAT:
		if h.Group == "" {
			return reasonNoGroup
		}
		return checkID(h.Group, reasonBadGroup, reasonLongGroup)
	default:
		return reasonType
	}
}

// checkID refuses what is too long, and the separator that no name may hold.
func checkID(id, bad, long string) string {
	switch {
	case len(id) > maxID:
		return long
	case strings.IndexByte(id, 0) >= 0:
		return bad
	}
	return ""
}

// denial is a hook's own reason, bounded.
func denial(reason string) string {
	if reason == "" {
		return reasonDenied
	}
	if len(reason) <= maxReason {
		return reason
	}
	reason = reason[:maxReason]
	for !utf8.ValidString(reason) {
		reason = reason[:len(reason)-1]
	}
	return reason
}
