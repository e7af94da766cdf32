// Package port reserves loopback ports for servers that tests and benchmarks start.
package port

import (
	"fmt"
	"syscall"
)

// Port is a loopback port that is reserved until Release: a socket is bound to
// it but does not listen, so that the kernel gives it to nobody else, while a
// process that sets SO_REUSEADDR, as servers do, may listen there. Nobody
// listening, connects are refused.
type Port struct {
	// Addr is host:port.
	Addr string
	fd   int
}

// Reserve returns a port that was free.
func Reserve() (Port, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return Port{}, fmt.Errorf("reserve a port: %w", err)
	}
	// Set after bind, it lets others in without having made the choice of the
	// port less exclusive.
	err = syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	if err == nil {
		err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	}
	var sa syscall.Sockaddr
	if err == nil {
		sa, err = syscall.Getsockname(fd)
	}
	in, ok := sa.(*syscall.SockaddrInet4)
	if err != nil || !ok {
		_ = syscall.Close(fd)
		return Port{}, fmt.Errorf("reserve a port: %w", err)
	}
	return Port{fmt.Sprintf("127.0.0.1:%d", in.Port), fd}, nil
}

// Release gives the port up.
func (p Port) Release() { _ = syscall.Close(p.fd) }
