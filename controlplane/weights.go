package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/mics-im/mics/controlplane/internal/canary/actuate"
	"github.com/mics-im/mics/controlplane/internal/drain"
	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/fault"
)

// WeightsConfig says what directs new connections to the tracks. The zero value:
// nothing does, and clients are steered once they are connected.
type WeightsConfig struct {
	// File is written with the weights, in the form of the template in the file
	// Template, JSON without one. URL gets them by PUT.
	File, Template, URL string
}

func (w *WeightsConfig) register(s *config.Set) {
	s.String(&w.File, "CANARY_WEIGHTS_FILE", "", "file that a proxy reads the weights of the tracks from: written whenever a canary's weight changes")
	s.String(&w.Template, "CANARY_WEIGHTS_TEMPLATE", "", "file with the form of CANARY_WEIGHTS_FILE, a Go template over .Stable and .Canary (per cent); default: JSON")
	s.String(&w.URL, "CANARY_WEIGHTS_URL", "", "http:// or https:// URL to which the weights of the tracks are PUT as JSON")
	s.Check(func() error { _, err := w.actuator(); return err })
}

// set tells whether anything is configured.
func (w *WeightsConfig) set() bool { return w.File != "" || w.URL != "" }

// actuator makes what is configured.
func (w *WeightsConfig) actuator() (actuate.Actuator, error) {
	switch {
	case w.File != "" && w.URL != "":
		return nil, errors.New("CANARY_WEIGHTS_FILE, CANARY_WEIGHTS_URL: only one of them")
	case w.Template != "" && w.File == "":
		return nil, errors.New("CANARY_WEIGHTS_TEMPLATE: CANARY_WEIGHTS_FILE is required with it")
	case w.File != "":
		form := ""
		if w.Template != "" {
			text, err := os.ReadFile(w.Template)
			if err != nil {
				return nil, fmt.Errorf("CANARY_WEIGHTS_TEMPLATE: %w", err)
			}
			form = string(text)
		}
		f, err := actuate.NewFile(w.File, form)
		if err != nil {
			return nil, fmt.Errorf("CANARY_WEIGHTS_TEMPLATE: %w", err)
		}
		return f, nil
	case w.URL != "":
		u, err := url.Parse(w.URL)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, fmt.Errorf("CANARY_WEIGHTS_URL: %q is no http:// or https:// URL", w.URL)
		}
		return actuate.NewHTTP(w.URL), nil
	}
	return actuate.None{}, nil
}

// promoted drains the old gateways of a promotion.
type promoted struct{ drains *drain.Runner }

// Drain implements canary.Drainer. One that is drained already, or is about to be,
// is left to that.
func (p promoted) Drain(ctx context.Context, node, reason string) error {
	_, err := p.drains.Drain(ctx, drain.Request{Node: node, Timeout: promotionDrain, By: reason})
	if fault.KindOf(err) == fault.FailedPrecondition {
		return nil
	}
	return err
}

// promotionDrain is how long an old gateway has; it is empty but for clients that
// only a reconnect moves.
const promotionDrain = 5 * time.Minute
