package mics

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

// Subprotocols of version 2: the one that the gateway selects, and what comes
// before a token in base64url.
const (
	protocolV2    = "mics.v2"
	protocolToken = "mics.token."
)

// resumption names a session to go on with.
type resumption struct {
	token   string
	session *session
}

// dialer makes links. It is owned by the client's run loop.
type dialer struct {
	opts     *Options
	refused  string // the token that was refused last
	why      error  // and with what
	refusals int    // refused tokens in a row

	resume *resumption // nil: begin anew
}

// dial makes one attempt. It fails with a *CloseError, a *HandshakeError,
// errNotResumed, the Token function's error or a network error, none of which
// names the token.
func (d *dialer) dial(ctx context.Context, base *url.URL) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, d.opts.DialTimeout)
	defer cancel()
	token, err := d.opts.Token(ctx)
	if err != nil {
		return nil, fmt.Errorf("mics: get a token: %w", err)
	}
	if d.refusals > 0 && token == d.refused {
		d.refusals = maxRefusals // nothing would change
		return nil, d.why
	}
	l, err := open(ctx, d.opts, base, token, d.resume)
	switch {
	case err == nil:
		d.refused, d.why, d.refusals = "", nil, 0
	case d.resume != nil && refusedResume(err):
		d.resume = nil
		err = fmt.Errorf("%w: %v", errNotResumed, err) //nolint:errorlint // it is not about the token
	case errors.Is(err, ErrUnauthorized):
		d.refused, d.why = token, err
		d.refusals++
	}
	return l, err
}

// refusedResume: the gateway will not go on with the session that was named.
func refusedResume(err error) bool {
	ce, ok := errors.AsType[*CloseError](err)
	if !ok || ce.Code != codeUnauthorized {
		return false
	}
	for _, word := range []string{"resume", "migrate token", "lastSeq"} {
		if strings.Contains(ce.Reason, word) {
			return true
		}
	}
	return false
}

// open dials and reads up to the ConnectAck.
func open(ctx context.Context, o *Options, base *url.URL, token string, resume *resumption) (*link, error) {
	u := *base
	q := u.Query()
	q.Set("tenantId", o.Tenant)
	q.Set("deviceId", o.Device)
	dial := &websocket.DialOptions{HTTPClient: o.HTTPClient}
	if o.TokenInHeader {
		dial.Subprotocols = []string{protocolV2, protocolToken + base64.RawURLEncoding.EncodeToString([]byte(token))}
	} else {
		q.Set("token", token)
	}
	lastSeq := uint64(0)
	if !o.DisableV2 {
		q.Set("v", "2")
		if resume != nil {
			lastSeq = resume.session.last.Load()
			q.Set("resume", resume.token)
			q.Set("lastSeq", strconv.FormatUint(lastSeq, 10))
		}
	}
	u.RawQuery = q.Encode()

	l := &link{token: token, at: bare(base)}
	//nolint:bodyclose // Dial documents that the body need not be closed
	ws, resp, err := websocket.Dial(context.WithValue(ctx, tapKey{}, &l.tap), u.String(), dial)
	if err != nil {
		if resp != nil {
			return nil, &HandshakeError{Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header, time.Now())}
		}
		// The library's error quotes the URL, and with it the token.
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		return nil, fmt.Errorf("mics: dial %s: %w", bare(base), err)
	}
	l.ws = ws
	ws.SetReadLimit(maxFrameBytes)
	frame, err := l.read(ctx)
	if err == nil {
		l.ack = frame.GetConnectAck()
		if l.ack.GetCode() != connectOK {
			err = errNoConnAck
		}
	}
	if err != nil {
		_ = ws.CloseNow() // already failing; the close has nothing to add
		return nil, err
	}
	l.begin(resume, lastSeq, !o.DisableV2)
	return l, nil
}

// begin draws from the ConnectAck what kind of connection this is.
func (l *link) begin(resume *resumption, lastSeq uint64, v2 bool) {
	l.heartbeat = defaultHeartbeat
	if s := l.ack.GetHeartbeatTimeoutSeconds(); s > 0 {
		l.heartbeat = time.Duration(s) * time.Second
	}
	l.opened = time.Now()
	l.done = make(chan struct{})
	l.ackWake = make(chan struct{}, 1)
	l.migrate = make(chan *messagev1.Migrate, 1)
	l.v2 = v2 && l.ack.GetVersion() >= 2
	l.session = &session{}
	if l.v2 && resume != nil && l.ack.GetResumed() {
		l.session, l.resumed = resume.session, true
		l.acked.Store(lastSeq)
	}
}

// resumption is with what to go on after l, nil if nothing can.
func (l *link) resumption(token string) *resumption {
	token = cmp.Or(token, l.ack.GetResumeToken())
	if !l.v2 || token == "" {
		return nil
	}
	return &resumption{token: token, session: l.session}
}
