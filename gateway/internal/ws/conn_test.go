package ws

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/internal/testkit"
)

// The way of reading that unit tests of other packages use: over net.Pipe, in
// fake time.
func TestOverPipeInFakeTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		c := NewConn(server, nil)
		stream, want := splitStream()
		var got []event
		var err error
		go func() { got, err = readAll(c, wide) }()
		synctest.Wait()
		if c.block != nil {
			t.Error("a buffer is held while waiting")
		}
		for len(stream) > 0 {
			n := min(len(stream), 1000)
			time.Sleep(time.Hour) // fake
			if _, err := client.Write(stream[:n]); err != nil {
				t.Fatal(err)
			}
			stream = stream[n:]
		}
		synctest.Wait()
		if c.block != nil {
			t.Error("a buffer is held while waiting again")
		}
		wantEvents(t, got, nil) // readAll has not returned: it waits
		_ = client.Close()
		synctest.Wait()
		if !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		wantEvents(t, got, want)
		if _, ok := c.Acknowledged(); ok {
			t.Error("a pipe has no acknowledgements")
		}
	})
}

func TestWriteOverPipe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		c := NewConn(server, nil)
		if err := c.Write(nil); err != nil { // nobody reads
			t.Fatal(err)
		}
		if err := c.Write(net.Buffers{nil, {}}); err != nil {
			t.Fatal(err)
		}
		frames := net.Buffers{[]byte("one"), nil, []byte("two"), pattern(3 * maxRecord), []byte("end")}
		want := join(frames...)
		var werr error
		go func() {
			werr = c.Write(frames)
			_ = c.Close()
		}()
		got, err := io.ReadAll(client)
		if err != nil || werr != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes of %d: %v, %v", len(got), len(want), err, werr)
		}
		if c.Written() != int64(len(want)) || !c.Exact() {
			t.Fatalf("Written is %d of %d", c.Written(), len(want))
		}
	})
}

func TestWriteDeadlineLeavesTheCountRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		c := NewConn(server, nil)
		if err := c.SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		var werr error
		go func() { werr = c.Write(net.Buffers{pattern(2 * maxRecord), []byte("x")}) }()
		if _, err := io.ReadFull(client, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // fake
		synctest.Wait()
		if !errors.Is(werr, os.ErrDeadlineExceeded) {
			t.Fatal(werr)
		}
		if c.Written() != 100 {
			t.Fatalf("Written is %d, the peer has 100", c.Written())
		}
		_ = c.Close()
		_ = client.Close()
	})
}

func TestManyFramesInOneWrite(t *testing.T) {
	c, client := loopback(t, nil)
	var frames net.Buffers
	var want []byte
	shared := AppendFrame(nil, Binary, pattern(5000))
	for i := range 3*maxVector + 5 {
		f := AppendFrame(nil, Binary, pattern(i*3))
		frames = append(frames, f, shared, nil)
		want = append(append(want, f...), shared...)
	}
	few := net.Buffers{[]byte("a"), shared[:readBlock-1]} // just copied
	want = append(want, join(few...)...)
	copied := bytes.Clone(shared)
	done := make(chan error, 1)
	go func() { done <- errors.Join(c.Write(frames), c.Write(few)) }()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(client, got); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || !bytes.Equal(got, want) {
		t.Fatalf("not what was written: %v", err)
	}
	if !bytes.Equal(shared, copied) {
		t.Fatal("a shared frame was modified")
	}
	if c.Written() != int64(len(want)) {
		t.Fatalf("Written is %d of %d", c.Written(), len(want))
	}
}

func TestIdleConnectionsHoldNoBuffer(t *testing.T) {
	c, client := loopback(t, nil)
	if !canReadRaw {
		t.Skip("SKIPPED: the raw way needs Linux")
	}
	if c.raw == nil {
		t.Fatal("a TCP connection is not read the raw way")
	}
	next := make(chan string)
	go func() {
		defer close(next)
		for {
			f, err := c.Next(wide)
			if err != nil {
				return
			}
			next <- string(f.Payload)
		}
	}()
	for _, s := range []string{"one", "two"} {
		if _, err := client.Write(binaryFrame([]byte(s))); err != nil {
			t.Fatal(err)
		}
		if got := <-next; got != s {
			t.Fatalf("%q, want %q", got, s)
		}
	}
	_ = client.CloseWrite()
	if _, open := <-next; open {
		t.Fatal("something was read after the end")
	}
	if c.block != nil {
		t.Fatal("the buffer was not given back")
	}
}

