package fault

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"connectrpc.com/connect"
)

func TestWhatThePeerSees(t *testing.T) {
	// What a call to another process failed with.
	remote := FromConnect(connect.NewError(connect.CodeInvalidArgument, errors.New("remote detail")))
	for name, tc := range map[string]struct {
		err    error
		code   connect.Code
		detail string
	}{
		"unclassified":          {errors.New("secret"), connect.CodeInternal, "internal error"},
		"classified":            {New(NotFound, "no session"), connect.CodeNotFound, "no session"},
		"cause stays":           {Wrap(Unavailable, "store", errors.New("secret")), connect.CodeUnavailable, "store"},
		"wrapped with a verb":   {fmt.Errorf("admit: %w", New(Exhausted, "full")), connect.CodeResourceExhausted, "full"},
		"context":               {context.DeadlineExceeded, connect.CodeUnavailable, "internal error"},
		"remote, passed on":     {remote, connect.CodeInvalidArgument, "remote detail"},
		"remote, reclassified":  {Wrap(Unavailable, "home unreachable", remote), connect.CodeUnavailable, "home unreachable"},
		"connect error":         {connect.NewError(connect.CodeAborted, errors.New("a")), connect.CodeAborted, "a"},
		"connect around ours":   {connect.NewError(connect.CodeAborted, New(Invalid, "b")), connect.CodeAborted, "b"},
		"connect, reclassified": {Wrap(Internal, "bad answer", connect.NewError(connect.CodeNotFound, errors.New("c"))), connect.CodeInternal, "bad answer"},
	} {
		var c *connect.Error
		if !errors.As(ToConnect(tc.err), &c) || c.Code() != tc.code || c.Message() != tc.detail {
			t.Errorf("%s: peer sees %v", name, ToConnect(tc.err))
		}
	}
	if ToConnect(nil) != nil || FromConnect(nil) != nil {
		t.Error("nil must stay nil")
	}
}

func TestRetryAfterCrosses(t *testing.T) {
	var e *Error
	sent := &Error{Kind: Exhausted, Detail: "slow down", RetryAfter: 1500 * time.Millisecond}
	if !errors.As(FromConnect(ToConnect(sent)), &e) || e.Kind != Exhausted || e.RetryAfter != sent.RetryAfter {
		t.Errorf("got %#v", e)
	}
}
