package mics

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"sync"
)

// The library's own Close discards every message that arrives before the
// peer's close frame. Those messages are on their way when an application
// closes, and a V1 gateway counts them as received, so they would be lost. The
// tap sits below the library on the upgraded connection and can put a close
// frame onto it while reading goes on.

// tapTransport replaces an upgraded connection by a *tap and reports it.
type tapTransport struct{ base http.RoundTripper }

func (t *tapTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	base := t.base
	if base == nil {
		base = http.DefaultTransport
	}
	resp, err := base.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		return resp, err
	}
	if rwc, ok := resp.Body.(io.ReadWriteCloser); ok {
		tapped := &tap{ReadWriteCloser: rwc}
		resp.Body = tapped
		if out, ok := req.Context().Value(tapKey{}).(**tap); ok {
			*out = tapped
		}
	}
	return resp, nil
}

// CloseIdleConnections lets http.Client.CloseIdleConnections through.
func (t *tapTransport) CloseIdleConnections() {
	if c, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// tapKey is the context key under which a dial leaves a **tap to be filled in.
type tapKey struct{}

// tap is the byte stream of one WebSocket connection.
type tap struct {
	io.ReadWriteCloser
	mu     sync.Mutex
	closed bool // guarded by mu: our close frame is out, nothing may follow it
}

// Write swallows what the library still wants to say after our close frame
// (pongs, the echo of the echo): the protocol allows nothing there.
func (t *tap) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return len(p), nil
	}
	return t.ReadWriteCloser.Write(p)
}

// sendClose writes a masked close frame with this status and no reason (RFC
// 6455, 5.5.1). It must be called by the goroutine that writes messages, between
// two of them; the library flushes its control frames in one write, so that
// the frame never lands inside another.
func (t *tap) sendClose(code uint16) error {
	var frame [8]byte
	frame[0] = 0x80 | 0x8 // final frame, opcode close
	frame[1] = 0x80 | 2   // masked, two bytes
	if _, err := rand.Read(frame[2:6]); err != nil {
		return fmt.Errorf("mics: mask a close frame: %w", err)
	}
	binary.BigEndian.PutUint16(frame[6:], code)
	frame[6] ^= frame[2]
	frame[7] ^= frame[3]

	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	if _, err := t.ReadWriteCloser.Write(frame[:]); err != nil {
		return fmt.Errorf("mics: write a close frame: %w", err)
	}
	return nil
}
