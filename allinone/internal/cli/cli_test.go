package cli

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/mics-im/mics/internal/lifecycle"
	"github.com/mics-im/mics/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// terminal is a process around a command, its streams in files.
type terminal struct {
	t *testing.T
	Process
}

func newTerminal(t *testing.T, input string) *terminal {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in"), []byte(input), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &terminal{t: t}
	for name, f := range map[string]**os.File{"in": &p.In, "out": &p.Out, "err": &p.Err} {
		file, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = file.Close() })
		*f = file
	}
	p.Lookup = func(string) (string, bool) { return "", false }
	return p
}

func (p *terminal) text(f *os.File) string {
	p.t.Helper()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		p.t.Fatal(err)
	}
	return string(b)
}

func TestArguments(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		out  string // or the error
	}{
		{"--help", 0, "--gateways"},
		{"help", 0, "--base-port"},
		{"version", 0, "mics-dev "},
		{"chat --help", 0, "--user"},
		{"send --help", 0, "--to"},
		{"chat", 2, "--user is missing"},
		{"chat --user ann --to bob --group demo", 2, "exclude"},
		{"chat --user ann hello", 2, "mics-dev send"},
		{"chat --nope", 2, "nope"},
		{"send --user ann hello", 2, "--to or --group"},
		{"send --user ann --to bob", 2, "one text"},
		{"send --user ann --to bob two texts", 2, "one text"},
		{"chatt", 2, "chatt"},
		{"--gateways=none", 2, "GATEWAYS"},
	} {
		p := newTerminal(t, "")
		err := Run(t.Context(), strings.Fields(c.args), p.Process)
		said := p.text(p.Out)
		if err != nil {
			said += err.Error()
		}
		if code := lifecycle.ExitCode(err); code != c.code || !strings.Contains(strings.ToLower(said), strings.ToLower(c.out)) {
			t.Errorf("mics-dev %s: exit code %d, said %q; want %d, %q", c.args, code, said, c.code, c.out)
		}
	}
}

// TestClusterChatSend is what whoever tries mics-dev does first.
func TestClusterChatSend(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	dev := newTerminal(t, "")
	ended := make(chan error, 1)
	go func() {
		defer close(ended)
		ended <- Run(ctx, strings.Fields("--gateways=2 --base-port=0 --control-port=0 --playground-port=0 --drain-timeout-seconds=1 --log-level=error"), dev.Process)
	}()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	testkit.Eventually(t, "mics-dev says that it runs", func() bool {
		if len(ended) > 0 {
			t.Fatalf("ended: %v", <-ended)
		}
		return strings.Contains(dev.text(dev.Out), "Ctrl-C")
	})
	urls := regexp.MustCompile(`ws://\S+/ws\b`).FindAllString(dev.text(dev.Out), 2)
	if len(urls) != 2 || urls[0] == urls[1] {
		t.Fatalf("said %s", dev.text(dev.Out))
	}

	bobCtx, leave := context.WithCancel(ctx)
	defer leave()
	bob := newTerminal(t, "")
	bobEnded := make(chan error, 1)
	go func() {
		bobEnded <- Run(bobCtx, []string{"chat", "--user", "bob", "--url", urls[1], "--listen"}, bob.Process)
	}()
	testkit.Eventually(t, "bob is connected", func() bool { return strings.Contains(bob.text(bob.Err), "connected to gw-2 as bob") })

	ann := newTerminal(t, "")
	if err := Run(ctx, []string{"send", "--user", "ann", "--to", "bob", "--url", urls[0], "hello"}, ann.Process); err != nil {
		t.Errorf("send: %v", err)
	}
	if out := ann.text(ann.Out); !strings.HasPrefix(out, "sent ") {
		t.Errorf("send said %q", out)
	}
	ann = newTerminal(t, "nobody hears this\n/to bob\nhow are you\n/group demo\nhi all\n/quit\nnot said\n")
	if err := Run(ctx, []string{"chat", "--user", "ann", "--url", urls[0], "--listen"}, ann.Process); err != nil {
		t.Errorf("chat: %v", err)
	}
	want := "ann: hello\nann: how are you\nann #demo: hi all\n"
	testkit.Eventually(t, "bob heard it all", func() bool { return len(bob.text(bob.Out)) >= len(want) })
	if got := bob.text(bob.Out); got != want {
		t.Errorf("bob heard %q, want %q", got, want)
	}
	if said := ann.text(ann.Err); strings.Count(said, "* sent ") != 2 || !strings.Contains(said, "nobody to talk to") {
		t.Errorf("ann was told %q", said)
	}
	err := Run(ctx, []string{"send", "--user", "ann", "--to", "bob", "--url", urls[0], "deny: too rude"}, ann.Process)
	if err == nil || !strings.Contains(err.Error(), "too rude") {
		t.Errorf("a denied message: %v", err)
	}
	leave()
	if err := <-bobEnded; err != nil {
		t.Errorf("bob left: %v", err)
	}
}
