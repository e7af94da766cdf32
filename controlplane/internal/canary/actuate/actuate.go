// Package actuate directs new connections: it tells what balances clients over the
// gateways which share of them the canary track is to get. Sessions that exist are
// no business of it, and those that land on the wrong track are steered, so an
// actuator may be late, or away.
package actuate

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"text/template"
	"time"

	"github.com/mics-im/mics/internal/cohort"
)

// Weights are hundredths of a per cent of new connections; the two add up to
// 10,000.
type Weights struct {
	Stable, Canary uint32
}

// Of returns the weights for a canary's.
func Of(canary uint32) Weights {
	canary = min(canary, cohort.Full)
	return Weights{Stable: cohort.Full - canary, Canary: canary}
}

// Actuator sets weights. Apply is called by one goroutine, again and again with the
// same weights; it is bounded by ctx.
type Actuator interface {
	Name() string
	Apply(ctx context.Context, w Weights) error
}

// Promoter is an Actuator that can also replace the stable gateways.
type Promoter interface {
	// Promote has the stable gateways run the canary's version. It replaces them
	// gradually and has each drain when its turn comes: nobody else drains them. It
	// may be called again and again.
	Promote(ctx context.Context, version string) error
}

// None leaves connections where they land.
type None struct{}

// Name implements Actuator.
func (None) Name() string { return "none" }

// Apply implements Actuator.
func (None) Apply(context.Context, Weights) error { return nil }

// feed is the default form of a file, and the body of a request.
type feed struct {
	// Per cent of new connections.
	Stable float64 `json:"stable"`
	Canary float64 `json:"canary"`
}

func feedOf(w Weights) feed { return feed{float64(w.Stable) / 100, float64(w.Canary) / 100} }

// File writes the weights to a file, for a proxy that reads it: atomically, and
// only when they have changed.
type File struct {
	path string
	form *template.Template // nil: JSON
}

// NewFile returns a File. form is a text/template over .Stable and .Canary, which
// are per cent; empty: JSON.
func NewFile(path, form string) (*File, error) {
	f := &File{path: path}
	if form == "" {
		return f, nil
	}
	t, err := template.New("weights").Option("missingkey=error").Parse(form)
	if err == nil {
		err = t.Execute(io.Discard, feedOf(Of(500)))
	}
	if err != nil {
		return nil, fmt.Errorf("template of the weights: %w", err)
	}
	f.form = t
	return f, nil
}

// Name implements Actuator.
func (*File) Name() string { return "file" }

// Apply implements Actuator.
func (f *File) Apply(_ context.Context, w Weights) error {
	var text bytes.Buffer
	if f.form == nil {
		if err := json.NewEncoder(&text).Encode(feedOf(w)); err != nil {
			return err
		}
	} else if err := f.form.Execute(&text, feedOf(w)); err != nil {
		return err
	}
	if old, err := os.ReadFile(f.path); err == nil && bytes.Equal(old, text.Bytes()) {
		return nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(f.path), ".mics-weights-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(text.Bytes())
	if err == nil {
		err = tmp.Chmod(0o644)
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), f.path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}

// HTTP puts the weights to a URL.
type HTTP struct {
	url    string
	client *http.Client
}

// NewHTTP returns an HTTP. It has a client of its own: that of the cluster's calls
// shows who it is, which is nobody else's business.
func NewHTTP(url string) *HTTP {
	return &HTTP{url, &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true}, // a call now and then
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Name implements Actuator.
func (*HTTP) Name() string { return "http" }

// Apply implements Actuator.
func (h *HTTP) Apply(ctx context.Context, w Weights) error {
	body, err := json.Marshal(feedOf(w))
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, h.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := h.client.Do(req)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10))
	_ = res.Body.Close()
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("%s answers %s", h.url, res.Status)
	}
	return nil
}

// Timeouts of a call, and how often one is made without need, because somebody
// else may have changed what was set.
const (
	Timeout = 5 * time.Second
	Refresh = 30 * time.Second
	Retry   = 3 * time.Second
)
