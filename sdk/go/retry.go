package mics

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	// maxRetryAfter keeps a mistaken header from parking a client for hours.
	maxRetryAfter = 5 * time.Minute
	// stableAfter is how long a connection has to hold before its end counts as
	// a first failure again: a gateway that accepts and closes at once must not
	// be dialed in a tight loop.
	stableAfter = 5 * time.Second
	// slowAttempt is the attempt at which waiting begins when the cluster says
	// that it is this client's load that is too much.
	slowAttempt = 3
	// doubtFor is how long after an attempt without an answer a connection may be
	// replaced by that very attempt: somewhere a process stood still with it.
	doubtFor = 30 * time.Second
	// maxRefusals bounds the fresh tokens that are tried one after the other.
	maxRefusals = 5
)

// doubts are attempts at a connection that failed without a refusal: the cluster may
// admit them late, when the client has another connection already, and replace that.
// They are for one goroutine.
type doubts struct {
	since []time.Time
}

// maxDoubts bounds them.
const maxDoubts = 16

// add notes n attempts.
func (d *doubts) add(n int) {
	for range n {
		d.since = append(d.since, time.Now())
	}
	d.since = d.since[max(0, len(d.since)-maxDoubts):]
}

// explain tells whether an attempt explains that a connection was replaced, as far as
// one can tell: nobody else has the device. Each does so once.
func (d *doubts) explain() bool {
	for len(d.since) > 0 {
		first := d.since[0]
		d.since = d.since[1:]
		if time.Since(first) < doubtFor {
			return true
		}
	}
	return false
}

// doubtful tells whether a failed attempt may be admitted after all: it got past the
// handshake and was not refused, or had no answer in time. A session is opened or
// moved by then or will be, although nobody is there to go on with it.
func doubtful(err error) bool {
	if ce, ok := errors.AsType[*CloseError](err); ok {
		switch ce.Code {
		case codeUnauthorized, codeInvalidTenant, codeReplaced, codeKicked, codeLimited:
			return false
		}
		return true
	}
	return errors.Is(err, errLost) || errors.Is(err, errNoConnAck) || errors.Is(err, errBadFrame) || errors.Is(err, context.DeadlineExceeded)
}

// verdict is what a failure asks of the client.
type verdict struct {
	// stop ends the client with this error; nothing else counts then.
	stop error
	// atOnce: the first repeat needs no wait.
	atOnce bool
	// elsewhere: the next URL, if there is one.
	elsewhere bool
	// slow: wait as if several attempts had failed already.
	slow bool
	// atLeast is waited in any case, jitter on top.
	atLeast time.Duration
}

// judge decides what follows err, the end of a connection or of an attempt at
// one: the column "a client should" of the contract's close codes.
// everConnected tells a wrong configuration from a passing disturbance.
func judge(err error, everConnected bool) verdict {
	if errors.Is(err, errNotResumed) {
		return verdict{atOnce: true} // begin anew
	}
	if ce, ok := errors.AsType[*CloseError](err); ok {
		switch ce.Code {
		case codeInvalidTenant, codeReplaced, codeKicked:
			return verdict{stop: err}
		case codeUnauthorized:
			// A fresh token is tried at once; an unreachable hook is given time.
			return verdict{atOnce: ce.Reason != reasonAuthUnavailable}
		case codeDraining:
			return verdict{atOnce: true, elsewhere: true}
		case codeHeartbeat:
			return verdict{atOnce: true}
		case codeSlowConsumer, codeLimited:
			return verdict{slow: true}
		default:
			return verdict{elsewhere: true}
		}
	}
	if he, ok := errors.AsType[*HandshakeError](err); ok {
		switch he.Status {
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
			if !everConnected {
				return verdict{stop: err}
			}
		}
		return verdict{elsewhere: true, atLeast: min(he.RetryAfter, maxRetryAfter)}
	}
	return verdict{elsewhere: true}
}

// pacer spaces attempts: full jitter over an exponentially growing ceiling. It
// is owned by the client's run loop.
type pacer struct {
	exp     *backoff.ExponentialBackOff
	attempt int
}

func newPacer(minimum, maximum time.Duration) *pacer {
	p := &pacer{exp: &backoff.ExponentialBackOff{
		// The factor spreads each interval over [0, 2·interval]: full jitter
		// below twice the interval, hence the halves.
		RandomizationFactor: 1,
		InitialInterval:     minimum / 2,
		MaxInterval:         maximum / 2,
		Multiplier:          2,
	}}
	p.reset()
	return p
}

func (p *pacer) reset() {
	p.exp.Reset()
	p.attempt = 0
}

// next returns how long to wait before the attempt that follows v.
func (p *pacer) next(v verdict) time.Duration {
	p.attempt++
	if v.atOnce && p.attempt == 1 {
		return v.atLeast
	}
	for v.slow && p.attempt < slowAttempt {
		p.exp.NextBackOff()
		p.attempt++
	}
	return v.atLeast + p.exp.NextBackOff()
}

// retryAfter reads the header in both of its forms, seconds or a date; 0 when
// it is missing or unreadable.
func retryAfter(h http.Header, now time.Time) time.Duration {
	s := h.Get("Retry-After")
	if secs, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(secs) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}
