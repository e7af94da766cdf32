package fleet

import (
	"context"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/internal/fault"
)

func TestReason(t *testing.T) {
	long := Reason(errors.New(strings.Repeat("é", 1000)))
	if len(long) > maxReason+len("…") || !utf8.ValidString(long) {
		t.Errorf("%d bytes: %q", len(long), long)
	}
	for want, err := range map[string]error{
		"no answer in time":  context.DeadlineExceeded,
		"no answer in time ": connect.NewError(connect.CodeDeadlineExceeded, errors.New("x")),
		"detail":             fault.Wrap(fault.Unavailable, "detail", errors.New("cause")),
		"message":            connect.NewError(connect.CodeUnavailable, errors.New("message")),
		"a; b":               errors.Join(errors.New("a"), errors.New("b")),
	} {
		if got := Reason(err); got != strings.TrimSpace(want) {
			t.Errorf("Reason(%v) = %q, want %q", err, got, want)
		}
	}
}
