package session

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"testing"

	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/gateway/internal/wstest"
	"github.com/mics-im/mics/internal/testkit"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"google.golang.org/protobuf/proto"
)

// sockets connects a server's and a client's end over real TCP, with TLS or not.
func sockets(t *testing.T, secure bool) (server, peer net.Conn, tcp *net.TCPConn) {
	t.Helper()
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = plain.Close() }()
	var ln net.Listener = ws.CountListener{Listener: plain}
	if secure {
		ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{certificate(t)}})
	}
	c, err := net.Dial("tcp", plain.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	tcp, peer = c.(*net.TCPConn), c
	if err := tcp.SetReadBuffer(256 << 10); err != nil { // no more than that disappears in the kernel
		t.Fatal(err)
	}
	server, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if secure {
		tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // a test of its own
		shaken := make(chan error, 1)
		go func() { shaken <- tc.Handshake() }()
		if err := server.(*tls.Conn).Handshake(); err != nil {
			t.Fatal(err)
		}
		if err := <-shaken; err != nil {
			t.Fatal(err)
		}
		peer = tc
	}
	return server, peer, tcp
}

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func eachTransport(t *testing.T, f func(t *testing.T, secure bool)) {
	t.Run("tcp", func(t *testing.T) { f(t, false) })
	t.Run("tls", func(t *testing.T) { f(t, true) })
}

func TestV1IsConfirmedByThePeersKernel(t *testing.T) {
	eachTransport(t, func(t *testing.T, secure bool) {
		w := newWorld(t)
		server, peer, _ := sockets(t, secure)
		s, c := w.session(server, peer, 1)
		if !s.ackKnown {
			t.Skip("SKIPPED: this platform does not tell what the peer has acknowledged")
		}
		w.open(s)
		a := w.router("a")
		s.Deliver(a.delivery("1")) // the client does not read it
		testkit.Eventually(t, "the kernel's acknowledgement confirms", func() bool {
			w.owner.sweep()
			return a.confirmed(s) == 1
		})
		c.Allow(wstest.Plenty)
		testkit.Eventually(t, "it is shown", func() bool { return len(c.Delivered()) == 1 })
		s.Close(CodeDraining, "server draining")
		testkit.Eventually(t, "it ends", func() bool { w.owner.sweep(); return w.owner.isGone(s) })
		want(t, "echoed", s.Outcome().Echoed, true)
	})
}

// A client that has stopped reading and then dies: what its kernel had is
// confirmed, the rest comes back, nothing is in both or in neither.
func TestV1ThatDiesHandsBackWhatItsKernelHadNot(t *testing.T) {
	eachTransport(t, func(t *testing.T, secure bool) {
		w := newWorld(t, func(c *Config) { c.QueueFrames, c.QueueBytes = 1000, 64<<20 })
		server, peer, tcp := sockets(t, secure)
		s, _ := w.session(server, peer, 1)
		if !s.ackKnown {
			t.Skip("SKIPPED: this platform does not tell what the peer has acknowledged")
		}
		w.open(s)
		a := w.router("a")
		const n = 400
		for i := range n {
			m, err := proto.Marshal(&messagev1.MessageRequest{MsgId: fmt.Sprint(i + 1), MsgBody: bytes.Repeat([]byte("x"), 32<<10)})
			if err != nil {
				t.Fatal(err)
			}
			want(t, "deliver", s.Deliver(NewDelivery(a.Router, &gatewayv1.Delivery{Id: uint64(i + 1), Message: m})), accepted)
		}
		var some uint64
		testkit.Eventually(t, "the client's buffers are full", func() bool {
			w.owner.sweep()
			some = a.confirmed(s)
			return some > 0 && s.writeSince.Load() != 0
		})
		if err := tcp.SetLinger(0); err != nil { // a reset
			t.Fatal(err)
		}
		_ = tcp.Close()
		testkit.Eventually(t, "it ends", func() bool { w.owner.sweep(); return w.owner.isGone(s) })
		back := idsOf(t, w.up.final(t).Undelivered)
		if len(back) == 0 || len(back) >= n {
			t.Fatalf("%d handed back", len(back))
		}
		for i, id := range back {
			if id != fmt.Sprint(n-len(back)+i+1) {
				t.Fatalf("handed back %v", back)
			}
		}
		if first := uint64(n-len(back)) + 1; first <= some {
			t.Errorf("%d was confirmed and is handed back", first)
		}
		want(t, "all is confirmed in the end", a.confirmed(s), n)
	})
}
