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
