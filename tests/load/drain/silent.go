package drain

import (
	"net"
	"sync"
)

// silent is the connection of a peer that can fall silent: it reads nothing any
// more, writes nothing and does not go away, until the end of the run.
type silent struct {
	net.Conn
	owner *client
	gone  chan struct{}
	once  sync.Once
}

func newSilent(conn net.Conn, owner *client) *silent {
	return &silent{Conn: conn, owner: owner, gone: make(chan struct{})}
}

func (s *silent) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if s.owner.mute.Load() {
		<-s.gone
		return 0, net.ErrClosed
	}
	return n, err
}

func (s *silent) Write(b []byte) (int, error) {
	if s.owner.mute.Load() {
		return len(b), nil
	}
	return s.Conn.Write(b)
}

// Close lets the program think so, and leaves the peer as it is.
func (s *silent) Close() error {
	s.once.Do(func() { close(s.gone) })
	if s.owner.mute.Load() {
		s.owner.crowd.keep(s.Conn)
		return nil
	}
	return s.Conn.Close()
}
