//go:build !linux

package ws

import "syscall"

// canReadRaw: readReady does not work here.
const canReadRaw = false

func (*Conn) readReady(uintptr) bool { return true }

// sendQueue is not known here.
func sendQueue(syscall.RawConn) (int, error) { return 0, errUnknown }

// peerGone is not known here.
func peerGone(syscall.RawConn) bool { return false }
