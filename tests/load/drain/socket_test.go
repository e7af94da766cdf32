package drain

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const (
	upgraded = "HTTP/1.1 101 Switching Protocols\r\nX: y\r\n\r\n"
	connAck  = "\x82\x02\x0a\x00"
	refusal  = "\x88\x02\x0f\xa1" // a close frame, 4001
)

// dialed is a socket of the client whose peer has been handshaken with.
func dialed(c *client) (s *socket, peer net.Conn) {
	near, peer := net.Pipe()
	s = &socket{Conn: near, owner: c}
	go func() { _, _ = s.Write([]byte("GET")) }()
	_, _ = io.ReadFull(peer, make([]byte, 3))
	return s, peer
}

func answers(t *testing.T, s *socket, peer net.Conn, parts ...string) {
	t.Helper()
	for _, p := range parts {
		go func() { _, _ = peer.Write([]byte(p)) }()
		if _, err := io.ReadFull(s, make([]byte, len(p))); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAMoveIsTimedFromTheHandshakeToTheConnectAck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &client{crowd: &crowd{epoch: time.Now()}}
		c.crowd.mark("x")
		first, one := dialed(c)
		answers(t, first, one, upgraded, connAck)
		time.Sleep(time.Minute)
		// A second one that is refused is no move.
		for _, head := range []string{"HTTP/1.1 503 Service Unavailable\r\n\r\nno", upgraded + refusal} {
			s, peer := dialed(c)
			answers(t, s, peer, head)
			_ = s.Close()
		}
		second, two := dialed(c)
		time.Sleep(30 * time.Millisecond)
		answers(t, second, two, upgraded[:10], upgraded[10:])
		time.Sleep(10 * time.Millisecond)
		answers(t, second, two, connAck)
		_ = first.Close()

		// The third has its ConnectAck after the second has ended.
		third, three := dialed(c)
		time.Sleep(time.Millisecond)
		_ = two.Close()
		if _, err := second.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
		answers(t, third, three, upgraded+connAck)

		// The fourth begins when there is none.
		_ = third.Close()
		time.Sleep(time.Second)
		fourth, four := dialed(c)
		answers(t, fourth, four, upgraded+connAck)
		_ = fourth.Close()

		seen := &c.crowd.phases[0].Seen
		ms := int64(time.Millisecond)
		if m := seen.Moves; len(m) != 2 || m[0].Read-m[0].Sent != 40*ms || m[1].Read-m[1].Sent != 6*ms ||
			m[0].Sent-m[0].After != 60_000*ms || m[1].After != m[0].Read {
			t.Errorf("%+v", m)
		}
		if h := &seen.Hole; h.Count() != 1 || h.Largest() != 5*time.Millisecond {
			t.Errorf("%d holes, up to %v", h.Count(), h.Largest())
		}
		if c.live != 0 {
			t.Errorf("%d sockets are live", c.live)
		}
	})
}

func TestFarAwayEverythingTakesItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const delay = 50 * time.Millisecond
		var wg sync.WaitGroup
		near, peer := net.Pipe()
		f := &far{Conn: near, delay: delay, in: make(chan chunk, underway), gone: make(chan struct{}), wg: &wg}
		wg.Go(f.pump)
		start := time.Now()
		if _, err := f.Write([]byte("ab")); err != nil || time.Since(start) != 0 {
			t.Errorf("writing took %v, %v", time.Since(start), err)
		}
		_, _ = f.Write([]byte("c"))
		b := make([]byte, 3)
		if _, err := io.ReadFull(peer, b); err != nil || string(b) != "abc" || time.Since(start) != delay {
			t.Errorf("%q came after %v, %v", b, time.Since(start), err)
		}
		start = time.Now()
		_, _ = peer.Write([]byte("xy"))
		if n, err := f.Read(b[:1]); n != 1 || err != nil || time.Since(start) != delay {
			t.Errorf("%d bytes after %v, %v", n, time.Since(start), err)
		}
		if n, _ := f.Read(b); n != 1 || b[0] != 'y' {
			t.Errorf("the rest: %q", b[:n])
		}
		// What was written before it is closed arrives.
		_, _ = f.Write([]byte("bye"))
		_ = f.Close()
		if _, err := f.Write([]byte("late")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v", err)
		}
		if got, err := io.ReadAll(peer); err != nil || string(got) != "bye" {
			t.Errorf("%q, %v", got, err)
		}
		wg.Wait()
	})
}

func TestASilentPeerStaysSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &client{crowd: &crowd{}}
		near, peer := net.Pipe()
		s := newSilent(near, c)
		go func() { _, _ = peer.Write([]byte("a")) }()
		b := make([]byte, 8)
		if n, err := s.Read(b); n != 1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		c.mute.Store(true)
		if n, err := s.Write([]byte("lost")); n != 4 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		done := make(chan error)
		go func() {
			_, err := s.Read(b)
			done <- err
		}()
		go func() { _, _ = peer.Write([]byte("close")) }()
		synctest.Wait()
		select {
		case err := <-done:
			t.Errorf("it has read: %v", err)
		default:
		}
		_ = s.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v", err)
		}
		// The connection is there until the run ends.
		if len(c.crowd.kept) != 1 {
			t.Errorf("%d are kept", len(c.crowd.kept))
		}
		_ = near.Close()
		_ = peer.Close()
	})
}

func TestLeads(t *testing.T) {
	for text, want := range map[string]bool{
		"":                             false,
		"mics_controlplane_leader 0\n": false,
		"# HELP x\nmics_controlplane_leader{otel=\"x\"} 1\n":                     true,
		"mics_controlplane_leader_changes_total 1\n":                             false,
		"mics_controlplane_leader_changes_total 1\nmics_controlplane_leader 1\n": true,
	} {
		if leads(text) != want {
			t.Errorf("%q", text)
		}
	}
}
