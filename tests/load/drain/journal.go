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

// journal is what the gateways' debug events tell of moves, by user.
type journal map[string]*entries

type entries struct {
	frozen []int64
	// went are sessions that went on at a gateway.
	went []arrival
}

// arrival is when a gateway had the router's answer, and when it had written the
// ConnectAck.
type arrival struct{ answered, written int64 }

// event is a line of a gateway's log, as far as it is looked at.
type event struct {
	Msg      string `json:"msg"`
	User     string `json:"UserId"`
	Found    bool   `json:"found"`
	At       int64  `json:"at_ns"`
	Answered int64  `json:"answered_ns"`
}

const (
	eventFrozen = "session_frozen"
	eventWentOn = "session_went_on"
)

// readJournal reads the logs of all gateways in a directory.
func readJournal(dir string) (journal, error) {
	names, err := filepath.Glob(filepath.Join(dir, load.Gateway+"-*.log"))
	if err != nil {
		return nil, err
	}
	j := journal{}
	for _, name := range names {
		if err := j.readFile(name); err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
	}
	for _, e := range j {
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
		if !bytes.Contains(line, []byte(eventFrozen)) && !bytes.Contains(line, []byte(eventWentOn)) {
			continue
		}
		var ev event
		if json.Unmarshal(line, &ev) != nil {
			continue
		}
		e := j[ev.User]
		if e == nil {
			e = &entries{}
			j[ev.User] = e
		}
		switch {
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
	// The gap's stages: until the new gateway had the router's answer, had written the
	// ConnectAck, and the client had read it.
	answered, written, read load.Histogram
	unjoined                int
}

func (t *timing) merge(o *timing) {
	t.gap.Merge(&o.gap)
	t.move.Merge(&o.move)
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
