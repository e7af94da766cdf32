package mics

import (
	"errors"
	"fmt"
	"time"
)

// Reasons why a client ends for good; compare with [errors.Is]. Those that a
// gateway gave are also a [*CloseError] with the words that it used.
var (
	// ErrClosed: Close was called.
	ErrClosed = errors.New("mics: client closed")
	// ErrReplaced: the same device connected again elsewhere (4201).
	ErrReplaced = errors.New("mics: replaced by a newer connection of this device")
	// ErrKicked: an operator or the tenant ended the connection (4409).
	ErrKicked = errors.New("mics: kicked")
	// ErrInvalidTenant: the cluster does not know the tenant (4002).
	ErrInvalidTenant = errors.New("mics: invalid tenant")
	// ErrUnauthorized: the token was refused (4001) and no other one is to be had.
	ErrUnauthorized = errors.New("mics: token refused")
)

// Mistakes of the caller of Send and Submit.
var (
	// ErrRecipient: a message needs either To or Group, and not both.
	ErrRecipient = errors.New("mics: a message needs exactly one of To and Group")
	// ErrInFlight: a message with this ID is still unanswered.
	ErrInFlight = errors.New("mics: a message with this id is still under way")
)

var (
	errSilence     = errors.New("mics: the gateway was silent for longer than the heartbeat timeout")
	errNoConnAck   = errors.New("mics: the gateway's first frame was no ConnectAck")
	errLost        = errors.New("mics: connection lost")
	errNotResumed  = errors.New("mics: the session cannot be resumed")
	errStalledLink = errors.New("mics: writing to the gateway failed")
)

// Close codes of the client contract.
const (
	codeUnauthorized  = 4001
	codeInvalidTenant = 4002
	codeHeartbeat     = 4100
	codeDraining      = 4200
	codeReplaced      = 4201
	codeSlowConsumer  = 4408
	codeKicked        = 4409
	codeLimited       = 4429
)

// reasonAuthUnavailable distinguishes an unreachable auth hook from a bad token.
const reasonAuthUnavailable = "auth unavailable"

// ServerError codes that the client acts upon.
const errCodeFrameTooLarge = 4413

// reasonTooLarge is the cluster's word for a body over its limit.
const reasonTooLarge = "msg_body_too_large"

// CloseError is the close frame with which a gateway ended a connection.
type CloseError struct {
	Code   int
	Reason string
}

func (e *CloseError) Error() string {
	return fmt.Sprintf("mics: closed by the gateway: %d %s", e.Code, e.Reason)
}

// Is makes errors.Is(err, ErrReplaced) and the like work.
func (e *CloseError) Is(target error) bool {
	switch e.Code {
	case codeReplaced:
		return target == ErrReplaced
	case codeKicked:
		return target == ErrKicked
	case codeInvalidTenant:
		return target == ErrInvalidTenant
	case codeUnauthorized:
		return target == ErrUnauthorized && e.Reason != reasonAuthUnavailable
	}
	return false
}

// HandshakeError is an HTTP answer other than an upgrade.
type HandshakeError struct {
	Status int
	// RetryAfter is how long the server asked to stay away; 0 if it did not say.
	RetryAfter time.Duration
}

func (e *HandshakeError) Error() string {
	if e.RetryAfter > 0 {
		return fmt.Sprintf("mics: handshake answered with HTTP %d, retry after %s", e.Status, e.RetryAfter)
	}
	return fmt.Sprintf("mics: handshake answered with HTTP %d", e.Status)
}

// SendError says that the cluster refused a message for good: nothing was or
// will be delivered. Reason is its own word, such as "tenant qps limited".
type SendError struct {
	ID     string
	Reason string
}

func (e *SendError) Error() string {
	return fmt.Sprintf("mics: message %s failed: %s", e.ID, e.Reason)
}
