package pipeline

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/event"
)

func required(c *hookv1.TenantRuntimeConfig) { yes := true; c.EventsRequired = &yes; noCheck(c) }
func pulls(c *hookv1.TenantRuntimeConfig)    { yes := true; c.OfflineUseHookPull = &yes; noCheck(c) }

// absentees makes a dispatch find these users absent, and the rest online.
func (w *world) absentees(users ...string) func(dispatch.Job) {
	return func(j dispatch.Job) {
		r := dispatch.Result{}
		for _, to := range j.Recipients {
			if !slices.Contains(users, to.Key.User) {
				r.Delivered++
				continue
			}
			r.Skipped++
			w.absent.Put(dispatch.BufferEntry{Key: to.Key, Message: j.Message, Done: func(dispatch.BufferResult) {}})
		}
		j.Done(r)
	}
}

func TestEventsFollowTheDelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		w.config(noCheck)
		served := dispatch.Result{Delivered: 1}
		w.send = func(j dispatch.Job) {
			if n := len(w.happened()); n != 0 {
				t.Errorf("%d events before the delivery", n)
			}
			j.Done(served)
		}
		in := w.intake()
		sent := chat(1, 1, "one")
		in.Publish(batch(sent))
		w.wants(1, messagev1.AckStatus_SENT, "")
		if got := w.happened(); !slices.Equal(got, []string{"SINGLE_CHAT_MSG one ben"}) {
			t.Fatalf("events %q", got)
		}
		e := w.events[0]
		if e.Key != "ann:ben" || e.User != "ann" || e.Device != "phone" || !bytes.Equal(e.Data, sent.Message) || e.Done != nil || e.Unmoderated {
			t.Errorf("%+v", e)
		}
		w.mu.Lock()
		w.events = nil
		w.mu.Unlock()
		served = dispatch.Result{Skipped: 1}
		in.Publish(batch(chat(2, 1, "two")))
		w.wants(2, messagev1.AckStatus_FAILED, reasonUndelivered)
		if got := w.happened(); len(got) != 0 {
			t.Errorf("a message that failed has events: %q", got)
		}
	})
}

func TestBothDirectionsOfAChatAreOneConversation(t *testing.T) {
	key := func(from, to string, edit ...func(*messagev1.MessageRequest)) (key string) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, nil)
			defer w.close()
			w.config(noCheck)
			w.intake().Publish(batch(chat(1, 1, "m", append(edit, func(m *messagev1.MessageRequest) { m.UserId, m.ToUserId = from, to })...)))
			synctest.Wait()
			key = w.events[0].Key
		})
		return key
	}
	if a, b := key("ann", "ben"), key("ben", "ann"); a != b || a == key("ann", "cat") {
		t.Errorf("keys %q and %q", a, b)
	}
}

func TestUnmoderatedMessagesAreMarkedInTheirEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		w.check = func(*messagev1.MessageRequest) (*hookv1.CheckMessageResponse, error) { return nil, fmt.Errorf("down") }
		w.intake().Publish(batch(chat(1, 1, "m"), chat(2, 1, "g", toGroup)))
		synctest.Wait()
		if got := w.happened(); !slices.Equal(got, []string{"SINGLE_CHAT_MSG m ben", "GROUP_CHAT_MSG g all"}) || !w.events[0].Unmoderated || w.events[1].Key != "all" {
			t.Errorf("%q", got)
		}
	})
}

func TestEachAbsentRecipientGetsAnEventAfterTheMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		w.config(pulls)
		w.send = w.absentees("u2", "u1")
		w.members = func(string) ([]string, error) { return []string{"u1", "u2", "u3"}, nil }
		w.intake().Publish(batch(chat(1, 1, "g", toGroup)))
		synctest.Wait()
		want := []string{"GROUP_CHAT_MSG g all", "OFFLINE_MESSAGE g u1all", "OFFLINE_MESSAGE g u2all"}
		if got := w.happened(); !slices.Equal(got, want) {
			t.Errorf("events %q", got)
		}
		if a := w.ack(1); a.Status != messagev1.AckStatus_SENT || a.OfflineNotifiedUsers != 2 || a.PartialDelivery {
			t.Errorf("%v", a)
		}
		for _, e := range w.events {
			if e.Key != "all" {
				t.Errorf("key %q: not in the order of the conversation", e.Key)
			}
		}
	})
}

func TestAnAbsentRecipientOfWhomNobodyWasToldIsSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		w.config(pulls)
		w.send = w.absentees("u2", "u1")
		w.publish = func(e event.Event) bool { return e.Type != hookv1.EventType_OFFLINE_MESSAGE || e.ToUser == "u1" }
		w.intake().Publish(batch(chat(1, 1, "g", toGroup)))
		synctest.Wait()
		if a := w.ack(1); a.Status != messagev1.AckStatus_SENT || a.OfflineNotifiedUsers != 1 || a.OfflineSkippedUsers != 1 || !a.PartialDelivery {
			t.Errorf("%v", a)
		}
	})
}

