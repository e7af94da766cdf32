package pipeline

import (
	"context"
	"fmt"
	"testing"

	"github.com/mics-im/mics/internal/frame"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/route"
)

// FuzzPublish: whatever bytes come, the message is answered exactly once, and the
// pipeline is empty afterwards.
func FuzzPublish(f *testing.F) {
	f.Add(chat(1, 1, "hi").Message, chat(1, 1, "ho").Message, uint32(2))
	f.Add(chat(1, 1, "hi", toGroup).Message, []byte{0xff}, uint32(1))
	f.Add([]byte{}, []byte{}, uint32(0))
	f.Fuzz(func(t *testing.T, one, two []byte, version uint32) {
		w := newWorld(t, nil)
		in := w.intake()
		var all []*routerv1.Inbound
		for i, raw := range [][]byte{one, two, one} {
			all = append(all, &routerv1.Inbound{Ref: uint64(i), SessionId: 1, Message: raw, Version: version})
		}
		in.Publish(all)
		w.p.wg.Wait()
		for i := range all {
			a := w.ack(uint64(i))
			if a == nil {
				t.Fatalf("message %d is not answered", i)
			}
			if h, err := frame.ParseMessage(all[i].Message); err == nil && a.MsgId != h.MsgID {
				t.Fatalf("answered as %q", a.MsgId)
			}
		}
		w.close()
	})
}

// BenchmarkSingleChat is a batch of single chats without a hook, from the stream
// to the ack, without routes and delivery.
func BenchmarkSingleChat(b *testing.B) {
	for _, size := range []int{1, 16} {
		b.Run(fmt.Sprint("batch=", size), func(b *testing.B) {
			w := newWorld(b, nil)
			defer w.close()
			w.config(noCheck)
			quiet := &bench{world: w}
			w.p.opts.Routes, w.p.opts.Dispatcher = quiet, quiet
			in := w.p.Intake(route.NodeRef{ID: "g", Incarnation: 1}, func(uint64, []byte) { quiet.acks++ })
			all := make([]*routerv1.Inbound, size)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				if n%size == 0 {
					b.StopTimer()
					for i := range all {
						all[i] = chat(uint64(n+i), uint64(i), fmt.Sprint(n+i), func(m *messagev1.MessageRequest) { m.MsgBody = make([]byte, 200) })
					}
					b.StartTimer()
					in.Publish(all)
				}
				n++
			}
			if quiet.acks < n {
				b.Fatalf("%d of %d answered", quiet.acks, n)
			}
		})
	}
}

// bench is routes and a dispatcher that cost nothing.
type bench struct {
	*world
	records [][]route.Record
	acks    int
}

func (q *bench) Lookup(_ context.Context, keys []route.UserKey) ([][]route.Record, error) {
	for len(q.records) < len(keys) {
		q.records = append(q.records, nil)
	}
	return q.records[:len(keys)], nil
}

func (q *bench) Send(j dispatch.Job) { j.Done(dispatch.Result{Delivered: 1}) }
