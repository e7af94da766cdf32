package drain

import (
	"bytes"
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/mics-im/mics/tests/harness"
)

// exitMissed is mics-load's exit code when something took too long as well; that is
// not asked here, on a machine that does other things.
const exitMissed = 3

// The bench in small: what must hold however slow the machine is.
func TestDrainsLoseRepeatAndReorderNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: three clusters of real processes")
	}
	bin := filepath.Dir(harness.Binary(t, "mics-gateway"))
	self := filepath.Join(t.TempDir(), "mics-load")
	if out, err := exec.Command("go", "build", "-o", self, "../cmd/mics-load").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, part := range []string{PartV2, PartV1, PartFar} {
		t.Run(part, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), self, "drain", "--bin", bin, "--parts", part, "--sessions", "300", "--rate", "100", "--agents", "2",
				"--steady", "1s", "--over", "3s", "--drain-timeout", "30s", "--timeout", "5m", "-o", "json")
			var out, progress bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &progress
			var exit *exec.ExitError
			if err := cmd.Run(); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != exitMissed) {
				t.Fatalf("%v\n%s", err, progress.String())
			}
			var all []Report
			if err := json.Unmarshal(out.Bytes(), &all); err != nil || len(all) != 1 {
				t.Fatalf("%v\n%s", err, out.String())
			}
			check(t, all[0])
			if t.Failed() {
				t.Logf("%s\n%s", progress.String(), out.String())
			}
		})
	}
}

func check(t *testing.T, r Report) {
	a := r.Audit
	if a.Sent == 0 || a.Delivered < a.Sent-a.Failed {
		t.Errorf("%d messages were sent, %d failed, %d delivered", a.Sent, a.Failed, a.Delivered)
	}
	if a.Lost+a.Repeated+a.Disordered+a.Contradicted+a.Unanswered != 0 {
		t.Errorf("%+v", a)
	}
	if r.Told != r.Responsive && r.Part == PartFar || r.Part == PartFar && r.Responsive != r.Sessions*19/20+r.Sessions%40/20 {
		t.Errorf("%d of %d responsive clients of %d were told", r.Told, r.Responsive, r.Sessions)
	}
	if len(r.Receipts) == 0 {
		t.Error("there are no receipts")
	}
	for _, c := range r.Receipts {
		if c.Lost+c.Repeated != 0 {
			t.Errorf("%+v", c)
		}
	}
	if r.Part == PartV2 && r.Gaps.N == 0 {
		t.Error("nobody moved")
	}
	// What gateways and clients say of a move must fit together.
	if n := uint64(r.Unjoined); n > r.Gaps.N/20 || r.Stages.Read.N+n < r.Gaps.N*19/20 || r.Routed.N < r.Gaps.N*19/20 {
		t.Errorf("of %d moves, %d have no freeze, %d a new route and %d all stages", r.Gaps.N, n, r.Routed.N, r.Stages.Read.N)
	}
}