func TestWithoutKafkaTheAbsentCountAsNotified(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		w.noKafka = true
		w.config(pulls)
		w.send = w.absentees("ben")
		w.intake().Publish(batch(chat(1, 1, "m")))
		synctest.Wait()
		if a := w.ack(1); a.Status != messagev1.AckStatus_SENT || a.OfflineNotifiedUsers != 1 {
			t.Errorf("%v", a)
		}
	})
}

func TestRequiredEventsAreStoredBeforeTheDelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		w.config(required)
		w.publish = func(e event.Event) bool {
			time.AfterFunc(time.Second, func() { e.Done(nil) })
			return true
		}
		w.intake().Publish(batch(chat(1, 1, "m")))
		time.Sleep(999 * time.Millisecond)
		synctest.Wait()
		if len(w.order()) != 0 || w.ack(1) != nil {
			t.Fatal("it went on before the broker had its event")
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		w.wants(1, messagev1.AckStatus_SENT, "")
		if got := w.happened(); len(got) != 1 || len(w.order()) != 1 {
			t.Errorf("events %q, delivered %q", got, w.order())
		}
	})
}

func TestARequiredEventThatIsNotStoredFailsTheMessage(t *testing.T) {
	for name, publish := range map[string]func(event.Event) bool{
		"not taken":     func(event.Event) bool { return false },
		"dropped":       func(e event.Event) bool { go e.Done(event.ErrDropped); return true },
		"never":         func(event.Event) bool { return true },
		"stored later":  func(e event.Event) bool { time.AfterFunc(6*time.Second, func() { e.Done(nil) }); return true },
		"dead-lettered": func(e event.Event) bool { go e.Done(fmt.Errorf("%w: x", event.ErrDeadLettered)); return true },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				defer w.close()
				w.config(required)
				w.publish = publish
				in := w.intake()
				in.Publish(batch(chat(1, 1, "m")))
				if name == "never" {
					time.Sleep(5*time.Second - 1)
					synctest.Wait()
					if w.ack(1) != nil {
						t.Error("it was given up too soon")
					}
				}
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if name == "dead-lettered" {
					w.wants(1, messagev1.AckStatus_SENT, "")
					return
				}
				w.wants(1, messagev1.AckStatus_FAILED, reasonNotStored)
				if got := w.order(); len(got) != 0 {
					t.Errorf("delivered %q", got)
				}
				// It may be sent again.
				w.publish = nil
				in.Publish(batch(chat(2, 1, "m")))
				synctest.Wait()
				w.wants(2, messagev1.AckStatus_SENT, "")
				time.Sleep(10 * time.Second)
			})
		})
	}
}

func TestRequiredEventsKeepTheConnectionsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		w.config(required)
		wait := map[string]time.Duration{"0": 3 * time.Second, "1": time.Second, "3": 2 * time.Second}
		w.publish = func(e event.Event) bool {
			if e.Done != nil {
				time.AfterFunc(wait[e.MsgID], func() { e.Done(nil) })
			}
			return true
		}
		in := w.intake()
		for i := range 4 {
			edit := []func(*messagev1.MessageRequest){}
			if i == 2 {
				edit = append(edit, toGroup)
			}
			in.Publish(batch(chat(uint64(i), 1, fmt.Sprint(i), edit...)))
			synctest.Wait()
		}
		// The tenant changes its mind: those behind still wait their turn.
		w.config(noCheck)
		in.Publish(batch(chat(4, 1, "4")))
		time.Sleep(10 * time.Second)
		if got := w.order(); !slices.Equal(got, []string{"0", "1", "2", "3", "4"}) {
			t.Errorf("order %q", got)
		}
		if got := w.happened(); len(got) != 5 {
			t.Errorf("events %q", got)
		}
	})
}

func TestARequiredNoticeOfAbsenceIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.close()
		w.config(func(c *hookv1.TenantRuntimeConfig) { required(c); pulls(c) })
		w.send = w.absentees("ben", "cat")
		w.publish = func(e event.Event) bool {
			if e.Type != hookv1.EventType_OFFLINE_MESSAGE {
				e.Done(nil)
			} else if e.ToUser == "ben" {
				time.AfterFunc(2*time.Second, func() { e.Done(nil) })
			}
			return true
		}
		in := w.intake()
		in.Publish(batch(chat(1, 1, "m"), chat(2, 1, "n", func(m *messagev1.MessageRequest) { m.ToUserId = "cat" })))
		synctest.Wait()
		if w.ack(1) != nil {
			t.Error("SENT before its notice was stored")
		}
		time.Sleep(10 * time.Second)
		w.wants(1, messagev1.AckStatus_SENT, "")
		w.wants(2, messagev1.AckStatus_FAILED, reasonUndelivered)
	})
}
