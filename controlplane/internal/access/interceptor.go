package access

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/mics-im/mics/internal/fault"
)

// Interceptor compares roles and records changes. It goes inside of what maps
// errors.
func (g *Guard) Interceptor() connect.Interceptor { return interceptor{g} }

type interceptor struct{ g *Guard }

func (i interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		done := i.begin(ctx, req.Spec().Procedure)
		defer func() { done.record(ctx) }() // also of a handler that panics
		m, _ := req.Any().(proto.Message)
		done.arguments = m
		if done.err = i.authorize(ctx, req.Spec().Procedure); done.err != nil {
			return nil, done.err
		}
		done.err = errPanic
		res, err := next(ctx, req)
		done.err = err
		return res, err
	}
}

func (interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (i interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		done := i.begin(ctx, conn.Spec().Procedure)
		defer func() { done.record(ctx) }()
		if done.err = i.authorize(ctx, conn.Spec().Procedure); done.err != nil {
			if md, ok := conn.Spec().Schema.(protoreflect.MethodDescriptor); ok {
				m := dynamicpb.NewMessage(md.Input())
				if conn.Receive(m) == nil { // what was asked for belongs into the record
					done.arguments = m
				}
			}
			return done.err
		}
		done.err = errPanic
		done.err = next(ctx, &firstSeen{StreamingHandlerConn: conn, done: done})
		return done.err
	}
}

// firstSeen keeps the first message that the handler receives.
type firstSeen struct {
	connect.StreamingHandlerConn
	done *outcome
}

func (f *firstSeen) Receive(m any) error {
	err := f.StreamingHandlerConn.Receive(m)
	if p, ok := m.(proto.Message); ok && err == nil && f.done.arguments == nil {
		f.done.arguments = p
	}
	return err
}

var errPanic = fault.New(fault.Internal, "the handler panicked")

func (i interceptor) authorize(ctx context.Context, procedure string) error {
	who, role := identity(ctx), needed(procedure)
	if who.may(role) {
		return nil
	}
	i.g.refused.With(reasonRole).Inc()
	return fault.New(fault.PermissionDenied, fmt.Sprintf("this takes the role %s, and %s is a %s", role, who.Name, who.Role))
}

// outcome becomes an audit entry.
type outcome struct {
	i         interceptor
	procedure string
	began     time.Time
	arguments proto.Message
	err       error
}

func (i interceptor) begin(_ context.Context, procedure string) *outcome {
	return &outcome{i: i, procedure: procedure, began: time.Now()}
}

// record records what changes something, or would have.
func (o *outcome) record(ctx context.Context) {
	if needed(o.procedure) != Operator {
		return
	}
	who := identity(ctx)
	e := Entry{
		At: o.began, Who: who.Name, Role: string(who.Role), From: who.From, Procedure: o.procedure,
		Arguments: redact(o.arguments), Outcome: "ok", Duration: time.Since(o.began),
	}
	if o.err != nil {
		ce, _ := fault.ToConnect(o.err).(*connect.Error) //nolint:errorlint // it is what ToConnect returns
		e.Outcome, e.Detail = ce.Code().String(), cut(ce.Message(), maxText)
	}
	o.i.g.o.Audit.Record(ctx, e)
}
