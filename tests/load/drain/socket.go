package drain

import (
	"bytes"
	"net"
	"sync"
	"time"
)

// socket is a client's connection, watched from below the WebSocket library.
type socket struct {
	net.Conn
	owner *client

	mu     sync.Mutex
	sent   time.Time // guarded by mu: when the handshake was; zero: not yet
	head   []byte    // guarded by mu: of the answer, until all of it is there
	headed bool      // guarded by mu
	live   bool      // guarded by mu
	over   bool      // guarded by mu
}

func (s *socket) Write(b []byte) (int, error) {
	s.mu.Lock()
	first := s.sent.IsZero()
	if first {
		s.sent = time.Now()
	}
	sent := s.sent
	s.mu.Unlock()
	if first {
		s.owner.opening(sent)
	}
	return s.Conn.Write(b)
}

func (s *socket) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	now := time.Now()
	s.mu.Lock()
	live := !s.over && s.first(b[:n])
	s.live = s.live || live
	sent := s.sent
	s.mu.Unlock()
	if live {
		s.owner.opened(sent, now)
	}
	if err != nil {
		s.end(now)
	}
	return n, err
}

const maxHead = 8 << 10

// first reports whether the first frame is there, and no close frame, once. Called
// with mu held.
func (s *socket) first(b []byte) bool {
	if s.headed || len(b) == 0 {
		return false
	}
	s.head = append(s.head, b...)
	at := bytes.Index(s.head, []byte("\r\n\r\n"))
	if at >= 0 && len(s.head) > at+4 || len(s.head) > maxHead {
		const binary = 0x82
		ok := at >= 0 && bytes.HasPrefix(s.head, []byte("HTTP/1.1 101 ")) && s.head[at+4] == binary
		s.headed, s.head = true, nil
		return ok
	}
	return false
}

func (s *socket) Close() error {
	s.end(time.Now())
	return s.Conn.Close()
}

func (s *socket) end(now time.Time) {
	s.mu.Lock()
	over, live := s.over, s.live
	s.over, s.head = true, nil
	s.mu.Unlock()
	if !over {
		s.owner.socketEnded(live, now)
	}
}
