package port

import (
	"net"
	"testing"
)

func TestAReservedPortIsOnlyForItsServer(t *testing.T) {
	p, err := Reserve()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	if c, err := net.Dial("tcp", p.Addr); err == nil {
		_ = c.Close()
		t.Fatal("somebody answers")
	}
	for range 2 { // a process, and its next incarnation
		ln, err := net.Listen("tcp", p.Addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
