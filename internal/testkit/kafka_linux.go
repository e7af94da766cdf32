package testkit

import (
	"testing"

	"golang.org/x/sys/unix"
)

// Unlimited is LimitFiles' end.
const Unlimited = unix.RLIM_INFINITY

// LimitFiles makes every write that would let one of the broker's files grow
// beyond so many bytes fail, as on a full disk, until the limit is raised again or
// the broker restarted. It needs no rights beyond those of who started the
// broker.
func (s *KafkaServer) LimitFiles(t testing.TB, bytes uint64) {
	t.Helper()
	lim := unix.Rlimit{Cur: bytes, Max: unix.RLIM_INFINITY}
	if err := unix.Prlimit(s.cmd.Process.Pid, unix.RLIMIT_FSIZE, &lim, nil); err != nil {
		t.Fatal(err)
	}
}
