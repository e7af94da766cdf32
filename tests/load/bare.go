package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/mics-im/mics/internal/frame"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Bare is the yardstick: a loop per connection that reads a frame, finds the
// recipients in a map and writes to their sockets, one after the other. It
// speaks to load-test clients, believes every token, and promises nothing: no
// queues, no limits, no second process.
type Bare struct {
	mu    sync.RWMutex
	conns map[string]*bareConn // guarded by mu
}

type bareConn struct {
	user string
	net.Conn
	mu sync.Mutex // one writer at a time
}

// Serve serves until ctx ends, and waits for its goroutines.
func (b *Bare) Serve(ctx context.Context, ln net.Listener) error {
	b.conns = map[string]*bareConn{}
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() {
		_ = ln.Close()
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, c := range b.conns {
			_ = c.Close()
		}
	})
	defer stop()
	for {
		nc, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept: %w", err)
		}
		wg.Go(func() {
			c, err := b.open(ctx, nc)
			if err != nil {
				_ = nc.Close()
				return
			}
			wg.Go(func() { b.loop(c) }) // a goroutine without the stack of the handshake
		})
	}
}

const bareHandshake = 10 * time.Second

// open takes the handshake and answers with a ConnectAck.
func (b *Bare) open(ctx context.Context, nc net.Conn) (*bareConn, error) {
	if err := nc.SetDeadline(time.Now().Add(bareHandshake)); err != nil {
		return nil, err
	}
	r, err := http.ReadRequest(bufio.NewReader(nc))
	if err != nil {
		return nil, err
	}
	token := r.URL.Query().Get("token")
	if len(token) <= len(tokenPrefix) {
		return nil, errors.New("no token")
	}
	c := &bareConn{user: token[len(tokenPrefix):], Conn: nc}
	ack, err := proto.Marshal(&messagev1.ServerFrame{Payload: &messagev1.ServerFrame_ConnectAck{
		ConnectAck: &messagev1.ConnectAck{Code: 1000, UserId: c.user, NodeId: "bare"},
	}})
	if err != nil {
		return nil, err
	}
	// Who has its ConnectAck can be sent to, and gets nothing before it.
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := b.register(ctx, c); err != nil {
		return nil, err
	}
	const answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
	_, err = nc.Write(append([]byte(answer), serverFrame(ack)...))
	if err == nil {
		err = nc.SetDeadline(time.Time{})
	}
	if err != nil {
		b.forget(c)
		return nil, err
	}
	return c, nil
}

func (b *Bare) register(ctx context.Context, c *bareConn) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	b.conns[c.user] = c
	return nil
}

func (b *Bare) forget(c *bareConn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conns[c.user] == c {
		delete(b.conns, c.user)
	}
}

func serverFrame(payload []byte) []byte {
	f := []byte{0x80 | opBinary}
	switch n := len(payload); {
	case n < 126:
		f = append(f, byte(n))
	case n <= 0xffff:
		f = append(f, 126, byte(n>>8), byte(n))
	default:
		f = append(f, 127, 0, 0, 0, 0, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	return append(f, payload...)
}

// loop serves a connection until it ends.
func (b *Bare) loop(c *bareConn) {
	defer func() {
		_ = c.Close()
		b.forget(c)
	}()
	rd := bareReader{reader{src: c.Conn, buf: make([]byte, firstRead)}}
	for {
		payload, err := rd.next()
		if err != nil {
			return
		}
		if err := b.take(c, payload); err != nil {
			return
		}
	}
}

func (b *Bare) take(c *bareConn, payload []byte) error {
	f, err := frame.ParseClient(payload)
	if err != nil {
		return err
	}
	switch f.Kind {
	case frame.Ping:
		return c.send([]byte{0x2a, 0x02, 0x08, 0x01}) // ServerFrame{heartbeat_pong{timestamp_ms: 1}}
	case frame.Message:
		return b.message(c, f.Message)
	}
	return nil
}

func (b *Bare) message(c *bareConn, src []byte) error {
	m, h, err := frame.AppendMessage(nil, src, frame.Stamp{Tenant: TenantName, User: c.user, Device: "load"})
	if err != nil {
		return err
	}
	delivery := serverFrame(frame.AppendDelivery(nil, m, 0, false))
	if h.Type == messagev1.MessageType_GROUP_CHAT {
		first, n := members(h.Group)
		for i := range n {
			b.deliver(UserID(first+i), delivery)
		}
	} else {
		b.deliver(h.ToUser, delivery)
	}
	ack := protowire.AppendTag(nil, 1, protowire.BytesType)
	ack = protowire.AppendString(ack, h.MsgID)
	ack = protowire.AppendTag(ack, 3, protowire.VarintType)
	ack = protowire.AppendVarint(ack, uint64(time.Now().UnixMilli()))
	return c.send(frame.AppendAck(nil, ack))
}

func (b *Bare) deliver(user string, f []byte) {
	b.mu.RLock()
	c := b.conns[user]
	b.mu.RUnlock()
	if c != nil {
		c.mu.Lock()
		_, _ = c.Write(f) // a dead peer's own loop notices
		c.mu.Unlock()
	}
}

func (c *bareConn) send(payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.Write(serverFrame(payload))
	return err
}

// bareReader reads masked frames shorter than 64 KiB.
type bareReader struct{ reader }

// next returns the next binary frame's payload, unmasked in place.
func (rd *bareReader) next() ([]byte, error) {
	for {
		if err := rd.need(2); err != nil {
			return nil, err
		}
		head, size := 6, int(rd.buf[rd.r+1]&0x7f)
		switch size {
		case 126:
			if err := rd.need(4); err != nil {
				return nil, err
			}
			head, size = 8, int(rd.buf[rd.r+2])<<8|int(rd.buf[rd.r+3])
		case 127:
			return nil, errors.New("too long")
		}
		if err := rd.need(head + size); err != nil {
			return nil, err
		}
		f := rd.buf[rd.r : rd.r+head+size]
		rd.r += len(f)
		key, payload := f[head-4:head], f[head:]
		for i := range payload {
			payload[i] ^= key[i&3]
		}
		switch f[0] & 0xf {
		case opBinary:
			return payload, nil
		case opClose:
			return nil, io.EOF
		}
	}
}
