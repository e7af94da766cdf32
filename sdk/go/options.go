package mics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"
)

// Overflow says what happens to a delivery when the application is slower than
// its messages and the queue is full.
type Overflow int

const (
	// Backpressure stops reading until there is room. Nothing is lost here; a
	// gateway whose own queue for this client fills up closes with 4408 and the
	// client reconnects. Acks wait too, so a delivery handler must not wait for
	// a Send.
	Backpressure Overflow = iota
	// DropOldest makes room by discarding the oldest delivery, counted in
	// [Stats.DroppedDeliveries].
	DropOldest
)

// Defaults of Options.
const (
	DefaultQueueSize    = 1024
	DefaultMaxPending   = 64 // what a gateway leaves unanswered per connection before it stops reading
	DefaultMaxBodyBytes = 1 << 20
	DefaultDialTimeout  = 10 * time.Second
	DefaultMinBackoff   = 500 * time.Millisecond
	DefaultMaxBackoff   = 30 * time.Second
)

// Options configures a Client. URLs, Tenant, Device and Token are required.
type Options struct {
	// URLs of gateways or load balancers, such as "wss://im.example.com/ws". A
	// missing path means /ws. With several, a client begins at a random one and
	// goes on to the next when one fails or drains.
	URLs []string
	// Tenant and Device name the connection together with the user whom the
	// token stands for; one live connection per tenant, user and device.
	Tenant, Device string
	// Token returns the token for the next connect. It is called anew for each
	// attempt, never twice at once, and may block until ctx ends. An error is
	// retried with backoff. Returning a token that was just refused ends the
	// client with ErrUnauthorized.
	Token func(ctx context.Context) (string, error)

	// TokenInHeader keeps the token out of the URL, where proxies may log it: it
	// goes into Sec-WebSocket-Protocol. Gateways of version 1 refuse that.
	TokenInHeader bool
	// DisableV2 makes this a client of version 1: no resumption, no migration,
	// repeats are not recognised. Without it, a gateway that only knows version 1
	// is treated as such.
	DisableV2 bool

	// OnDelivery, if set, is called for every delivery, one at a time and in
	// order, from a goroutine of the client. It must not call Close, and should
	// not wait for a Send (see Backpressure). Without it, use Deliveries.
	OnDelivery func(*Delivery)
	// OnState, if set, is called for every state change, one at a time and in
	// order. Reconnecting waits for it: it must not block, nor call Close.
	OnState func(State)
	// Logger gets connects at Info and oddities at Warn. Nil: no logging.
	Logger *slog.Logger

	// QueueSize bounds the deliveries that wait for the application, and
	// Overflow says what happens beyond.
	QueueSize int
	Overflow  Overflow
	// MaxPending bounds the unanswered messages; a further Submit or Send waits.
	MaxPending int
	// MaxBodyBytes refuses larger bodies before they are sent.
	MaxBodyBytes int

	// DialTimeout bounds one attempt: dialing, handshake and ConnectAck.
	DialTimeout time.Duration
	// MinBackoff and MaxBackoff bound the ceiling of the wait between attempts:
	// attempt n waits a random time below min(MaxBackoff, MinBackoff·2ⁿ).
	MinBackoff, MaxBackoff time.Duration
	// HTTPClient, if set, performs the handshake (TLS, proxies, dialing). Its
	// redirect policy is not used: the token is not carried to another host.
	HTTPClient *http.Client
}

// withDefaults checks o and fills in what was left out.
func (o Options) withDefaults() (Options, []*url.URL, error) {
	var errs []error
	for _, need := range []struct {
		name  string
		given bool
	}{
		{"URLs", len(o.URLs) > 0}, {"Tenant", o.Tenant != ""}, {"Device", o.Device != ""}, {"Token", o.Token != nil},
	} {
		if !need.given {
			errs = append(errs, fmt.Errorf("mics: Options.%s is required", need.name))
		}
	}
	if o.TokenInHeader && o.DisableV2 {
		errs = append(errs, errors.New("mics: Options.TokenInHeader needs version 2, which DisableV2 excludes"))
	}
	if o.Overflow != Backpressure && o.Overflow != DropOldest {
		errs = append(errs, fmt.Errorf("mics: Options.Overflow: unknown policy %d", o.Overflow))
	}
	urls := make([]*url.URL, 0, len(o.URLs))
	for _, s := range o.URLs {
		u, err := gatewayURL(s)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		urls = append(urls, u)
	}
	orInt(&o.QueueSize, DefaultQueueSize)
	orInt(&o.MaxPending, DefaultMaxPending)
	orInt(&o.MaxBodyBytes, DefaultMaxBodyBytes)
	orInt(&o.DialTimeout, DefaultDialTimeout)
	orInt(&o.MinBackoff, DefaultMinBackoff)
	orInt(&o.MaxBackoff, max(DefaultMaxBackoff, o.MinBackoff))
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	hc := http.Client{Transport: newTransport()}
	if o.HTTPClient != nil {
		hc = *o.HTTPClient
	}
	hc.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	hc.Transport = &tapTransport{base: hc.Transport}
	o.HTTPClient = &hc
	return o, urls, errors.Join(errs...)
}

func orInt[T ~int | ~int64](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

// defaultPath is where gateways serve clients.
const defaultPath = "/ws"

// gatewayURL parses a gateway's base URL.
func gatewayURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("mics: Options.URLs: %w", err)
	}
	switch u.Scheme {
	case "ws", "wss", "http", "https":
	default:
		return nil, fmt.Errorf("mics: Options.URLs: %q is no ws:// or wss:// URL", s)
	}
	if u.Host == "" {
		return nil, fmt.Errorf("mics: Options.URLs: %q has no host", s)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = defaultPath
	}
	return u, nil
}

// newTransport is one client's own: no shared default, so that Close can drop
// all it holds.
func newTransport() *http.Transport {
	d := &net.Dialer{Timeout: DefaultDialTimeout, KeepAlive: 15 * time.Second}
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         d.DialContext,
		TLSHandshakeTimeout: DefaultDialTimeout,
		// A handshake that is refused leaves nothing worth keeping.
		DisableKeepAlives: true,
	}
}
