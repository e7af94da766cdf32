package service

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/testkit"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
	"github.com/mics-im/mics/router/internal/event"
)

// dead is a tenant's dead letters.
type dead struct {
	n      int
	err    error
	filter event.LetterFilter
	dry    bool
	hang   bool
	ended  chan struct{} // closed when a redrive that hangs has ended
}

func (d *dead) Letters(_ context.Context, _ string, filter event.LetterFilter, f func(event.Letter) error) error {
	d.filter = filter
	for i := range d.n {
		e := &hookv1.MqEvent{MsgId: fmt.Sprint(i), EventData: []byte("secret")}
		if err := f(event.Letter{Offset: int64(i), Time: time.UnixMilli(5), Reason: "r", Node: "n", Key: "k", Event: e}); err != nil {
			return err
		}
	}
	return d.err
}

func (d *dead) Letter(_ string, partition int32, offset int64) (event.Letter, error) {
	return event.Letter{Partition: partition, Offset: offset}, d.err
}

func (d *dead) Redrive(ctx context.Context, _ string, filter event.LetterFilter, dry bool, progress func(event.Redriven) error) error {
	d.filter, d.dry = filter, dry
	if err := progress(event.Redriven{Total: 5, Read: 4, Sent: 3, Dead: 2, Failed: 1}); err != nil || !d.hang {
		return errors.Join(err, d.err)
	}
	<-ctx.Done()
	close(d.ended)
	return ctx.Err()
}

func listed(t *testing.T, c routerv1connect.RouterServiceClient, req *routerv1.ListDLQRequest) (letters []*routerv1.DeadLetter, truncated bool, err error) {
	t.Helper()
	st, err := c.ListDLQ(t.Context(), connect.NewRequest(req))
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = st.Close() }()
	for st.Receive() {
		letters = append(letters, st.Msg().Letters...)
		truncated = st.Msg().Truncated
	}
	return letters, truncated, st.Err()
}

func TestListDLQ(t *testing.T) {
	_, s, c, _ := serve(t)
	d := &dead{n: 250}
	s.opts.DeadLetters = d
	got, truncated, err := listed(t, c, &routerv1.ListDLQRequest{TenantId: "a", SinceMs: 7, All: true})
	if err != nil || len(got) != 250 || truncated || d.filter != (event.LetterFilter{Since: time.UnixMilli(7), All: true}) {
		t.Fatalf("%d letters, %v, %v, asked %+v", len(got), truncated, err, d.filter)
	}
	if l := got[249]; l.Offset != 249 || l.TimeMs != 5 || l.Reason != "r" || l.NodeId != "n" || l.Key != "k" || l.Event.MsgId != "249" || l.Event.EventData != nil || l.DataBytes != 6 {
		t.Errorf("%v", l)
	}
	for limit, more := range map[uint32]bool{249: true, 250: false} {
		if got, truncated, err := listed(t, c, &routerv1.ListDLQRequest{TenantId: "a", Limit: limit}); err != nil || len(got) != int(limit) || truncated != more {
			t.Errorf("limit %d: %d letters, %v, %v", limit, len(got), truncated, err)
		}
	}
	if got, _, err := listed(t, c, &routerv1.ListDLQRequest{TenantId: "a", Only: &routerv1.DeadLetterRef{Partition: 2, Offset: 3}}); err != nil || len(got) != 1 || got[0].Partition != 2 || got[0].Offset != 3 {
		t.Errorf("only one: %v, %v", got, err)
	}
	for err, code := range map[error]connect.Code{
		event.ErrDisabled: connect.CodeFailedPrecondition, event.ErrNoDeadLetters: connect.CodeNotFound, event.ErrNoLetter: connect.CodeNotFound,
		event.ErrRedriving: connect.CodeFailedPrecondition, errors.New("away"): connect.CodeUnavailable,
	} {
		d.err = err
		if _, _, got := listed(t, c, &routerv1.ListDLQRequest{TenantId: "a"}); connect.CodeOf(got) != code {
			t.Errorf("%v became %v", err, got)
		}
	}
	if _, _, err := listed(t, c, &routerv1.ListDLQRequest{}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("without a tenant: %v", err)
	}
}

func TestRedriveDLQ(t *testing.T) {
	_, s, c, _ := serve(t)
	d := &dead{}
	s.opts.DeadLetters = d
	st, err := c.RedriveDLQ(t.Context(), connect.NewRequest(&routerv1.RedriveDLQRequest{TenantId: "a", DryRun: true}))
	if err != nil {
		t.Fatal(err)
	}
	var last *routerv1.RedriveProgress
	n := 0
	for st.Receive() {
		last = st.Msg().Progress
		n++
	}
	if err := errors.Join(st.Err(), st.Close()); err != nil || !d.dry || n != 2 || !last.Done || last.Total != 5 || last.Read != 4 || last.Sent != 3 || last.Dead != 2 || last.Failed != 1 {
		t.Errorf("%d messages, the last %v, %v", n, last, err)
	}
}

func TestARedriveEndsWithTheRouter(t *testing.T) {
	_, s, c, _ := serve(t)
	d := &dead{hang: true, ended: make(chan struct{})}
	s.opts.DeadLetters = d
	st, err := c.RedriveDLQ(t.Context(), connect.NewRequest(&routerv1.RedriveDLQRequest{TenantId: "a"}))
	if err != nil || !st.Receive() {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	<-d.ended
	testkit.Eventually(t, "the stream ends", func() bool { return !st.Receive() })
	_ = st.Close()
}
