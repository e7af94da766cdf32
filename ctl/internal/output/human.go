package output

import (
	"fmt"
	"time"
)

// Age shows a duration with its largest one or two units: 12s, 5m3s, 7h, 3d4h.
// A negative one (clocks differ) is shown as 0s.
func Age(d time.Duration) string {
	s := int64(max(d, 0) / time.Second)
	two := func(big int64, b string, small int64, l string) string {
		if small == 0 {
			return fmt.Sprintf("%d%s", big, b)
		}
		return fmt.Sprintf("%d%s%d%s", big, b, small, l)
	}
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return two(s/60, "m", s%60, "s")
	case s < 86400:
		return two(s/3600, "h", s%3600/60, "m")
	}
	return two(s/86400, "d", s%86400/3600, "h")
}

// AgeSince shows how long ago ms (milliseconds since the Unix epoch) was; "" for 0.
func AgeSince(now time.Time, ms int64) string {
	if ms == 0 {
		return ""
	}
	return Age(now.Sub(time.UnixMilli(ms)))
}

// Time renders ms (milliseconds since the Unix epoch) as RFC 3339 in UTC with
// milliseconds; "" for 0.
func Time(ms int64) string {
	if ms == 0 {
		return ""
	}
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z")
}

// Rate shows a figure per second.
func Rate(v float64) string {
	if v != 0 && v < 10 {
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// Count shows a number of things, with an s where English wants one.
func Count(n uint64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
