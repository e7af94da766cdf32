package ctl_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

func TestFlagsReachTheControlPlane(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want proto.Message
	}{
		"sessions": {
			[]string{"sessions", "--tenant", "t", "--user", "u", "--node", "n", "--limit", "7"},
			&controlv1.ListSessionsRequest{TenantId: "t", UserId: "u", NodeId: "n", Limit: 7},
		},
		"sessions, defaults": {[]string{"sessions"}, &controlv1.ListSessionsRequest{Limit: 100}},
		"kick": {
			[]string{"kick", "-y", "--tenant", "t", "--user", "u", "--device", "d", "--reason", "r"},
			&controlv1.KickRequest{TenantId: "t", UserId: "u", DeviceId: "d", Reason: "r"},
		},
		"dlq list": {
			[]string{"dlq", "list", "--tenant", "t", "--since", "2h", "--all", "--limit", "7"},
			&controlv1.ListDLQRequest{Request: &routerv1.ListDLQRequest{TenantId: "t", SinceMs: now.Add(-2 * time.Hour).UnixMilli(), All: true, Limit: 7}},
		},
		"dlq show": {
			[]string{"dlq", "show", "--tenant", "t", "3/9"},
			&controlv1.ListDLQRequest{Request: &routerv1.ListDLQRequest{TenantId: "t", Only: &routerv1.DeadLetterRef{Partition: 3, Offset: 9}}},
		},
		"dlq redrive": {
			[]string{"dlq", "redrive", "--tenant", "t", "--since", "2030-05-01T11:00:00Z", "--dry-run"},
			&controlv1.RedriveDLQRequest{Request: &routerv1.RedriveDLQRequest{TenantId: "t", SinceMs: now.Add(-time.Hour).UnixMilli(), DryRun: true}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := healthy()
			// Without a scheme, from the environment: as a person would have it.
			env := map[string]string{"MICS_ENDPOINT": strings.TrimPrefix(serve(t, c), "http://")}
			if got := run(t.Context(), term{env: env}, tc.args...); got.code != 0 {
				t.Fatalf("got %+v", got)
			}
			if asked := c.asked(); len(asked) != 1 || !proto.Equal(asked[0], tc.want) {
				t.Fatalf("asked %v, want %v", asked, tc.want)
			}
		})
	}
}

func TestOneDeadLetterIsShown(t *testing.T) {
	endpoint := serve(t, healthy())
	for _, format := range []string{"table", "json"} {
		got := run(t.Context(), term{}, "dlq", "show", "--tenant", "demo", "0/42", "--endpoint", endpoint, "-o", format)
		if got.code != 0 || got.err != "" {
			t.Errorf("got %+v", got)
		}
		golden(t, "dlq-show-"+format, endpoint, got.out)
	}
}

func TestARedriveThatStopsHalfwayFails(t *testing.T) {
	c := healthy()
	c.redrive = c.redrive[:2]
	got := run(t.Context(), term{}, "dlq", "redrive", "--tenant", "demo", "--endpoint", serve(t, c))
	if got.code != 1 || !strings.Contains(got.err, "ended early") {
		t.Errorf("got %+v", got)
	}
	c.err = connect.NewError(connect.CodeUnavailable, &textError{"the control plane is stopping"})
	got = run(t.Context(), term{}, "dlq", "redrive", "--tenant", "demo", "--endpoint", serve(t, c))
	if got.code != 1 || !strings.Contains(got.err, "1 of 2") || !strings.Contains(got.err, "is stopping") {
		t.Errorf("got %+v", got)
	}
}

func TestKickAsksOnATerminal(t *testing.T) {
	for answer, kicks := range map[string]bool{"y\n": true, "YES\n": true, "\n": false, "n\n": false, "": false, "yeah\n": false} {
		t.Run(strings.TrimSpace(answer), func(t *testing.T) {
			c := healthy()
			got := run(t.Context(), term{in: answer, inTTY: true}, "kick", "--tenant", "demo", "--user", "al\x1bice", "--endpoint", serve(t, c))
			if !strings.HasPrefix(got.err, `End every connection of user al\x1bice of tenant demo? [y/N] `) {
				t.Errorf("asked %q", got.err)
			}
			if asked := len(c.asked()) > 0; asked != kicks || (got.code == 0) != kicks {
				t.Errorf("kicked: %v, exit code %d; want %v", asked, got.code, kicks)
			}
		})
	}
}

func TestCheckIsColouredForPeopleOnly(t *testing.T) {
	endpoint := serve(t, healthy())
	for name, tc := range map[string]struct {
		term term
		want bool
	}{
		"terminal": {term{outTTY: true}, true},
		"pipe":     {term{}, false},
		"NO_COLOR": {term{outTTY: true, env: map[string]string{"NO_COLOR": "1"}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := run(t.Context(), tc.term, "check", "--endpoint", endpoint); strings.ContainsRune(got.out, '\x1b') != tc.want {
				t.Errorf("printed %q", got.out)
			}
		})
	}
}

