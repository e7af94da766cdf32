package drain

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/mics-im/mics/tests/load"
)

// Move is one client's from one connection to another, in Unix nanoseconds: when it
// had read the ConnectAck before, when it sent the handshake of the new connection,
// when it had read the ConnectAck there.
type Move struct {
	Client int   `json:"n"`
	After  int64 `json:"a"`
	Sent   int64 `json:"s"`
	Read   int64 `json:"r"`
}

// journal is what the debug events of gateways and routers tell of moves, by user.
type journal map[string]*entries

type entries struct {
	// bound is when a new route was about to be written, frozen when the old gateway
	// froze the session.
	bound, frozen []int64
	// went are sessions that went on at a gateway.
	went []arrival
}

// arrival is when a gateway had the router's answer, and when it had written the
// ConnectAck.
type arrival struct{ answered, written int64 }

// event is a line of a log, as far as it is looked at.
type event struct {
	Msg      string `json:"msg"`
	User     string `json:"UserId"`
	Found    bool   `json:"found"`
	At       int64  `json:"at_ns"`
	Answered int64  `json:"answered_ns"`
}

const (
	eventBound  = "session_bound"
	eventFrozen = "session_frozen"
	eventWentOn = "session_went_on"
)

// readJournal reads the logs of all gateways and routers in a directory.
func readJournal(dir string) (journal, error) {
	j := journal{}
	for _, kind := range []string{load.Gateway, load.Router} {
		names, err := filepath.Glob(filepath.Join(dir, kind+"-*.log"))
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if err := j.readFile(name); err != nil {
				return nil, fmt.Errorf("read %s: %w", name, err)
			}
		}
	}
	for _, e := range j {
		slices.Sort(e.bound)
		slices.Sort(e.frozen)
		slices.SortFunc(e.went, func(a, b arrival) int { return int(a.answered - b.answered) })
	}
	return j, nil
}

func (j journal) readFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it is only read
	return j.read(f)
}

// read takes events in. A line that is none, as of a panic, is not looked at.
func (j journal) read(r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Bytes()
		if !bytes.Contains(line, []byte(`"msg":"session_`)) {
			continue
		}
		var ev event
		if json.Unmarshal(line, &ev) != nil {
			continue
		}
		if ev.Msg != eventBound && ev.Msg != eventFrozen && ev.Msg != eventWentOn {
			continue
		}
		e := j[ev.User]
		if e == nil {
			e = &entries{}
			j[ev.User] = e
		}
		switch {
		case ev.Msg == eventBound:
			e.bound = append(e.bound, ev.At)
		case ev.Msg == eventFrozen && ev.Found:
			e.frozen = append(e.frozen, ev.At)
		case ev.Msg == eventWentOn:
			e.went = append(e.went, arrival{ev.Answered, ev.At})
		}
	}
	return lines.Err()
}

// timing is how long moves took.
type timing struct {
	gap, move load.Histogram
	// routed is from when the new route was about to be written: for so long at most
	// does wait what is sent meanwhile.
	routed load.Histogram
	// The gap's stages: until the new gateway had the router's answer, had written the
	// ConnectAck, and the client had read it.
	answered, written, read load.Histogram
	unjoined                int
}

func (t *timing) merge(o *timing) {
	t.gap.Merge(&o.gap)
	t.move.Merge(&o.move)
	t.routed.Merge(&o.routed)
	t.answered.Merge(&o.answered)
	t.written.Merge(&o.written)
	t.read.Merge(&o.read)
	t.unjoined += o.unjoined
}

// Stages are those of gaps.
type Stages struct {
	Answered Spread `json:"answered"`
	Written  Spread `json:"written"`
	Read     Spread `json:"read"`
}

func (t *timing) stages() Stages {
	return Stages{spread(&t.answered), spread(&t.written), spread(&t.read)}
}

// time tells how long moves took. The gap begins with the first freeze since the
// client's last ConnectAck; where there is none, when it sent the handshake.
func (j journal) time(moves []Move) *timing {
	t := &timing{}
	for _, m := range moves {
		t.move.Add(time.Duration(m.Read - m.Sent))
		e := j[load.UserID(m.Client)]
		if e == nil {
			e = &entries{}
		}
		i, _ := slices.BinarySearch(e.frozen, m.After)
		if i == len(e.frozen) || e.frozen[i] > m.Read {
			t.unjoined++
			t.gap.Add(time.Duration(m.Read - m.Sent))
			continue
		}
		if i, _ := slices.BinarySearch(e.bound, m.After); i < len(e.bound) && e.bound[i] <= m.Read {
			t.routed.Add(time.Duration(m.Read - e.bound[i]))
		}
		frozen := e.frozen[i]
		t.gap.Add(time.Duration(m.Read - frozen))
		// The last answer that the client can have read.
		for k := len(e.went) - 1; k >= 0; k-- {
			if a := e.went[k]; a.answered < m.Read {
				if a.answered > frozen {
					t.answered.Add(time.Duration(a.answered - frozen))
					t.written.Add(time.Duration(a.written - a.answered))
					t.read.Add(time.Duration(m.Read - a.written)) // below 0 when it was first: 0
				}
				break
			}
		}
	}
	return t
}
