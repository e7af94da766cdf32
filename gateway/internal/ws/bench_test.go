package ws

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
)

// endless is a connection on which the same bytes come over and over.
type endless struct {
	net.Conn
	stream []byte
	at     int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.stream[e.at:])
	if e.at += n; e.at == len(e.stream) {
		e.at = 0
	}
	return n, nil
}

// BenchmarkNext is the codec alone.
func BenchmarkNext(b *testing.B) {
	for _, size := range []int{16, 300, 4000, 64 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			c := NewConn(&endless{stream: binaryFrame(pattern(size))}, nil)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Next(wide); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkNextOverTCP includes the system calls, the sender's too.
func BenchmarkNextOverTCP(b *testing.B) {
	c, client := loopback(b, nil)
	raw, err := client.SyscallConn()
	if err != nil {
		b.Fatal(err)
	}
	frame := binaryFrame(pattern(300))
	b.ReportAllocs()
	for b.Loop() {
		_ = raw.Control(func(fd uintptr) { _, err = syscall.Write(int(fd), frame) })
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.Next(wide); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, n := range []int{1, 2, 8, 64, 128} {
		for _, size := range []int{50, 300, 2000} {
			b.Run(fmt.Sprintf("%dx%d", n, size), func(b *testing.B) {
				c, client := loopback(b, nil)
				done := make(chan struct{})
				go func() {
					defer close(done)
					_, _ = io.Copy(io.Discard, struct{ io.Reader }{client})
				}()
				frame := AppendFrame(nil, Binary, bytes.Repeat([]byte("x"), size))
				frames := make(net.Buffers, n)
				b.ReportAllocs()
				for b.Loop() {
					part := frames
					for i := range part {
						part[i] = frame
					}
					if err := c.Write(part); err != nil {
						b.Fatal(err)
					}
				}
				_ = c.Close()
				<-done
			})
		}
	}
}
