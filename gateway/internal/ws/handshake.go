package ws

import (
	"crypto/sha1" //nolint:gosec // RFC 6455 section 1.3 asks for it; nothing is protected by it
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// ErrNotWebSocket is in the chain of every error of Check.
var ErrNotWebSocket = errors.New("not a WebSocket request")

// errEarly: only behind a middleware with buffers of its own.
var errEarly = errors.New("too much sent before the answer")

// acceptGUID is RFC 6455, section 1.3.
const acceptGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

// handshakeWrite bounds the writing of the 101 response: it is small and the
// first thing on the socket, so it is slow only for a dead peer.
const handshakeWrite = 5 * time.Second

// Check tells whether r is a WebSocket opening handshake (RFC 6455, section
// 4.2.1). Its error says what is missing and wraps ErrNotWebSocket.
func Check(r *http.Request) error {
	bad := func(what string) error { return fmt.Errorf("%w: %s", ErrNotWebSocket, what) }
	switch {
	case r.Method != http.MethodGet:
		return bad("the method must be GET")
	case r.ProtoMajor != 1 || r.ProtoMinor < 1:
		return bad("the protocol must be HTTP/1.1")
	case !hasToken(r.Header, "Connection", "upgrade"):
		return bad("header Connection: Upgrade is missing")
	case !hasToken(r.Header, "Upgrade", "websocket"):
		return bad("header Upgrade: websocket is missing")
	case r.ContentLength != 0:
		return bad("there must be no body") // it would be taken for frames
	case r.Header.Get("Sec-Websocket-Version") != "13":
		return bad("header Sec-WebSocket-Version must be 13")
	}
	keys := r.Header.Values("Sec-Websocket-Key")
	if len(keys) != 1 {
		return bad("there must be one header Sec-WebSocket-Key")
	}
	if k, err := base64.StdEncoding.DecodeString(strings.TrimSpace(keys[0])); err != nil || len(k) != 16 {
		return bad("header Sec-WebSocket-Key must be 16 bytes in base64")
	}
	return nil
}

// hasToken looks for a token, ignoring case, in a comma-separated header.
func hasToken(h http.Header, name, token string) bool {
	for _, v := range h.Values(name) {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

// Upgrade takes the connection over from net/http and answers the handshake of
// a request that passed Check. protocol is the subprotocol to select, "" for
// none; it must be one that the request offers. The handler must return soon
// after: its goroutine has a deep stack. An error has been answered, if it could
// be, and the connection is gone: there is nothing more to write to w.
func Upgrade(w http.ResponseWriter, r *http.Request, protocol string) (*Conn, error) {
	nc, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		return nil, fmt.Errorf("take the connection over: %w", err)
	}
	// What came right behind the request. The 4 KiB buffers of net/http are
	// left to the collector.
	early, err := rw.Peek(rw.Reader.Buffered())
	if err == nil && len(early) > readBlock {
		err = errEarly
	}
	if err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("take the connection over: %w", err)
	}
	sum := sha1.Sum([]byte(strings.TrimSpace(r.Header.Get("Sec-Websocket-Key")) + acceptGUID)) //nolint:gosec // see import
	res := make([]byte, 0, 256)
	res = append(res, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "...)
	res = base64.StdEncoding.AppendEncode(res, sum[:])
	if protocol != "" {
		res = append(res, "\r\nSec-WebSocket-Protocol: "...)
		res = append(res, protocol...)
	}
	res = append(res, "\r\n\r\n"...)
	err = nc.SetDeadline(time.Now().Add(handshakeWrite))
	if err == nil {
		_, err = nc.Write(res)
	}
	if err == nil {
		err = nc.SetDeadline(time.Time{})
	}
	if err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("answer the handshake: %w", err)
	}
	return NewConn(nc, early), nil
}
