package redisstore

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/testkit"
	"github.com/mics-im/mics/router/internal/route"
	"github.com/redis/rueidis"
)

// A gateway's worth of sessions.
const full = 100_000

func fullGateway() []route.Restored {
	records := make([]route.Restored, full)
	for i := range records {
		k := phone
		k.User = fmt.Sprint("user-", i)
		records[i] = route.Restored{Key: k, Record: route.Record{State: route.Live, Node: node, Session: uint64(i), Epoch: 1, Version: 2}}
	}
	return records
}

// watch forgets what Redis' commands took so far, and notes those of 100 µs and
// more from now on.
func watch(b *testing.B, s *Store) {
	c := client(b, s)
	for _, cmd := range []rueidis.Completed{
		c.B().ConfigSet().ParameterValue().ParameterValue("slowlog-log-slower-than", "100").ParameterValue("slowlog-max-len", "10000").Build(),
		c.B().ConfigResetstat().Build(),
		c.B().SlowlogReset().Build(),
	} {
		if err := c.Do(b.Context(), cmd).Error(); err != nil {
			b.Fatal(err)
		}
	}
}

// report says how long a route took, and Redis for its commands. On a machine
// with other work the longest is how long Redis was not running.
func report(b *testing.B, s *Store) {
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(full*b.N), "µs/route")
	c := client(b, s)
	entries, err := c.Do(b.Context(), c.B().SlowlogGet().Count(10000).Build()).ToArray()
	if err != nil {
		b.Fatal(err)
	}
	most, what := int64(0), ""
	for _, e := range entries {
		// id, time, microseconds, arguments, ...
		values, err := e.ToArray()
		if err != nil {
			b.Fatal(err)
		}
		us, err := values[2].AsInt64()
		args, err2 := values[3].AsStrSlice()
		if err != nil || err2 != nil {
			b.Fatal(err, err2)
		}
		if us > most {
			most, what = us, fmt.Sprintf("%.60q", args[:min(4, len(args))])
		}
	}
	b.ReportMetric(float64(most), "longest-µs")
	stats, err := c.Do(b.Context(), c.B().Info().Section("latencystats").Build()).ToString()
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("%d commands took 100 µs or more, the longest %d µs: %s", len(entries), most, what)
	for line := range strings.Lines(stats) {
		_, command, _ := strings.Cut(line, "usec_")
		if name, _, _ := strings.Cut(command, ":"); slices.Contains([]string{"evalsha", "sadd", "srandmember", "srem"}, name) {
			b.Logf("µs of %s", strings.TrimSpace(command))
		}
	}
}

// BenchmarkRestore brings back 100,000 routes.
func BenchmarkRestore(b *testing.B) {
	server := testkit.StartRedis(b)
	s := open(b, server.Addr)
	records := fullGateway()
	for b.Loop() {
		b.StopTimer()
		if _, err := server.Do("FLUSHALL"); err != nil {
			b.Fatal(err)
		}
		watch(b, s)
		b.StartTimer()
		if n, err := s.Restore(b.Context(), records); n != full || err != nil {
			b.Fatal(n, err)
		}
	}
	report(b, s)
}

// BenchmarkReap cleans up after a gateway with 100,000 routes, 500 at a time.
func BenchmarkReap(b *testing.B) {
	s := open(b, testkit.Redis(b))
	records := fullGateway()
	for b.Loop() {
		b.StopTimer()
		if _, err := s.Restore(b.Context(), records); err != nil {
			b.Fatal(err)
		}
		watch(b, s)
		b.StartTimer()
		routes := 0
		for more := true; more; {
			ended, m, err := s.Reap(b.Context(), node, 500, func(string) time.Duration { return time.Hour })
			if err != nil {
				b.Fatal(err)
			}
			routes, more = routes+len(ended), m
		}
		if routes != full {
			b.Fatal(routes)
		}
	}
	report(b, s)
}
