package stall

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New()
		time.Sleep(time.Minute) // fake time
		if d.Lately() {
			t.Error("before it runs")
		}
		ctx, cancel := context.WithCancel(t.Context())
		go d.Run(ctx)
		time.Sleep(time.Minute) // fake time
		if d.Lately() {
			t.Error("all is well")
		}
		d.tick.Add(-int64(long + time.Millisecond)) // as if no tick had come
		if !d.Lately() {
			t.Error("not noticed before the next tick")
		}
		time.Sleep(every + time.Millisecond) // fake time
		if !d.Lately() {
			t.Error("not noticed after the next tick")
		}
		time.Sleep(after) // fake time
		if d.Lately() {
			t.Error("never over")
		}
		cancel()
		synctest.Wait()
	})
}
