package access

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/internal/config"
	"github.com/mics-im/mics/internal/rpc"
	"github.com/mics-im/mics/internal/telemetry"
	"github.com/mics-im/mics/internal/tlsfile"
	"github.com/mics-im/mics/internal/watchfile"
)

// Why a request was refused: values of the counter's label.
const (
	reasonMissing     = "missing"     // neither token nor certificate
	reasonToken       = "token"       // nobody's
	reasonCertificate = "certificate" // nobody's, or no good
	reasonRole        = "role"        // a viewer's, for what takes an operator
)

// logEvery bounds the log lines about requests of nobody known.
const logEvery = 10 * time.Second

// maxFile bounds OPERATORS_FILE, in bytes.
const maxFile = 1 << 20

// Options are what a Guard needs.
type Options struct {
	Config Config // checked
	Audit  *Audit
	// As returns ctx with the name of who asks, for handlers.
	As        func(ctx context.Context, name string) context.Context
	Telemetry *telemetry.Telemetry
}

// Guard tells operators from others. Safe for concurrent use.
type Guard struct {
	o       Options
	refused *telemetry.CounterVec
	logged  atomic.Int64 // when nobody known was logged last, Unix nanoseconds
	errors  *connect.ErrorWriter

	current  atomic.Pointer[operators] // nil: whoever comes is one
	follower *watchfile.Follower       // nil: no file
	files    *tlsfile.Files            // nil: no TLS
}

// New reads and watches the files, until Close. An error about a file wraps
// config.ErrInvalid. A later version that is no good is refused as a whole
// (operators_file_refused) and the operators stay as they are.
func New(o Options) (*Guard, error) {
	c, log := o.Config, o.Telemetry.Log
	g := &Guard{
		o: o, errors: connect.NewErrorWriter(rpc.HandlerOptions()...),
		refused: o.Telemetry.CounterVec("mics_operator_refused_total", "Requests of operators that were refused.", "reason"),
	}
	for _, reason := range []string{reasonMissing, reasonToken, reasonCertificate, reasonRole} {
		g.refused.With(reason)
	}
	if c.File != "" {
		f, err := watchfile.New(watchfile.Options{
			Name: settingFile, Files: []string{c.File}, MaxBytes: maxFile, Log: log,
			Take: func(contents [][]byte) error {
				list, err := parseOperators(contents[0])
				if err != nil {
					return fmt.Errorf("%s: %s: %w", settingFile, c.File, err)
				}
				g.current.Store(list)
				return nil
			},
			Taken:   func() { log.Info("operators_file_taken", "operators", len(g.current.Load().list)) },
			Refused: func(err error) { log.Error("operators_file_refused", "err", err, "kept", len(g.current.Load().list)) },
		})
		if err != nil {
			return nil, fmt.Errorf("%w: %w", config.ErrInvalid, err)
		}
		f.Start()
		g.follower = f
	}
	if c.Cert != "" {
		files, err := tlsfile.Open(tlsfile.Options{Cert: c.Cert, Key: c.Key, CA: c.ClientCA, Optional: true}, log)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s, %s, %s: %w", settingCert, settingKey, settingCA, err), g.Close())
		}
		g.files = files
	}
	switch {
	case c.File == "" && c.Insecure:
		log.Warn("operators_unauthenticated", "effect", "whoever reaches LISTEN may operate the cluster", "remedy", "set "+settingFile)
	case c.File != "" && c.Cert == "":
		log.Info("operators_without_tls", "effect", "tokens cross the network as they are unless TLS ends in front of this process", "remedy", "set "+settingCert)
	}
	return g, nil
}

// Close ends the watching; what was read last stays in force.
func (g *Guard) Close() error {
	var err error
	if g.follower != nil {
		err = g.follower.Close()
	}
	if g.files != nil {
		err = errors.Join(err, g.files.Close())
	}
	return err
}

// Server serves h to operators on ln. /healthz needs no proof. Handlers of RPC must
// have Interceptor, which compares roles.
func (g *Guard) Server(ln net.Listener, h http.Handler) *rpc.Server {
	var c *tls.Config
	if g.files != nil {
		c = g.files.Config()
		if verify := c.VerifyConnection; verify != nil {
			c.VerifyConnection = func(cs tls.ConnectionState) error {
				err := verify(cs)
				if err != nil {
					g.count(reasonCertificate, "", "", err)
				}
				return err
			}
		}
	}
	// A browser that has somebody's certificate shows it whoever's page asks.
	guarded := http.NewCrossOriginProtection().Handler(g.protect(h))
	return rpc.NewServer(ln, guarded, c, g.o.Telemetry.Log)
}

type identityKey struct{}

// identity is who asks, as protect has found out. Nobody may do nothing.
func identity(ctx context.Context) Identity {
	i, _ := ctx.Value(identityKey{}).(Identity)
	return i
}

func (g *Guard) protect(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			h.ServeHTTP(w, r)
			return
		}
		who, reason, says := g.judge(r)
		if reason != "" {
			g.count(reason, r.RemoteAddr, r.URL.Path, nil)
			g.refuse(w, r, says)
			return
		}
		who.From = r.RemoteAddr
		ctx := context.WithValue(r.Context(), identityKey{}, who)
		h.ServeHTTP(w, r.WithContext(g.o.As(ctx, who.Name)))
	})
}

// judge says who asks, or else why that is not known, in the label's word and in the
// caller's. A token counts before a certificate.
func (g *Guard) judge(r *http.Request) (who Identity, reason, says string) {
	list := g.current.Load()
	if list == nil {
		return Identity{Name: anonymous, Role: Operator}, "", ""
	}
	if header := r.Header.Get("Authorization"); header != "" {
		token, ok := strings.CutPrefix(header, "Bearer ")
		if ok {
			who, ok = list.byToken(token)
		}
		if !ok {
			return who, reasonToken, "the token is no operator's"
		}
		return who, "", ""
	}
	if g.o.Config.ClientCA != "" && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		who, ok := list.byCertificate(r.TLS.PeerCertificates[0])
		if !ok {
			return who, reasonCertificate, "the certificate is no operator's"
		}
		return who, "", ""
	}
	return who, reasonMissing, "operators must say who they are, with a token or a certificate"
}

func (g *Guard) refuse(w http.ResponseWriter, r *http.Request, says string) {
	w.Header().Set("WWW-Authenticate", "Bearer")
	if !g.errors.IsSupported(r) {
		http.Error(w, says, http.StatusUnauthorized)
		return
	}
	_ = g.errors.Write(w, r, connect.NewError(connect.CodeUnauthenticated, errors.New(says))) // the caller is gone
}

// count counts a request of nobody known and logs some. None goes into the kept
// audit log: whoever reaches the port could flush what is in it.
func (g *Guard) count(reason, from, path string, err error) {
	g.refused.With(reason).Inc()
	now, last := time.Now().UnixNano(), g.logged.Load()
	if now-last >= int64(logEvery) && g.logged.CompareAndSwap(last, now) {
		g.o.Telemetry.Log.Warn("operator_unauthenticated", "reason", reason, "from", from, "path", path, "err", err)
	}
}