func TestCompletion(t *testing.T) {
	endpoint := serve(t, sick())
	complete := func(args ...string) string {
		return run(t.Context(), term{}, append([]string{"__complete", "--endpoint", endpoint}, args...)...).out
	}
	if got := complete("sessions", "--node", "gw-d"); !strings.HasPrefix(got, "gw-dead\ngw-draining\n:4") {
		t.Errorf("node names: %q", got)
	}
	if got := complete("nodes", "-o", ""); !strings.HasPrefix(got, "table\njson\nyaml\n:4") {
		t.Errorf("formats: %q", got)
	}
	if got := complete("sessions", "--endpoint", "http://127.0.0.1:1", "--node", ""); got != ":4\n" {
		t.Errorf("without a control plane: %q", got)
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if got := run(t.Context(), term{}, "completion", shell); got.code != 0 || !strings.Contains(got.out, "micsctl") {
			t.Errorf("%s: exit code %d", shell, got.code)
		}
	}
}

// until is a writer that ends a run once enough has been written.
type until struct {
	enough func(all string) bool
	cancel context.CancelFunc

	mu  sync.Mutex
	all strings.Builder // guarded by mu
}

func (u *until) Write(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.all.Write(p)
	if u.enough(u.all.String()) {
		u.cancel()
	}
	return len(p), nil
}

func (u *until) String() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.all.String()
}

// watching serves each watch with the next of the scripts, the last one for
// ever: so many inventories, then the end (nil error: an orderly one), or none.
func watching(t *testing.T, c *control, inventories []int, end error) {
	t.Helper()
	var mu sync.Mutex
	var stream, sent int
	c.watch = func(ctx context.Context, out *connect.ServerStream[controlv1.WatchNodesResponse]) error {
		mu.Lock()
		n := inventories[min(stream, len(inventories)-1)]
		stream++
		last := stream >= len(inventories)
		mu.Unlock()
		for range n {
			mu.Lock()
			sent++
			at := now.Add(time.Duration(sent) * time.Second).UnixMilli()
			mu.Unlock()
			err := out.Send(&controlv1.WatchNodesResponse{Nodes: c.nodes.Nodes, ObservedAtMs: at, Warnings: c.nodes.Warnings})
			if err != nil {
				return err
			}
		}
		if !last {
			return end
		}
		<-ctx.Done()
		return ctx.Err()
	}
}

func TestWatchFormats(t *testing.T) {
	for name, tc := range map[string]struct {
		term   term
		format string
		enough func(string) bool
	}{
		"watch-lines": {term{}, "table", func(s string) bool { return strings.Count(s, "gateway gw-1 ") == 2 && strings.HasSuffix(s, "\n") }},
		"watch-tty":   {term{outTTY: true}, "table", func(s string) bool { return strings.Count(s, "\x1b[J") == 2 }},
		"watch-json":  {term{}, "json", func(s string) bool { return strings.Count(s, "\n") == 2 }},
		"watch-yaml":  {term{}, "yaml", func(s string) bool { return strings.Count(s, "warnings:") == 2 }},
	} {
		t.Run(name, func(t *testing.T) {
			c := sick()
			watching(t, c, []int{2}, nil)
			endpoint := serve(t, c)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			out := &until{enough: tc.enough, cancel: cancel}
			tc.term.out = out
			if got := run(ctx, tc.term, "nodes", "--watch", "--endpoint", endpoint, "-o", tc.format); got.code != 0 || got.err != "" {
				t.Errorf("got %+v; Ctrl-C is how a watch ends", got)
			}
			golden(t, name, endpoint, out.String())
		})
	}
}

func TestWatchOutlivesTheControlPlane(t *testing.T) {
	c := healthy()
	watching(t, c, []int{1, 1}, connect.NewError(connect.CodeUnavailable, &textError{"the control plane is stopping"}))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &until{enough: func(s string) bool { return strings.Count(s, "gateway gw-1 ") == 2 }, cancel: cancel}
	got := run(ctx, term{out: out}, "nodes", "-w", "--endpoint", serve(t, c))
	if got.code != 0 || !strings.Contains(got.err, "watch interrupted, trying again: the control plane is stopping") {
		t.Errorf("got %+v", got)
	}
}

func TestWatchGivesUpOnWhatDoesNotPass(t *testing.T) {
	c := healthy()
	watching(t, c, []int{1, 1}, connect.NewError(connect.CodePermissionDenied, &textError{"no"}))
	got := run(t.Context(), term{}, "nodes", "-w", "--endpoint", serve(t, c))
	if got.code != 1 || !strings.Contains(got.err, "no (permission_denied)") {
		t.Errorf("got %+v", got)
	}
}

func TestWatchEndsWhenNobodyReads(t *testing.T) {
	c := healthy()
	watching(t, c, []int{1}, nil)
	got := run(t.Context(), term{out: brokenPipe{}}, "nodes", "-w", "--endpoint", serve(t, c))
	if got.code != 1 || !strings.Contains(got.err, "broken pipe") {
		t.Errorf("got %+v", got)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, &textError{"broken pipe"} }
