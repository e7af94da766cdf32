package uplink

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/mics-im/mics/gateway/internal/session"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"google.golang.org/protobuf/proto"
)

// Reasons of what fails here. reasonInternal is one that clients know.
const (
	reasonOverloaded = "overloaded"
	reasonInternal   = "internal error"
)

var errFenced = errors.New("no router holds this gateway's lease: its routes are dead already")

// Publish implements session.Uplink. done is called before Publish returns when
// the message cannot be taken.
func (u *Uplink) Publish(s *session.Session, msgID string, message []byte, traceparent string, done func(ack []byte)) {
	id := s.Identity()
	u.publish(outgoing{
		session: s.ID(), tenant: id.Tenant, user: id.User, version: s.Version(),
		msgID: msgID, message: message, traceparent: traceparent, done: done,
	})
}

func (u *Uplink) publish(m outgoing) {
	if !u.outbox.add(m, time.Now()) {
		u.overflow.Inc()
		m.done(failed(m.msgID, reasonOverloaded))
	}
}

// fail answers what no router has seen for so long.
func (u *Uplink) fail(maxAge time.Duration) {
	for _, p := range u.outbox.expire(time.Now(), maxAge) {
		u.expired.Inc()
		p.done(failed(p.msgID, reasonInternal))
	}
}

// failed is a serialized MessageAck.
func failed(msgID, reason string) []byte {
	ack, err := proto.Marshal(&messagev1.MessageAck{
		MsgId: msgID, Status: messagev1.AckStatus_FAILED, Reason: reason, TimestampMs: time.Now().UnixMilli(),
	})
	if err != nil {
		return nil // never: its strings are valid UTF-8
	}
	return ack
}

// Release implements session.Uplink.
func (u *Uplink) Release(ctx context.Context, sessions []*session.Session) error {
	closed := make([]*routerv1.ClosedSession, len(sessions))
	for i, s := range sessions {
		id := s.Identity()
		closed[i] = &routerv1.ClosedSession{
			SessionId: s.ID(), TenantId: id.Tenant, UserId: id.User, DeviceId: id.Device, Epoch: s.Epoch(),
			Stage: routerv1.ClosedSession_STAGE_RELEASE,
		}
	}
	return u.release(ctx, closed)
}

func (u *Uplink) release(ctx context.Context, sessions []*routerv1.ClosedSession) error {
	if len(sessions) == 0 {
		return nil
	}
	u.mu.Lock()
	dead := u.lease.fenced || u.superseded
	u.mu.Unlock()
	if dead {
		return errFenced
	}
	var left atomic.Int64
	left.Store(int64(len(sessions)))
	told := make(chan struct{})
	for _, s := range sessions {
		u.closer.release(ctx, s, func() {
			if left.Add(-1) == 0 {
				close(told)
			}
		})
	}
	select {
	case <-told:
		return nil
	case <-ctx.Done():
		if n := left.Load(); n > 0 {
			return fmt.Errorf("%d of %d sessions not released: %w", n, len(sessions), ctx.Err())
		}
		return nil
	}
}

// Final implements session.Uplink.
func (u *Uplink) Final(c *routerv1.ClosedSession, done func()) { u.closer.final(c, done) }
