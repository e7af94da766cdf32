// Package cli is the command line of mics-dev: the cluster itself, a terminal
// chat, and a one-shot send.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/charmbracelet/x/term"
	"github.com/spf13/pflag"

	"github.com/mics-im/mics/allinone"
	"github.com/mics-im/mics/allinone/internal/chat"
	"github.com/mics-im/mics/internal/buildinfo"
	"github.com/mics-im/mics/internal/config"
)

// Process is the process around a command.
type Process struct {
	In       *os.File
	Out, Err *os.File
	Lookup   func(string) (string, bool)
}

// Run executes one command line. Errors about the arguments wrap
// config.ErrInvalid.
func Run(ctx context.Context, args []string, p Process) error {
	err := run(ctx, args, p)
	if errors.Is(err, config.ErrHelp) { // printed already
		return nil
	}
	return err
}

func run(ctx context.Context, args []string, p Process) error {
	if len(args) > 0 {
		switch args[0] {
		case "chat":
			return runChat(ctx, args[1:], p)
		case "send":
			return runSend(ctx, args[1:], p)
		case "version", "--version":
			_, _ = fmt.Fprintln(p.Out, "mics-dev", buildinfo.Version())
			return nil
		case "help":
			args = []string{"--help"}
		}
	}
	cfg, err := allinone.LoadConfig(args, p.Lookup)
	if errors.Is(err, config.ErrHelp) {
		_, _ = fmt.Fprint(p.Out, usage+cfg.Usage())
		return err
	}
	if err != nil {
		return err
	}
	dev, err := allinone.New(ctx, cfg)
	if err != nil {
		return err
	}
	return dev.Run(ctx, func() { _, _ = fmt.Fprint(p.Out, whatNext(dev)) })
}

const usage = `mics-dev is a whole MICS cluster in one process, for trying it out.

  mics-dev [--gateways 2] [--base-port 8080] [--SETTING=VALUE ...]
  mics-dev chat --user ann [--to bob | --group demo] [--url ws://...]
  mics-dev send --user ann --to bob "hello"
  mics-dev version

It takes the settings of mics-gateway, mics-router and mics-controlplane, as
environment variables or flags. Without TENANT_AUTH_MAP it serves a tenant
"demo" itself: token valid:USER, group "demo" with everybody in it. Without
REDIS__CONNECTION routes are kept in memory.

Flags, or [environment variables], of its own:
`

// whatNext is what a person who has just started mics-dev wants to know.
func whatNext(d *allinone.Dev) string {
	urls := d.URLs()
	last := urls[len(urls)-1]
	out := "MICS is running.\n\n"
	for i, u := range urls {
		out += fmt.Sprintf("  gateway %d       %s\n", i+1, u)
	}
	out += fmt.Sprintf("  control plane   %s\n", d.ControlURL())
	if u := d.PlaygroundURL(); u != "" {
		out += fmt.Sprintf("  playground      %s\n", u)
	}
	if d.Demo() {
		out += fmt.Sprintf("  try a client    %s?tenantId=demo&token=valid:ann&deviceId=d1\n", urls[0])
	}
	out += "\nIn other terminals:\n\n  bin/micsctl nodes" + endpointFlag(d) + "\n"
	if d.Demo() {
		out += fmt.Sprintf("  bin/mics-dev chat --user ann%s\n", urlFlag(urls[0]))
		out += fmt.Sprintf("  bin/mics-dev chat --user bob --url %s\n", last)
		out += fmt.Sprintf("  bin/mics-dev send --user ann --to bob%s \"hello\"\n", urlFlag(urls[0]))
	}
	return out + "\nCtrl-C drains the gateways and stops.\n"
}

// defaultURL is where a gateway of a plain mics-dev is.
const defaultURL = "ws://127.0.0.1:8080/ws"

func urlFlag(u string) string {
	if u == defaultURL {
		return ""
	}
	return " --url " + u
}

func endpointFlag(d *allinone.Dev) string {
	if d.ControlURL() == "http://127.0.0.1:8070" {
		return ""
	}
	return " --endpoint " + d.ControlURL()
}

// clientFlags declares what chat and send have in common.
func clientFlags(f *pflag.FlagSet, o *chat.Options, device string) *bool {
	f.StringVar(&o.User, "user", "", "who you are (required)")
	f.StringVar(&o.To, "to", "", "user to talk to")
	f.StringVar(&o.Group, "group", "", "group to talk to")
	f.StringVar(&o.URL, "url", defaultURL, "gateway")
	f.StringVar(&o.Tenant, "tenant", "demo", "tenant")
	f.StringVar(&o.Token, "token", "", `token (default "valid:" and the user, as the demo tenant wants it)`)
	f.StringVar(&o.Device, "device", device, "device; a second chat with the same one replaces the first")
	f.SortFlags = false
	return f.BoolP("verbose", "v", false, "log what the client does to standard error")
}

// parse reads the flags of a client command; what is wrong wraps
// config.ErrInvalid.
func parse(f *pflag.FlagSet, args []string, o *chat.Options, out io.Writer) error {
	f.SetOutput(out)
	f.Usage = func() {}
	err := f.Parse(args)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		_, _ = fmt.Fprintf(out, "mics-dev %s\n\n%s", f.Name(), f.FlagUsages())
		return err
	case err != nil:
	case o.User == "":
		err = errors.New("--user is missing: --user ann")
	case o.To != "" && o.Group != "":
		err = errors.New("--to and --group exclude each other")
	default:
		return nil
	}
	return fmt.Errorf("mics-dev %s: %w: %w", f.Name(), config.ErrInvalid, err)
}

func runChat(ctx context.Context, args []string, p Process) error {
	var o chat.Options
	f := pflag.NewFlagSet("chat", pflag.ContinueOnError)
	verbose := clientFlags(f, &o, "terminal")
	listen := f.Bool("listen", false, "line mode: go on receiving when the input has ended")
	lines := f.Bool("lines", false, "line mode even on a terminal")
	if err := parse(f, args, &o, p.Out); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("mics-dev chat: %w: unexpected %q (to send one message: mics-dev send)", config.ErrInvalid, f.Arg(0))
	}
	std := chat.IO{In: p.In, Out: p.Out, Err: p.Err}
	if *lines || !term.IsTerminal(p.In.Fd()) || !term.IsTerminal(p.Out.Fd()) {
		o.Log = logger(*verbose, p.Err)
		return chat.RunLines(ctx, o, std, *listen)
	}
	return chat.RunScreen(ctx, o, std)
}

func runSend(ctx context.Context, args []string, p Process) error {
	var o chat.Options
	f := pflag.NewFlagSet("send", pflag.ContinueOnError)
	verbose := clientFlags(f, &o, "send")
	if err := parse(f, args, &o, p.Out); err != nil {
		return err
	}
	if f.NArg() != 1 || o.To == "" && o.Group == "" {
		return fmt.Errorf("mics-dev send: %w: it takes --to or --group and one text: "+
			"mics-dev send --user ann --to bob \"hello\"", config.ErrInvalid)
	}
	o.Log = logger(*verbose, p.Err)
	ack, err := chat.SendOnce(ctx, o, f.Arg(0))
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintln(p.Out, chat.AckText(ack))
	return nil
}

func logger(verbose bool, w io.Writer) *slog.Logger {
	if !verbose {
		return nil
	}
	return slog.New(slog.NewTextHandler(w, nil))
}
