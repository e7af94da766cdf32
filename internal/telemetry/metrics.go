package telemetry

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// Counter counts up; an Add is one atomic addition, because the exporter reads
// the value when it is scraped. Safe for concurrent use.
type Counter struct {
	n atomic.Int64
}

// Add adds n, which must not be negative.
func (c *Counter) Add(n int64) { c.n.Add(n) }

// Inc adds one.
func (c *Counter) Inc() { c.n.Add(1) }

// Value returns the count.
func (c *Counter) Value() int64 { return c.n.Load() }

// Counter registers a counter; it is exported at zero at once. The name is
// exported as it is. It panics on a name that the meter refuses, which is a
// programming error.
func (t *Telemetry) Counter(name, help string) *Counter {
	c := &Counter{}
	t.observeCounter(name, help, func(o metric.Int64Observer) { o.Observe(c.Value()) })
	return c
}

func (t *Telemetry) observeCounter(name, help string, read func(metric.Int64Observer)) {
	_, err := t.meter.Int64ObservableCounter(name, metric.WithDescription(help),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error { read(o); return nil }))
	if err != nil {
		panic(err)
	}
}

// maxSeries bounds the series of one CounterVec; later ones count as
// OtherValue, so that no client can make a metric grow.
const maxSeries = 1000

// OtherValue is the label value of what came after maxSeries.
const OtherValue = "other"

// CounterVec is a family of counters. Safe for concurrent use.
type CounterVec struct {
	labels []string
	mu     sync.RWMutex
	series map[string]*series // guarded by mu
}

type series struct {
	Counter
	attrs metric.MeasurementOption
}

// CounterVec registers a family with the labels.
func (t *Telemetry) CounterVec(name, help string, labels ...string) *CounterVec {
	v := &CounterVec{labels: labels, series: map[string]*series{}}
	t.observeCounter(name, help, func(o metric.Int64Observer) {
		v.mu.RLock()
		defer v.mu.RUnlock()
		for _, s := range v.series {
			o.Observe(s.Value(), s.attrs)
		}
	})
	return v
}

// With returns the counter of the label values, which must be as many as the
// labels. It is registered at zero; a caller on a hot path keeps it.
func (v *CounterVec) With(values ...string) *Counter {
	key := strings.Join(values, "\x00")
	v.mu.RLock()
	s := v.series[key]
	v.mu.RUnlock()
	if s != nil {
		return &s.Counter
	}
	values = slices.Clone(values) // the caller's own, when passed as a slice
	for i := range values {
		values[i] = labelValue(values[i])
	}
	key = strings.Join(values, "\x00")
	v.mu.Lock()
	defer v.mu.Unlock()
	if s := v.series[key]; s != nil {
		return &s.Counter
	}
	if len(v.series) >= maxSeries {
		for i := range values {
			values[i] = OtherValue
		}
		key = strings.Join(values, "\x00")
		if s := v.series[key]; s != nil {
			return &s.Counter
		}
	}
	attrs := make([]attribute.KeyValue, len(values))
	for i, val := range values {
		attrs[i] = attribute.String(v.labels[i], val)
	}
	s = &series{attrs: metric.WithAttributeSet(attribute.NewSet(attrs...))}
	v.series[key] = s
	return &s.Counter
}

// labelValue makes a value from outside fit for a label: one that is not UTF-8
// fails the whole scrape.
func labelValue(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// Gauge registers a value that is read when scraped.
func (t *Telemetry) Gauge(name, help string, read func() int64) {
	_, err := t.meter.Int64ObservableGauge(name, metric.WithDescription(help),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error { o.Observe(read()); return nil }))
	if err != nil {
		panic(err)
	}
}

// Recorder records into one series of a histogram.
type Recorder struct {
	h     metric.Float64Histogram
	attrs metric.MeasurementOption
}

// Record records v.
func (r Recorder) Record(v float64) { r.h.Record(context.Background(), v, r.attrs) }

// Histogram registers a histogram with upper bounds and returns a function
// that prepares the recorder of one label value; callers keep the recorder.
func (t *Telemetry) Histogram(name, help, label string, bounds ...float64) func(value string) Recorder {
	h, err := t.meter.Float64Histogram(name, metric.WithDescription(help), metric.WithExplicitBucketBoundaries(bounds...))
	if err != nil {
		panic(err)
	}
	return func(value string) Recorder {
		return Recorder{h, metric.WithAttributeSet(attribute.NewSet(attribute.String(label, labelValue(value))))}
	}
}
