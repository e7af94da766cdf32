// Package rpc is the one place where processes' RPC is wired: HTTP/2, over
// cleartext (h2c) or TLS (package trust says when), size limits, error mapping, and the
// operating endpoints every process has.
package rpc

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
)

const (
	// maxMessage bounds one RPC message: a batch of deliveries, or a backlog.
	maxMessage = 64 << 20
	// pingAfter and pingTimeout together notice a dead peer within the 3 s of
	// a lease (DESIGN section 4).
	pingAfter   = 1500 * time.Millisecond
	pingTimeout = 1500 * time.Millisecond
	dialTimeout = 2 * time.Second
	// handlerGrace is what a handler gets to return once its call is cut off.
	handlerGrace = time.Second
	// goAwayEvery is how often connections are told that Stop waits for them.
	goAwayEvery = 500 * time.Millisecond
)

// Server serves RPC and plain HTTP on one listener.
type Server struct {
	http *http.Server
	ln   net.Listener
	log  *slog.Logger
	// running is read-locked by every handler while it runs. Not a WaitGroup: a
	// request may still come in while Stop waits.
	running sync.RWMutex
}

// NewServer wraps ln; it serves only after Start, and Stop closes ln. tlsConfig,
// which it owns from now on, may be nil.
func NewServer(ln net.Listener, h http.Handler, tlsConfig *tls.Config, log *slog.Logger) *Server {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(true)
	if tlsConfig != nil {
		tlsConfig.NextProtos = []string{"h2", "http/1.1"}
		ln = tls.NewListener(ln, tlsConfig)
	}
	s := &Server{
		ln:  ln,
		log: log,
		http: &http.Server{
			Protocols:         p,
			ReadHeaderTimeout: 10 * time.Second,
			MaxHeaderBytes:    16 << 10,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
			HTTP2: &http.HTTP2Config{
				// One gateway's stream carries many clients: the default windows
				// of 64 KiB and 1 MiB would stall it.
				MaxReceiveBufferPerStream:     8 << 20,
				MaxReceiveBufferPerConnection: 32 << 20,
				MaxReadFrameSize:              1 << 20,
				SendPingTimeout:               pingAfter,
				PingTimeout:                   pingTimeout,
			},
		},
	}
	s.http.Handler = s.watch(h)
	return s
}

// watch counts running handlers, for Stop, and logs panics: net/http's own line
// goes to ErrorLog, among peers' noise.
func (s *Server) watch(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.running.RLock()
		defer s.running.RUnlock()
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
				s.log.Error("handler_panic", "path", r.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			}
			panic(http.ErrAbortHandler) // ends the request without a second line
		}()
		h.ServeHTTP(w, r)
	})
}

// Start serves in the background.
func (s *Server) Start() {
	go func() { _ = s.http.Serve(s.ln) }() // ends when Stop closes the listener
}

// Addr is where it listens, host:port.
func (s *Server) Addr() string { return s.ln.Addr().String() }

// Stop lets running calls end until ctx does, then cuts them off, which is an
// error, and waits for their handlers a little longer. Streams end by their
// owners, who must have been stopped before.
func (s *Server) Stop(ctx context.Context) error {
	err := s.shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("calls cut off: %w", err), s.http.Close(), s.wait())
	}
	// Serve is not running if Start was never called; its listener is ours.
	if cerr := s.ln.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) {
		err = errors.Join(err, cerr)
	}
	return err
}

// shutdown repeats what net/http does once: a connection that is being set up while
// the others are told to go away is not told, and would be waited for.
func (s *Server) shutdown(ctx context.Context) error {
	for {
		turn, cancel := context.WithTimeout(ctx, goAwayEvery)
		err := s.http.Shutdown(turn)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return err
		}
	}
}

// wait waits for handlers whose contexts have ended: what they use is torn down
// next.
func (s *Server) wait() error {
	gone := make(chan struct{})
	go func() {
		s.running.Lock()
		defer s.running.Unlock()
		close(gone)
	}()
	select {
	case <-gone:
		return nil
	case <-time.After(handlerGrace):
		return errors.New("handlers still run after their calls were cut off")
	}
}

