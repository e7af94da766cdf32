package pipeline

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

// TestALaneLetsOutOneAtATime: messages get ready in any order and while another
// one is being let out.
func TestALaneLetsOutOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var out []uint64
		busy := 0
		l := newLanes(func(m *message) {
			mu.Lock()
			busy++
			if busy > 1 {
				t.Error("two at once")
			}
			mu.Unlock()
			time.Sleep(2 * time.Millisecond) // fake time
			mu.Lock()
			defer mu.Unlock()
			busy--
			out = append(out, m.ref)
		})
		in := &Intake{gateway: route.NodeRef{ID: "g", Incarnation: 1}}
		var want []uint64
		for ref := range uint64(20) {
			m := &message{in: in, ref: ref, session: 1}
			want = append(want, ref)
			if ref == 3 {
				l.ready(m) // before it has entered, and again below
			}
			l.enter(m)
			go func() {
				time.Sleep(time.Duration(ref*7%5) * time.Millisecond) // fake time
				l.ready(m)
			}()
		}
		time.Sleep(time.Second) // fake time
		synctest.Wait()
		if !slices.Equal(out, want) {
			t.Errorf("let out %v", out)
		}
		if !l.idle(laneKey{in.gateway, 1}) {
			t.Error("an empty lane is left")
		}
	})
}
