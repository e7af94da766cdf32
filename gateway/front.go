package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"
)

const (
	// headerTimeout is for a handshake, TLS included, from the first byte on.
	headerTimeout = 10 * time.Second
	// maxHeader bounds a request's header; net/http adds 4 KiB. It has room for
	// the longest token in a URL, percent-encoded.
	maxHeader = 16 << 10
	// idleTimeout is for keep-alive connections of health checks.
	idleTimeout = 30 * time.Second
)

// front is the clients' HTTP server. It speaks HTTP/1.1 only: WebSockets over
// HTTP/2 would share one connection's flow control.
type front struct {
	addr string
	ln   net.Listener // owned by the front; may be replaced before start
	http *http.Server
	done chan struct{} // closed when Serve has returned; nil: not started
}

func newFront(ln net.Listener, wsHandler http.Handler, log *slog.Logger) *front {
	mux := http.NewServeMux()
	mux.Handle("/ws", wsHandler)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	p := new(http.Protocols)
	p.SetHTTP1(true)
	return &front{
		addr: ln.Addr().String(), ln: ln,
		http: &http.Server{
			Handler: mux, Protocols: p, MaxHeaderBytes: maxHeader, ReadHeaderTimeout: headerTimeout,
			ReadTimeout: headerTimeout, WriteTimeout: headerTimeout, IdleTimeout: idleTimeout,
			ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
	}
}

func newTLSListener(ln net.Listener, c *tls.Config) net.Listener {
	c.NextProtos = []string{"http/1.1"}
	return tls.NewListener(ln, c)
}

func (f *front) start() {
	f.done = make(chan struct{})
	go func() {
		defer close(f.done)
		_ = f.http.Serve(f.ln) // ends when stop closes the listener
	}()
}

// stop closes the listener and lets requests end until ctx does. Upgraded
// connections are not its business.
func (f *front) stop(ctx context.Context) error {
	err := f.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, f.http.Close())
	}
	if cerr := f.ln.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) {
		err = errors.Join(err, cerr)
	}
	if f.done != nil {
		<-f.done
	}
	return err
}