// NewClient returns an HTTP client for RPC. http:// URLs speak h2c with prior
// knowledge. It follows no redirects: they would carry what is meant for one
// process to another. Close it with CloseIdleConnections.
func NewClient() *http.Client { return NewTLSClient(nil) }

// NewTLSClient is NewClient with a configuration for https:// URLs, which it owns
// from now on; nil is the default one.
func NewTLSClient(c *tls.Config) *http.Client {
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &byScheme{plain: newTransport(nil, (*http.Protocols).SetUnencryptedHTTP2), secure: newTransport(c, (*http.Protocols).SetHTTP2)},
	}
}

// byScheme keeps connections with and without TLS apart. One http.Transport finds
// its HTTP/2 connections by address alone (Go 1.26): where a port speaks both, a
// request for https:// would go out on a connection in the clear.
type byScheme struct{ plain, secure *http.Transport }

func (b *byScheme) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == "https" {
		return b.secure.RoundTrip(r)
	}
	return b.plain.RoundTrip(r)
}

func (b *byScheme) CloseIdleConnections() {
	b.plain.CloseIdleConnections()
	b.secure.CloseIdleConnections()
}

func newTransport(c *tls.Config, speak func(*http.Protocols, bool)) *http.Transport {
	p := new(http.Protocols)
	speak(p, true)
	d := &net.Dialer{Timeout: dialTimeout}
	return &http.Transport{
		Protocols:           p,
		DialContext:         d.DialContext,
		TLSClientConfig:     c,
		TLSHandshakeTimeout: dialTimeout,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream:     8 << 20,
			MaxReceiveBufferPerConnection: 32 << 20,
			MaxReadFrameSize:              1 << 20,
			SendPingTimeout:               pingAfter,
			PingTimeout:                   pingTimeout,
		},
	}
}

// ClientOptions are the options of every RPC client. Nothing is compressed:
// between machines of one cluster gzip costs more than the bytes it saves (a
// sixth of the CPU of a message).
func ClientOptions() []connect.ClientOption {
	return []connect.ClientOption{
		connect.WithReadMaxBytes(maxMessage), connect.WithInterceptors(clientErrors{}), connect.WithAcceptCompression("gzip", nil, nil),
	}
}

// HandlerOptions are the options of every RPC handler.
func HandlerOptions() []connect.HandlerOption {
	return []connect.HandlerOption{connect.WithReadMaxBytes(maxMessage), connect.WithInterceptors(handlerErrors{})}
}

// handlerErrors maps what a handler returns to what the peer sees.
type handlerErrors struct{}

func (handlerErrors) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, req)
		return res, fault.ToConnect(err)
	}
}

func (handlerErrors) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (handlerErrors) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return fault.ToConnect(next(ctx, conn))
	}
}

// clientErrors maps what a unary call failed with to a fault.Error.
type clientErrors struct{}

func (clientErrors) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, req)
		return res, fault.FromConnect(err)
	}
}

func (clientErrors) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (clientErrors) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// Operate adds /healthz, /readyz and /metrics (CONTRACT section 4). notReady
// returns the reasons why the process cannot do its work; none means ready.
// degraded, if given, returns what it does its work without: /readyz tells it,
// and the process is ready all the same.
func Operate(mux *http.ServeMux, metrics http.Handler, notReady func() []string, degraded ...func() []string) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		reasons := notReady()
		w.Header().Set("Content-Type", "application/json")
		if len(reasons) > 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		var without []string
		for _, f := range degraded {
			without = append(without, f()...)
		}
		_ = json.NewEncoder(w).Encode(struct {
			Ready    bool     `json:"ready"`
			Reasons  []string `json:"reasons,omitempty"`
			Degraded []string `json:"degraded,omitempty"`
		}{len(reasons) == 0, reasons, without})
	})
	mux.Handle("GET /metrics", metrics)
}
