package service

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/event"
	"google.golang.org/protobuf/proto"
)

// DeadLetters are the events that tenants' topics did not take.
type DeadLetters interface {
	Letters(ctx context.Context, tenant string, filter event.LetterFilter, f func(event.Letter) error) error
	Letter(tenant string, partition int32, offset int64) (event.Letter, error)
	Redrive(ctx context.Context, tenant string, filter event.LetterFilter, dry bool, progress func(event.Redriven) error) error
}

// lettersPerMessage bounds the letters of one answer.
const lettersPerMessage = 100

// ListDLQ implements RouterService.
func (s *Service) ListDLQ(ctx context.Context, req *connect.Request[routerv1.ListDLQRequest], out *connect.ServerStream[routerv1.ListDLQResponse]) error {
	m := req.Msg
	if m.TenantId == "" {
		return fault.New(fault.Invalid, "tenant_id is required")
	}
	if only := m.Only; only != nil {
		l, err := s.opts.DeadLetters.Letter(m.TenantId, only.Partition, only.Offset)
		if err != nil {
			return letterFault(err)
		}
		return out.Send(&routerv1.ListDLQResponse{Letters: []*routerv1.DeadLetter{letter(l)}})
	}
	ctx, done, err := s.untilStopping(ctx)
	if err != nil {
		return err
	}
	defer done()
	res, n := &routerv1.ListDLQResponse{}, uint32(0)
	err = s.opts.DeadLetters.Letters(ctx, m.TenantId, filter(m.SinceMs, m.All), func(l event.Letter) error {
		if n++; m.Limit > 0 && n > m.Limit {
			res.Truncated = true
			return errEnough
		}
		if res.Letters = append(res.Letters, letter(l)); len(res.Letters) < lettersPerMessage {
			return nil
		}
		err := out.Send(res)
		res = &routerv1.ListDLQResponse{}
		return err
	})
	if err != nil && !errors.Is(err, errEnough) {
		return letterFault(err)
	}
	return out.Send(res)
}

var errEnough = errors.New("enough")

// RedriveDLQ implements RouterService.
func (s *Service) RedriveDLQ(ctx context.Context, req *connect.Request[routerv1.RedriveDLQRequest], out *connect.ServerStream[routerv1.RedriveDLQResponse]) error {
	m := req.Msg
	if m.TenantId == "" {
		return fault.New(fault.Invalid, "tenant_id is required")
	}
	ctx, done, err := s.untilStopping(ctx)
	if err != nil {
		return err
	}
	defer done()
	var last event.Redriven
	err = s.opts.DeadLetters.Redrive(ctx, m.TenantId, filter(m.SinceMs, m.All), m.DryRun, func(r event.Redriven) error {
		last = r
		return out.Send(&routerv1.RedriveDLQResponse{Progress: progress(r, false)})
	})
	if err != nil {
		return letterFault(err)
	}
	return out.Send(&routerv1.RedriveDLQResponse{Progress: progress(last, true)})
}

// untilStopping returns ctx that also ends when this router stops; done must be
// called at the end of the stream.
func (s *Service) untilStopping(ctx context.Context) (_ context.Context, done func(), err error) {
	leave, err := s.enter()
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-s.stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(); <-ended; leave() }, nil
}

func filter(sinceMS int64, all bool) event.LetterFilter {
	f := event.LetterFilter{All: all}
	if sinceMS > 0 {
		f.Since = time.UnixMilli(sinceMS)
	}
	return f
}

func progress(r event.Redriven, done bool) *routerv1.RedriveProgress {
	return &routerv1.RedriveProgress{
		Total: uint64(r.Total), Read: uint64(r.Read), Sent: uint64(r.Sent), Dead: uint64(r.Dead), Failed: uint64(r.Failed), Done: done,
	}
}

// letter leaves the event's data out: messages are their tenant's, not the
// operators'.
func letter(l event.Letter) *routerv1.DeadLetter {
	d := &routerv1.DeadLetter{
		Partition: l.Partition, Offset: l.Offset, TimeMs: l.Time.UnixMilli(), Reason: l.Reason, NodeId: l.Node, Key: l.Key,
	}
	if l.Event != nil {
		d.Event, d.DataBytes = proto.CloneOf(l.Event), uint32(len(l.Event.EventData))
		d.Event.EventData = nil
	}
	return d
}

// letterFault says what an error means for the caller.
func letterFault(err error) error {
	switch {
	case errors.Is(err, event.ErrDisabled):
		return fault.New(fault.FailedPrecondition, err.Error())
	case errors.Is(err, event.ErrNoDeadLetters), errors.Is(err, event.ErrNoLetter):
		return fault.New(fault.NotFound, err.Error())
	case errors.Is(err, event.ErrRedriving):
		return fault.New(fault.FailedPrecondition, err.Error())
	case errors.Is(err, event.ErrNoLock), errors.Is(err, event.ErrLeaseLost):
		return fault.Wrap(fault.Unavailable, err.Error(), err)
	}
	return fault.Wrap(fault.Unavailable, "Kafka: "+err.Error(), err)
}
