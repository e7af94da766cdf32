package drain

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mics-im/mics/tests/load"
)

func TestTheGapBeginsWithTheFreeze(t *testing.T) {
	frozen := func(n int, at int64, found bool) string {
		return fmt.Sprintf(`{"level":"DEBUG","msg":"session_frozen","UserId":%q,"found":%v,"at_ns":%d}`+"\n", load.UserID(n), found, at)
	}
	went := func(n int, answered, at int64) string {
		return fmt.Sprintf(`{"level":"DEBUG","msg":"session_went_on","UserId":%q,"answered_ns":%d,"at_ns":%d}`+"\n", load.UserID(n), answered, at)
	}
	bound := func(n int, at int64) string {
		return fmt.Sprintf(`{"level":"DEBUG","msg":"session_bound","UserId":%q,"at_ns":%d}`+"\n", load.UserID(n), at)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		load.Gateway + "-1.log": frozen(1, 1040, true) + "panic: session_frozen\n" + frozen(1, 1010, false) + went(1, 2120, 2130) + frozen(2, 900, true),
		load.Gateway + "-2.log": frozen(1, 2100, true) + `{"msg":"ws_connected"}` + "\n" + went(1, 1055, 1060) + frozen(3, 60, true) + frozen(3, 80, true) + went(3, 85, 86),
		load.Router + "-1.log":  bound(1, 1020) + bound(1, 2090) + bound(3, 55),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	j, err := readJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		move                      Move
		gap, routed               time.Duration
		answered, written, toRead time.Duration // 0: not known, or 0
		unjoined                  int
	}{
		"the first move":                   {move: Move{1, 500, 1000, 1063}, gap: 23, routed: 43, answered: 15, written: 5, toRead: 3},
		"read before the writer went on":   {move: Move{1, 500, 1000, 1058}, gap: 18, routed: 38, answered: 15, written: 5},
		"the second move":                  {move: Move{1, 1063, 2000, 2134}, gap: 34, routed: 44, answered: 20, written: 10, toRead: 4},
		"frozen twice, by two attempts":    {move: Move{3, 10, 70, 90}, gap: 30, routed: 35, answered: 25, written: 1, toRead: 4},
		"a freeze of another move":         {move: Move{2, 10, 30, 80}, gap: 50, unjoined: 1},
		"a client that nobody knows about": {move: Move{4, 10, 30, 75}, gap: 45, unjoined: 1},
	} {
		got := j.time([]Move{c.move})
		if got.gap.Count() != 1 || got.gap.Largest() != c.gap || got.unjoined != c.unjoined || got.routed.Largest() != c.routed ||
			got.move.Largest() != time.Duration(c.move.Read-c.move.Sent) {
			t.Errorf("%s: gap %v, move %v, %d not joined, want %+v", name, got.gap.Largest(), got.move.Largest(), got.unjoined, c)
		}
		if a, w, r := got.answered.Largest(), got.written.Largest(), got.read.Largest(); a != c.answered || w != c.written || r != c.toRead {
			t.Errorf("%s: stages %v, %v, %v, want %+v", name, a, w, r, c)
		}
	}
	sum := j.time([]Move{{1, 500, 1000, 1063}, {2, 10, 30, 80}})
	sum.merge(j.time([]Move{{3, 10, 70, 90}}))
	if sum.gap.Count() != 3 || sum.gap.Largest() != 50 || sum.unjoined != 1 || sum.stages().Read.N != 2 {
		t.Errorf("%d gaps, %v, %d not joined", sum.gap.Count(), sum.gap.Largest(), sum.unjoined)
	}
}
