package gateway

import (
	"context"
	crand "crypto/rand"
	"math/rand/v2"

	"github.com/mics-im/mics/internal/telemetry"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// messageTrace begins a span for the share of messages that is sampled. The
// decision is made here, before anything is allocated, and handed to the tracer
// as a sampled parent.
func messageTrace(cfg telemetry.Config, tracer trace.Tracer) func(tenant string) (traceparent string, end func()) {
	if cfg.OTLPEndpoint == "" || cfg.TraceRatio <= 0 {
		return nil
	}
	return func(tenant string) (string, func()) {
		if rand.Float64() >= cfg.TraceRatio {
			return "", nil
		}
		var id trace.TraceID
		var parent trace.SpanID
		_, _ = crand.Read(id[:]) // never fails
		_, _ = crand.Read(parent[:])
		ctx := trace.ContextWithRemoteSpanContext(context.Background(), trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: id, SpanID: parent, TraceFlags: trace.FlagsSampled, Remote: true,
		}))
		ctx, span := tracer.Start(ctx, "message", trace.WithSpanKind(trace.SpanKindServer),
			trace.WithAttributes(attribute.String(telemetry.TenantID, tenant)))
		return telemetry.TraceParent(ctx), func() { span.End() }
	}
}