func TestCloseEndsNextAndWrite(t *testing.T) {
	c, _ := loopback(t, nil)
	next, write := make(chan error, 1), make(chan error, 1)
	go func() { _, err := c.Next(wide); next <- err }()
	go func() {
		for {
			if err := c.Write(net.Buffers{pattern(1 << 20)}); err != nil {
				write <- err
				return
			}
		}
	}()
	testkit.Eventually(t, "something was written", func() bool { return c.Written() > 0 })
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for what, ch := range map[string]chan error{"Next": next, "Write": write} {
		if err := <-ch; !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, ok := c.Acknowledged(); ok {
		t.Error("Acknowledged after Close")
	}
}

func TestResetIsAnErrorOfNext(t *testing.T) {
	c, client := loopback(t, nil)
	_ = client.SetLinger(0)
	_ = client.Close()
	if _, err := c.Next(wide); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
}

// The count follows the peer: it stays while the peer's kernel takes nothing and
// reaches the end when it has everything.
func TestAcknowledgedFollowsThePeer(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		cerr := raw.Control(func(fd uintptr) { // before connecting, or the window is larger
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096)
		})
		return errors.Join(cerr, err)
	}}
	client, err := d.DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := NewConn(server, nil)
	defer func() { _ = c.Close() }()
	if n, ok := c.Acknowledged(); !canReadRaw && !ok {
		t.Skip("SKIPPED: not known on this platform")
	} else if n != 0 || !ok {
		t.Fatalf("%d, %v before anything was written", n, ok)
	}

	const size = 256 << 10 // more than the peer takes, less than the send buffer
	if err := server.(*net.TCPConn).SetWriteBuffer(2 * size); err != nil {
		t.Fatal(err)
	}
	_ = c.SetWriteDeadline(time.Now().Add(30 * time.Second))
	half := pattern(size / 2)
	if err := c.Write(net.Buffers{half, half}); err != nil {
		t.Fatal(err)
	}
	if c.Written() != size {
		t.Fatalf("Written is %d", c.Written())
	}
	// A receive buffer of 4 KiB holds some of it for good.
	last := int64(-1)
	testkit.Eventually(t, "the peer's buffer is full", func() bool {
		n, ok := c.Acknowledged()
		same := ok && n == last && n > 0
		last = n
		return same
	})
	if last >= size/2 {
		t.Fatalf("%d of %d acknowledged by a peer that reads nothing", last, size)
	}
	_ = client.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.ReadFull(client, make([]byte, size/2)); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the count advances when the peer reads", func() bool {
		n, ok := c.Acknowledged()
		if n > size {
			t.Fatalf("%d of %d", n, size)
		}
		return ok && n >= size/2
	})
	if _, err := io.ReadFull(client, make([]byte, size/2)); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "all is acknowledged", func() bool {
		n, ok := c.Acknowledged()
		return ok && n == size
	})
}

// A listener whose connections count is meant for below TLS; without TLS it
// makes no difference.
func TestCountedWithoutTLS(t *testing.T) {
	c, client := loopback(t, func(nc net.Conn) net.Conn { return &Counted{TCPConn: nc.(*net.TCPConn)} })
	if canReadRaw && c.raw == nil {
		t.Error("not read the raw way")
	}
	if err := c.Write(net.Buffers{[]byte("ab"), []byte("c")}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(client, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if c.Written() != 3 || !c.Exact() {
		t.Fatal(c.Written(), c.Exact())
	}
}

func TestDoneGivesEverythingBack(t *testing.T) {
	c, _ := ways["plain"](t, [][]byte{join(binaryFrame([]byte("x")), clientFrame(false, Binary, testKey, pattern(9)))})
	if _, err := c.Next(wide); err != nil {
		t.Fatal(err)
	}
	c.Done()
	if c.block != nil || c.message != nil || c.r != c.w {
		t.Fatal("something is held")
	}
	c.Done()
}

func TestTooManyEarlyBytes(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Fatal("early bytes were lost silently")
		}
	}()
	NewConn(&script{}, make([]byte, readBlock+1))
}
