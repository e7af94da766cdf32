// Package telemetry gives a process its log, metrics and traces. Nothing is
// global: two processes' worth of telemetry live side by side.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"

	"github.com/mics-im/mics/internal/buildinfo"
	"github.com/mics-im/mics/internal/config"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/otlptranslator"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Log attribute keys that dashboards use (CONTRACT section 5).
const (
	TenantID = "TenantId"
	NodeID   = "NodeId"
	TraceID  = "TraceId"
	MsgID    = "MsgId"
)

// Config is what a process says of itself and where its telemetry goes.
type Config struct {
	// Service and NodeID label every log line and span.
	Service, NodeID string
	// LogLevel is debug, info, warn or error.
	LogLevel string
	// LogWriter is where log lines go; nil means standard error.
	LogWriter io.Writer
	// OTLPEndpoint is a collector's base URL (OTLP over HTTP); empty: no export.
	OTLPEndpoint string
	// TraceRatio is the share of traces that start here and are recorded.
	TraceRatio float64
}

// Register declares the settings.
func (c *Config) Register(s *config.Set) {
	if c.TraceRatio == 0 {
		c.TraceRatio = 0.01
	}
	s.Enum(&c.LogLevel, "LOG_LEVEL", "least level that is logged", "info", "debug", "warn", "error")
	s.String(&c.OTLPEndpoint, "OTEL_EXPORTER_OTLP_ENDPOINT", "", "base URL of an OTLP/HTTP trace collector")
	s.Float(&c.TraceRatio, "TRACE_RATIO", 0, 1, "share of traces that are recorded")
}

// Telemetry is safe for concurrent use.
type Telemetry struct {
	Log    *slog.Logger
	Tracer trace.Tracer

	meter    metric.Meter
	registry *prometheus.Registry
	shutdown []func(context.Context) error
}

// New starts telemetry; Shutdown ends it.
func New(ctx context.Context, cfg Config) (*Telemetry, error) {
	w := cfg.LogWriter
	if w == nil {
		w = os.Stderr
	}
	var level slog.Level
	if cfg.LogLevel != "" {
		if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
			return nil, fmt.Errorf("LOG_LEVEL: %w", err)
		}
	}
	t := &Telemetry{
		Log:      slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})).With("Service", cfg.Service, NodeID, cfg.NodeID),
		registry: prometheus.NewRegistry(),
	}
	t.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// The contract's names are complete: the exporter must not append anything.
	exporter, err := otelprom.New(
		otelprom.WithRegisterer(t.registry),
		otelprom.WithoutScopeInfo(),
		otelprom.WithoutTargetInfo(),
		otelprom.WithTranslationStrategy(otlptranslator.UnderscoreEscapingWithoutSuffixes),
	)
	if err != nil {
		return nil, fmt.Errorf("start metrics: %w", err)
	}
	res := resource.NewSchemaless(
		attribute.String("service.name", cfg.Service),
		attribute.String("service.instance.id", cfg.NodeID),
		attribute.String("service.version", buildinfo.Version()),
	)
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(exporter), sdkmetric.WithResource(res))
	t.meter = meters.Meter("mics")
	t.shutdown = append(t.shutdown, meters.Shutdown)

	opts := []sdktrace.TracerProviderOption{
		sdktrace.WithResource(res),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.NeverSample())),
	}
	if cfg.OTLPEndpoint != "" {
		exp, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(cfg.OTLPEndpoint))
		if err != nil {
			return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_ENDPOINT: %w", err)
		}
		opts = append(opts, sdktrace.WithBatcher(exp), sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(cfg.TraceRatio))))
	}
	traces := sdktrace.NewTracerProvider(opts...)
	t.Tracer = traces.Tracer("mics")
	t.shutdown = append(t.shutdown, traces.Shutdown)
	return t, nil
}

// Metrics serves the Prometheus text format.
func (t *Telemetry) Metrics() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{})
}

// Shutdown flushes what is recorded and ends telemetry.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	var errs []error
	for _, f := range t.shutdown {
		errs = append(errs, f(ctx))
	}
	return errors.Join(errs...)
}

var w3c propagation.TraceContext

// TraceParent returns the W3C traceparent of ctx's span, empty when the span
// is not sampled, so that an unsampled message carries nothing.
func TraceParent(ctx context.Context) string {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return ""
	}
	carrier := propagation.MapCarrier{}
	w3c.Inject(ctx, carrier)
	return carrier["traceparent"]
}

// WithTraceParent returns ctx with the remote span that traceparent names; an
// empty or malformed one leaves ctx as it is.
func WithTraceParent(ctx context.Context, traceparent string) context.Context {
	if traceparent == "" {
		return ctx
	}
	return w3c.Extract(ctx, propagation.MapCarrier{"traceparent": traceparent})
}
