package dedup

import (
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

func key(n int) Key { return Key{byte(n), byte(n >> 8), byte(n >> 16)} }

func TestRepeatOfSentIsKnownForTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab := NewTable[string](100, nil)
		if s := tab.Begin(key(1), nil); s != New {
			t.Fatalf("first: %v", s)
		}
		tab.Finish(key(1), true, time.Minute, "ok")
		time.Sleep(59 * time.Second) // fake time
		if s := tab.Begin(key(1), nil); s != Sent {
			t.Fatalf("within the window: %v", s)
		}
		time.Sleep(time.Second + 2*bucketWidth) // fake time
		if s := tab.Begin(key(1), nil); s != New {
			t.Fatalf("past the window: %v", s)
		}
	})
}

func TestRepeatOfFailedIsProcessedAnew(t *testing.T) {
	tab := NewTable[string](100, nil)
	tab.Begin(key(1), nil)
	tab.Finish(key(1), false, time.Minute, "no")
	if s := tab.Begin(key(1), nil); s != New {
		t.Fatalf("after a failure: %v", s)
	}
}

func TestRepeatUnderWayWaitsForTheOutcome(t *testing.T) {
	tab := NewTable[string](100, nil)
	tab.Begin(key(1), nil)
	var got []string
	for range 2 {
		if s := tab.Begin(key(1), func(o string) { got = append(got, o) }); s != UnderWay {
			t.Fatalf("repeat: %v", s)
		}
	}
	tab.Finish(key(1), true, time.Minute, "ok")
	if len(got) != 2 || got[0] != "ok" {
		t.Fatalf("waiters were told %q", got)
	}
}

func TestCapForgetsTheOldestAndCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		evicted := 0
		tab := NewTable[string](10, func(n int) { evicted += n })
		for i := range 25 {
			tab.Begin(key(i), nil)
			tab.Finish(key(i), true, time.Minute, "")
			time.Sleep(bucketWidth) // fake time: a bucket each
		}
		if tab.Len() > 10 || evicted == 0 {
			t.Fatalf("%d kept, %d evicted", tab.Len(), evicted)
		}
		if s := tab.Begin(key(24), nil); s != Sent {
			t.Fatalf("the newest was forgotten: %v", s)
		}
	})
}

func TestAnotherRouterLearnsWhatWasSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := NewTable[string](1000, nil), NewTable[string](1000, nil)
		var told []Record
		here.OnSent(func(r Record) { told = append(told, r) })
		for i := range 100 {
			here.Begin(key(i), nil)
			here.FinishOf(Record{Key: key(i), User: uint64(i + 1), Window: time.Minute}, i%10 != 0, "")
			time.Sleep(time.Second / 4) // fake time
		}
		here.Begin(key(1000), nil)
		here.Finish(key(1000), true, time.Minute, "")
		if len(told) != 90 {
			t.Fatalf("told of %d", len(told))
		}
		n := 0
		here.Records(func(part []Record) bool {
			for _, r := range part {
				if r.User == 0 || r.Key != key(int(r.User)-1) {
					t.Fatalf("%+v", r)
				}
				n++
				there.Learn(r)
				there.Learn(r)
			}
			return true
		})
		if n != 90 || there.Len() != 90 {
			t.Fatalf("%d records, %d learnt", n, there.Len())
		}
		time.Sleep(30 * time.Second) // fake time: the first ones are 55 s old
		for i := range 100 {
			if s := there.Begin(key(i), nil); (s == Sent) != (i%10 != 0) {
				t.Errorf("%d: %v", i, s)
			}
		}
		time.Sleep(time.Minute + 2*bucketWidth) // fake time
		if s := there.Begin(key(99), nil); s != New || there.Len() != 0 {
			t.Errorf("past the window: %v, %d left", s, there.Len())
		}
	})
}

// BenchmarkEntry measures what an entry costs, at sizes between which the map
// has just grown and is about to grow.
func BenchmarkEntry(b *testing.B) {
	for _, n := range []int{250_000, 350_000, 500_000, 700_000, 1_000_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			for b.Loop() {
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				t := NewTable[string](1<<30, nil)
				r := rand.New(rand.NewPCG(1, 2))
				for range n {
					k := Key{}
					binary.LittleEndian.PutUint64(k[:], r.Uint64())
					binary.LittleEndian.PutUint64(k[8:], r.Uint64())
					t.Learn(Record{Key: k, User: r.Uint64(), Window: time.Duration(r.IntN(600)) * time.Second})
				}
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "B/entry")
				runtime.KeepAlive(t)
			}
		})
	}
}
