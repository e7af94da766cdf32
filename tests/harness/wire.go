package harness

import (
	"context"
	"net"
	"sync"
)

// wire is a socket on which whole frames can be written beside the WebSocket
// library, which writes each of its small ones at once.
type wire struct {
	net.Conn
	mu sync.Mutex
}

func (w *wire) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.Conn.Write(b)
}

func (c *V1) dialWire(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	w := &wire{Conn: conn}
	c.wire.Store(w)
	return w, nil
}

// goodbye is a close frame, 1000, masked with zeros.
var goodbye = []byte{0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8}
