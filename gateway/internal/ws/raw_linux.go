package ws

import (
	"errors"
	"io"
	"syscall"

	"golang.org/x/sys/unix"
)

// canReadRaw: readReady works here.
const canReadRaw = true

// readReady is called with the socket readable, or at once to try: the buffer
// is taken only when there is something to put into it. False: wait.
func (c *Conn) readReady(fd uintptr) bool {
	c.acquire()
	for {
		n, err := syscall.Read(int(fd), c.buf[c.w:])
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			if c.w == 0 {
				c.release()
			}
			return false
		case err != nil:
			c.readErr = err
		case n == 0:
			c.readErr = io.EOF
		default:
			c.readN = n
		}
		return true
	}
}

// sendQueue is how many bytes the kernel holds that the peer's has not
// acknowledged (SIOCOUTQ).
func sendQueue(sock syscall.RawConn) (n int, err error) {
	cerr := sock.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return n, errors.Join(cerr, err)
}

// peerGone is whether the peer has closed or reset and there is nothing to read.
func peerGone(sock syscall.RawConn) (gone bool) {
	_ = sock.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = n == 0 && err == nil || errors.Is(err, unix.ECONNRESET)
	})
	return gone
}
