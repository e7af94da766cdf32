// Package cli is what all commands of micsctl share: the process around them
// (streams, clock, environment), the global flags, the client of the control
// plane, and how an error becomes a message and an exit code.
package cli

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mics-im/mics/ctl/internal/output"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
)

// DefaultEndpoint is where a control plane with its default LISTEN is found on
// this machine.
const DefaultEndpoint = "http://127.0.0.1:8070"

// EndpointEnv names the environment variable behind --endpoint.
const EndpointEnv = "MICS_ENDPOINT"

// defaultTimeout leaves the control plane the time to wait for the slowest
// gateway of a fan-out (see controlplane/DESIGN.md) and to answer without it.
const defaultTimeout = 10 * time.Second

// IO is the process around a command. Commands touch nothing else of it, so
// that any number of them can run in one process.
type IO struct {
	In       io.Reader
	Out, Err io.Writer
	// InTTY and OutTTY tell whether a person sits at that end.
	InTTY, OutTTY bool
	// Getenv looks an environment variable up; empty means unset.
	Getenv func(string) string
	// Now is the clock against which ages are shown.
	Now func() time.Time
}

// App carries the process and the global flags to the commands. Its fields are
// read-only once the flags are parsed.
type App struct {
	IO
	Endpoint string
	Output   string
	Timeout  time.Duration
	Credentials

	transport *http.Transport
	warned    bool // that the token is in the clear
}

// NewApp returns an App on io. Close must be called.
func NewApp(io IO) *App {
	return &App{IO: io, transport: newTransport()}
}

// Close ends the connections that the App's client keeps.
func (a *App) Close() { a.transport.CloseIdleConnections() }

// AddFlags registers the global flags on the root command.
func (a *App) AddFlags(root *cobra.Command) {
	endpoint := a.Getenv(EndpointEnv)
	if endpoint == "" {
		endpoint = DefaultEndpoint
	}
	f := root.PersistentFlags()
	f.StringVar(&a.Endpoint, "endpoint", endpoint, "base URL of the control plane (environment: "+EndpointEnv+")")
	f.StringVarP(&a.Output, "output", "o", string(output.Table), "output format: "+strings.Join(output.Formats(), ", "))
	a.addFlags(root, a.Getenv)
	f.DurationVar(&a.Timeout, "timeout", defaultTimeout, "longest wait for an answer")
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(output.Formats(), cobra.ShellCompDirectiveNoFileComp)))
	must(root.RegisterFlagCompletionFunc("endpoint", cobra.NoFileCompletions))
	must(root.RegisterFlagCompletionFunc("timeout", cobra.NoFileCompletions))
}

// must reports a completion registered for a flag that does not exist: a
// mistake in this program that its every test would meet.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// Printer returns the printer for the chosen format.
func (a *App) Printer() (*output.Printer, error) {
	f, err := output.ParseFormat(a.Output)
	if err != nil {
		return nil, Usage(fmt.Errorf("--output: %w", err))
	}
	return &output.Printer{W: a.Out, Format: f}, nil
}

// Client returns a client of the control plane at the chosen endpoint.
func (a *App) Client() (controlv1connect.ControlServiceClient, error) {
	if a.Timeout <= 0 {
		return nil, Usage(fmt.Errorf("--timeout: %v: must be above zero", a.Timeout))
	}
	base, err := ParseEndpoint(a.Endpoint)
	if err != nil {
		return nil, Usage(err)
	}
	hc, err := a.client(base)
	if err != nil {
		return nil, err
	}
	return controlv1connect.NewControlServiceClient(hc, base), nil
}

// ParseEndpoint turns what a person writes into a base URL: scheme http or
// https (http when there is none), a host, an optional port and path.
func ParseEndpoint(s string) (string, error) {
	raw := s
	if !strings.Contains(s, "://") {
		s = "http://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || (u.Scheme != "http" && u.Scheme != "https") ||
		u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("--endpoint: %q: want http://HOST[:PORT] or https://HOST[:PORT]", raw)
	}
	return strings.TrimRight(u.String(), "/"), nil
}

// newTransport speaks HTTP/2 also without TLS (h2c, prior knowledge), as the
// services do. The pings let a watch notice a control plane that went away
// without a word.
func newTransport() *http.Transport {
	p := new(http.Protocols)
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(true)
	return &http.Transport{
		Proxy:           http.ProxyFromEnvironment,
		Protocols:       p,
		HTTP2:           &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 5 * time.Second},
		IdleConnTimeout: 30 * time.Second,
	}
}
