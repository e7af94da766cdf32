package session

import (
	"testing"
	"testing/synctest"
)

func orphanIDs(t *testing.T, o Orphans) []string { return idsOf(t, o.Messages()) }

// A router dies with the copies of what a V2 client has not acknowledged; another
// one becomes their keeper and gets the confirms.
func TestOrphansGetANewKeeper(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, c := w.connect(2)
		w.open(s)
		dead, other, home := w.router("dead"), w.router("other"), w.router("home")
		s.Deliver(dead.delivery("1"))
		s.Deliver(other.delivery("2"))
		s.Deliver(dead.delivery("3"))
		// The other router has a copy of the third one, too.
		s.Deliver(other.delivery("3"))
		s.Deliver(dead.delivery("4"))
		synctest.Wait()
		gone := func(r RouterRef) bool { return r.ID == "dead" }
		wantIDs(t, "nobody is gone", orphanIDs(t, s.Orphans(func(RouterRef) bool { return false })))
		o := s.Orphans(gone)
		wantIDs(t, "orphans", orphanIDs(t, o), "1", "4")
		if n, bytes := o.Size(); n != 2 || bytes != len(message("1"))+len(message("4")) {
			t.Errorf("%d orphans of %d bytes", n, bytes)
		}
		c.Ack(1) // while the call is under way
		synctest.Wait()
		o.Adopt(home.Router, []uint64{backlogIDs + 7, backlogIDs + 8})
		wantIDs(t, "orphans afterwards", orphanIDs(t, s.Orphans(gone)))
		want(t, "confirmed to the keeper", home.confirmedBacklog(s), backlogIDs+7)
		c.Ack(4)
		synctest.Wait()
		want(t, "confirmed to the keeper", home.confirmedBacklog(s), backlogIDs+8)
		want(t, "confirmed to the other router", other.confirmed(s), 2)
		wantIDs(t, "shown", c.Delivered(), "1", "2", "3", "4")
	})
}

func TestOrphansOfASessionThatIsOpened(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, _ := w.connectPaused(2)
		s.Deliver(w.router("dead").delivery("1"))
		gone := func(r RouterRef) bool { return r.ID == "dead" }
		want(t, "later", s.Orphans(gone).Later, true)
		w.open(s)
		wantIDs(t, "orphans", orphanIDs(t, s.Orphans(gone)), "1")
	})
}

// What ends while its orphans are on the way to a keeper is confirmed to that one,
// because it is handed back.
func TestASessionThatEndsWhileItIsAdopted(t *testing.T) {
	inTime(t, func(t *testing.T) {
		w := newWorld(t)
		s, _ := w.connect(2)
		w.open(s)
		home := w.router("home")
		s.Deliver(w.router("dead").delivery("1"))
		synctest.Wait()
		o := s.Orphans(func(r RouterRef) bool { return r.ID == "dead" })
		s.Abort()
		synctest.Wait()
		wantIDs(t, "handed back", idsOf(t, w.up.final(t).Undelivered), "1")
		want(t, "gone", w.owner.isGone(s), true)
		o.Adopt(home.Router, []uint64{backlogIDs + 1})
		if through := home.confirmedBacklog(s); through < backlogIDs+1 {
			t.Errorf("confirmed through %d", through)
		}
	})
}
