package load

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// clock tells the machine's monotonic time in nanoseconds, the same in all
// processes, as cheaply as the runtime does.
type clock struct {
	base   time.Time
	offset int64
}

func newClock() (clock, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return clock{}, err
	}
	return clock{base: time.Now(), offset: ts.Nano()}, nil
}

func (c clock) now() int64 { return c.offset + int64(time.Since(c.base)) }

// pace calls f(due) for every one of n times due, interval apart from start on,
// on a thread of its own: the runtime's timers are coarser than what is to be
// measured. If f is late the next calls follow at once, with the times at which
// they were due. It returns early when f returns false.
func (c clock) pace(start int64, interval time.Duration, n int, f func(due int64) bool) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for i := range n {
		due := start + int64(i)*int64(interval)
		for wait := due - c.now(); wait > 0; wait = due - c.now() {
			ts := unix.NsecToTimespec(wait)
			_ = unix.Nanosleep(&ts, nil) // interrupted: the loop looks again
		}
		if !f(due) {
			return
		}
	}
}
