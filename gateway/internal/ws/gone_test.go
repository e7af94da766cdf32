package ws

import (
	"net"
	"testing"

	"github.com/mics-im/mics/internal/testkit"
)

func TestGone(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	pair := func() (*Conn, *net.TCPConn) {
		client, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = client.Close(), server.Close() })
		return NewConn(server, nil), client.(*net.TCPConn)
	}
	if !canReadRaw {
		t.Skip("not known on this platform")
	}
	closed, client := pair()
	if closed.Gone() {
		t.Error("gone while it is there")
	}
	_ = client.Close()
	testkit.Eventually(t, "closed: gone", closed.Gone)

	reset, client := pair()
	_ = client.SetLinger(0)
	_ = client.Close()
	testkit.Eventually(t, "reset: gone", reset.Gone)

	// Whoever says something before it goes is heard.
	spoke, client := pair()
	if _, err := client.Write([]byte{0x88, 0x80, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	_ = client.CloseWrite()
	if f, err := spoke.Next(Limits{Message: 10, Discard: 10}); err != nil || f.Op != Close {
		t.Fatalf("%v, %v", f, err)
	}
	testkit.Eventually(t, "read to its end: gone", spoke.Gone)
}
