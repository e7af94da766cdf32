// Package fault is the one error type that crosses RPC: a kind, a detail that
// is safe to show, and when to try again.
package fault

import (
	"context"
	"errors"
	"strconv"
	"time"

	"connectrpc.com/connect"
)

// Kind says what sort of failure it is, and so what the caller can do.
type Kind uint8

// Kinds of failure. Internal is the zero value: what nobody classified.
const (
	Internal Kind = iota
	Invalid
	NotFound
	FailedPrecondition
	Exhausted
	Unavailable
	Unauthenticated
	PermissionDenied
)

var codes = map[Kind]connect.Code{
	Internal:           connect.CodeInternal,
	Invalid:            connect.CodeInvalidArgument,
	NotFound:           connect.CodeNotFound,
	FailedPrecondition: connect.CodeFailedPrecondition,
	Exhausted:          connect.CodeResourceExhausted,
	Unavailable:        connect.CodeUnavailable,
	Unauthenticated:    connect.CodeUnauthenticated,
	PermissionDenied:   connect.CodePermissionDenied,
}

// retryAfterHeader carries Error.RetryAfter in milliseconds.
const retryAfterHeader = "Mics-Retry-After-Ms"

// Error is a failure with a kind.
type Error struct {
	Kind Kind
	// Detail may be shown to the peer; it never holds a secret.
	Detail string
	// RetryAfter is how long the caller should wait; zero means unsaid.
	RetryAfter time.Duration
	// Err is the cause; it stays inside the process.
	Err error
}

func (e *Error) Error() string {
	if e.Err == nil {
		return e.Detail
	}
	return e.Detail + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// New returns an error of the kind.
func New(kind Kind, detail string) *Error { return &Error{Kind: kind, Detail: detail} }

// Wrap returns an error of the kind with a cause.
func Wrap(kind Kind, detail string, err error) *Error {
	return &Error{Kind: kind, Detail: detail, Err: err}
}

// KindOf returns the kind of err: that of the Error in its chain, else what a
// connect error's code or a context error means, else Internal.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	var c *connect.Error
	if errors.As(err, &c) {
		for k, code := range codes {
			if code == c.Code() {
				return k
			}
		}
		if c.Code() == connect.CodeDeadlineExceeded || c.Code() == connect.CodeCanceled {
			return Unavailable
		}
		return Internal
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return Unavailable
	}
	return Internal
}

// ToConnect turns err into what the peer sees: the kind, and of an Error its
// detail only. The outermost classification counts: an Error around another
// process's connect error speaks for this process.
func ToConnect(err error) error {
	if err == nil {
		return nil
	}
	var c *connect.Error
	var e *Error
	errors.As(err, &e)
	if errors.As(err, &c) && (e == nil || !errors.Is(e, c)) {
		return c
	}
	detail := "internal error"
	if e != nil {
		detail = e.Detail
	}
	out := connect.NewError(codes[KindOf(err)], errors.New(detail))
	if e != nil && e.RetryAfter > 0 {
		out.Meta().Set(retryAfterHeader, strconv.FormatInt(e.RetryAfter.Milliseconds(), 10))
	}
	return out
}

// FromConnect turns an error of a connect client into an Error; nil stays nil.
func FromConnect(err error) error {
	var c *connect.Error
	if !errors.As(err, &c) {
		return err
	}
	e := &Error{Kind: KindOf(err), Detail: c.Message(), Err: err}
	if ms, perr := strconv.ParseInt(c.Meta().Get(retryAfterHeader), 10, 64); perr == nil && ms > 0 {
		e.RetryAfter = time.Duration(ms) * time.Millisecond
	}
	return e
}
