package mics

import (
	"errors"
	"testing"
	"time"
)

// An attempt that had no answer may be admitted later, and replace the connection
// that came after it.
func TestReplacedByItself(t *testing.T) {
	silent := upgraded(func(p *peer) { p.read() })
	replaced := connected(30, func(p *peer) { p.close(4201, "replaced") })
	bubble(t, func(t *testing.T) {
		g := newGateway(t, silent, replaced, connected(30, (*peer).ackAll))
		c := connect(t, g.options())
		time.Sleep(time.Minute) // fake time
		if err := c.Err(); err != nil || c.State().Phase != Connected || len(g.seen()) != 3 {
			t.Errorf("%v, %v after %d attempts", err, c.State().Phase, len(g.seen()))
		}
	})
	bubble(t, func(t *testing.T) { // by each of two
		g := newGateway(t, silent, silent, replaced, replaced, connected(30, (*peer).ackAll))
		c := connect(t, g.options())
		time.Sleep(time.Minute) // fake time
		if err := c.Err(); err != nil || c.State().Phase != Connected || len(g.seen()) != 5 {
			t.Errorf("%v, %v after %d attempts", err, c.State().Phase, len(g.seen()))
		}
	})
	bubble(t, func(t *testing.T) { // once
		g := newGateway(t, silent, replaced, replaced)
		c := connect(t, g.options())
		time.Sleep(time.Minute) // fake time
		if !errors.Is(c.Err(), ErrReplaced) {
			t.Errorf("replaced a second time: %v", c.Err())
		}
	})
	bubble(t, func(t *testing.T) { // long ago
		g := newGateway(t, silent, connected(30, func(p *peer) {
			go p.ackAll()
			time.Sleep(doubtFor) // fake time
			p.close(4201, "replaced")
		}))
		c := connect(t, g.options())
		time.Sleep(2 * time.Minute) // fake time
		if !errors.Is(c.Err(), ErrReplaced) {
			t.Errorf("replaced later: %v", c.Err())
		}
	})
}
