package away

import (
	"context"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/route"
)

// absentEvery is how often other routers are asked to write what they remember, as
// long as one has not said that it did.
const absentEvery = time.Second

// others are the other routers that are known to live: those of the Directory, and who
// has said so meanwhile, which the Directory may yet have to ask the backend about.
func (s *Store) others() []route.Router {
	out := slices.DeleteFunc(slices.Clone(s.cluster.Directory.Routers()), func(r route.Router) bool { return r.ID == s.opts.Self.ID })
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, n := range s.newcomers {
		i := slices.IndexFunc(out, func(r route.Router) bool { return r.ID == id })
		switch {
		case now.Sub(n.at) >= s.opts.Lease || i >= 0 && out[i].Incarnation >= n.Incarnation:
			delete(s.newcomers, id)
		case i >= 0:
			out[i] = n.Router
		default:
			out = append(out, n.Router)
		}
	}
	return out
}

// newcomer is a router that has said that it lives.
type newcomer struct {
	route.Router
	at time.Time
}

// heard notes that a router lives.
func (s *Store) heard(r route.Router) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.ID != s.opts.Self.ID && r.Incarnation >= s.newcomers[r.ID].Incarnation {
		s.newcomers[r.ID] = newcomer{r, time.Now()}
	}
}

// askOthers asks all others of these routers at once. answered is called for each that
// answers, one at a time; nil: the asking is all. all tells whether every one did.
func (s *Store) askOthers(routers []route.Router, req *routerv1.RecordsRequest, answered func(route.Router, *routerv1.RecordsResponse)) (all bool) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	all = true
	for _, r := range routers {
		if r.ID == s.opts.Self.ID {
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(s.ctx, askTimeout)
			defer cancel()
			res, err := s.cluster.Peer(r).Records(ctx, connect.NewRequest(req))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				all = false
			case answered != nil:
				answered(r, res.Msg)
			}
		})
	}
	wg.Wait()
	return all
}

// othersSay tells whether each of the others answers yes.
func (s *Store) othersSay(routers []route.Router, req *routerv1.RecordsRequest, yes func(*routerv1.RecordsResponse) bool) bool {
	said := true
	all := s.askOthers(routers, req, func(_ route.Router, res *routerv1.RecordsResponse) { said = said && yes(res) })
	return all && said
}

// othersRemember adds to found what the other routers remember: of who is absent no
// gateway knows, and his home may be so only now. It tells whether one of them reaches
// the backend, so that nothing can be missing.
func (s *Store) othersRemember(ctx context.Context, keys []route.UserKey, found [][]route.Record) (whole bool) {
	ctx, enough := context.WithCancel(ctx)
	defer enough()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, r := range s.others() {
		wg.Go(func() {
			got, err := s.memoryAsker(r).ask(ctx, keys)
			if err != nil {
				return // what it remembers is lost with it, or this is enough
			}
			mu.Lock()
			defer mu.Unlock()
			all := true
			for i, k := range keys {
				found[i] = join(found[i], got[k].records...)
				all = all && got[k].whole
			}
			if all {
				whole = true
				enough()
			}
		})
	}
	wg.Wait()
	return whole
}

// findPeer looks for another router that reaches the backend, and that renews this
// one's lease then.
func (s *Store) findPeer() {
	others := s.others()
	var found *route.Router
	answered := false
	s.askOthers(others, s.question(), func(r route.Router, res *routerv1.RecordsResponse) {
		answered = true
		if res.GetUp() {
			found = &r
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outage.peer, s.outage.alone = found, len(others) > 0 && !answered
	if asked := s.outage.asked; asked != nil {
		select {
		case <-asked:
		default:
			close(asked)
		}
	}
}

// learnAbsent sees to it, while healing, that what other routers remember is in the
// backend: who is absent, and left when another one was his home, no gateway knows. A
// router that does not say so is asked again when absentEvery has passed.
func (s *Store) learnAbsent() {
	routers := s.cluster.Directory.Routers()
	known := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.phase() != healing || s.heal.absent == state{s.marker, hashOf(routers)} || time.Since(s.heal.asked) < absentEvery
	}
	if known() {
		return
	}
	s.absent.do(func() bool {
		if known() {
			return true
		}
		req := s.question()
		req.Save = true
		saved := s.othersSay(routers, req, (*routerv1.RecordsResponse).GetSaved)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.heal.asked = time.Now()
		if saved {
			s.heal.absent = state{req.GetMarker(), req.GetRoutersHash()}
		}
		return saved
	})
}

// othersSettled tells whether what the other routers answer for is in the backend.
func (s *Store) othersSettled(routers []route.Router) bool {
	return s.othersSay(routers, s.question(), (*routerv1.RecordsResponse).GetSettled)
}

// settled tells another router, which knows this marker and these routers, whether
// what this one answers for is in the backend.
func (s *Store) settled(marker string, routers uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.phase() {
	case up:
		return s.marker == marker
	case healing:
		return s.heal.done == state{marker, routers} && s.marker == marker
	}
	return false
}
