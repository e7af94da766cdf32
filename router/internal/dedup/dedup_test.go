package dedup

import (
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
