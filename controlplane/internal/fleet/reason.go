package fleet

import (
	"context"
	"errors"
	"strings"
	"unicode/utf8"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/internal/fault"
)

// maxReason bounds what is kept of an error's text, in bytes.
const maxReason = 300

// Reason renders why a call to another process failed, as one bounded line for
// a person.
func Reason(err error) string {
	var f *fault.Error
	var c *connect.Error
	var s string
	switch {
	case errors.Is(err, context.DeadlineExceeded), connect.CodeOf(err) == connect.CodeDeadlineExceeded:
		s = "no answer in time"
	case errors.As(err, &f):
		s = f.Detail
	case errors.As(err, &c):
		s = c.Message()
	default:
		s = err.Error()
	}
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	if len(s) <= maxReason {
		return s
	}
	cut := maxReason
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
