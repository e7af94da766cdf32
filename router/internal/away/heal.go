package away

import (
	"context"
	"errors"
	"sync"
	"time"

	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/router/internal/route"
)

const (
	// probeEvery is how often a backend that is away is asked whether it is back.
	probeEvery = 500 * time.Millisecond
	// probeTimeout: a backend counts as back when it is well within the second
	// that every command has.
	probeTimeout = 500 * time.Millisecond
	// healEvery is how often the steps back are tried.
	healEvery = 100 * time.Millisecond
	// recent is how long before an outage the backend may have lost writes already:
	// one that persists once a second, or that replicates behind its answers.
	recent = 10 * time.Second
	// listTimeout bounds the list of what a gateway holds, and listPatience how
	// long a living gateway that does not give it is asked again.
	listTimeout  = 10 * time.Second
	listPatience = 20 * time.Second
	// arrival is how long gateways need to find a router that has just started.
	arrival = 1500 * time.Millisecond
	// listsAtOnce bounds the gateways that are listed at the same time.
	listsAtOnce = 4
)

// recovery is the way back from one loss.
type recovery struct {
	began   time.Time
	rebuild bool  // the gateways' lists are needed
	emptied bool  // the backend had lost everything, the counts too
	done    state // what this router's part is done for
	absent  state // with what others have written what they remember
	asked   time.Time
	routes  int
}

// state is what a router's part of a recovery is done for: the backend's content,
// and the routers that share the users. Zero: for nothing.
type state struct {
	marker  string
	routers uint64
}

// run looks after the backend until Stop.
func (s *Store) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-s.kick:
		case <-s.ctx.Done():
			return
		}
		s.turn()
		switch s.phase() {
		case up:
			s.lookAgain()
		case away:
			s.probe()
		case healing:
			s.recover()
		}
		pause := probeEvery
		if s.phase() == healing {
			pause = healEvery
		}
		timer.Reset(pause)
	}
}

// lookAgain asks the backend whether it is there, if somebody has given up waiting
// for it.
func (s *Store) lookAgain() {
	s.mu.Lock()
	suspect := s.suspect
	s.suspect = false
	s.mu.Unlock()
	if suspect {
		ctx, cancel := context.WithTimeout(s.ctx, 2*probeTimeout)
		defer cancel()
		if err := s.backend.Ping(ctx); err != nil && s.ctx.Err() == nil {
			s.lost(err)
		}
	}
	s.mu.Lock()
	late := len(s.drift) > 0
	s.mu.Unlock()
	if late {
		_ = s.count(s.ctx) // else next time
	}
	if s.mirror.unsavedLen() > 0 {
		s.write() // what was learnt when the store was all but back
	}
	d := s.cluster.Directory
	s.gateways.keep(func(ref route.NodeRef) bool { _, ok := d.Gateway(ref); return ok })
	routers := s.others()
	for _, a := range []*askers{&s.homes, &s.memories} {
		a.keep(func(ref route.NodeRef) bool { return holds(routers, ref) })
	}
}

// probe asks whether the backend is back, and whether others reach it.
func (s *Store) probe() {
	var peers sync.WaitGroup
	peers.Go(s.findPeer)
	ctx, cancel := context.WithTimeout(s.ctx, probeTimeout)
	err := s.backend.Ping(ctx)
	cancel()
	peers.Wait()
	if s.ctx.Err() != nil {
		return
	}
	now := time.Now()
	s.mu.Lock()
	if err != nil {
		s.outage.err = err
	}
	var back bool
	s.calm, back = s.calm.answered(err == nil, now)
	if back {
		s.reached = true
		since := s.outage.since
		long := now.Sub(since) > s.opts.Lease
		s.partial = now.Add(s.opts.Lease)
		s.heal = recovery{began: now, rebuild: long || s.heal.rebuild, emptied: s.heal.emptied}
		s.mirror.doubt(since.Add(-recent), s.mine)
		s.state.Store(int32(healing))
		s.log.Info("redis_back", "away_ms", now.Sub(since).Milliseconds())
	}
	s.mu.Unlock()
	if back {
		s.recover()
		return
	}
	s.write()
}

// recover goes as far on the way back as it can now.
func (s *Store) recover() {
	s.verify()
	s.mu.Lock()
	h, marker, whole := s.heal, s.marker, s.whole
	fresh := time.Since(s.started) < arrival
	s.mu.Unlock()
	if s.phase() != healing {
		return
	}
	if h.rebuild && whole {
		// Who is the home of these users after this router must know.
		if err := s.backend.SetWhole(s.ctx, marker, false); err != nil {
			s.failed(s.ctx, err)
			return
		}
	}
	if h.rebuild && fresh {
		return
	}
	// Gateways that this router could not hear either have left its picture, and
	// their routes would be taken for dead ones.
	if s.cluster.Directory.Read().Before(h.began) {
		return
	}
	ring := s.ring()
	routers := s.cluster.Directory.Routers()
	want := state{marker, hashOf(routers)}
	if h.done != want {
		var err error
		if h.rebuild {
			s.mirror.doubt(time.Time{}, s.mine)
			err = s.rebuild(names(routers), h)
		}
		if err == nil && !h.emptied {
			err = s.count(s.ctx)
		}
		if err != nil {
			s.failed(s.ctx, err)
			return
		}
		if !s.write() {
			return
		}
		s.mu.Lock()
		if s.marker == marker {
			s.heal.done = want
		}
		s.mu.Unlock()
	}
	if s.othersSettled(routers) {
		s.finish(want, ring)
	}
}

// finish is the step back to up, with that set of routers.
func (s *Store) finish(want state, ring uint64) {
	s.gate.Lock()
	defer s.gate.Unlock()
	if !s.write() {
		return
	}
	if err := s.backend.SetWhole(s.ctx, want.marker, true); err != nil {
		s.failed(s.ctx, err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase() != healing || s.heal.done != want || s.marker != want.marker {
		return
	}
	s.log.Info("routes_rebuilt", "routes", s.heal.routes, "duration_ms", time.Since(s.heal.began).Milliseconds(), "from_gateways", s.heal.rebuild)
	s.heal, s.outage = recovery{}, outage{}
	s.whole, s.sure = true, ring
	s.begin()
	s.state.Store(int32(up))
	if s.cluster.Rebuilt != nil {
		s.cluster.Rebuilt()
	}
}

func (s *Store) countRebuilt(n int) {
	s.rebuilt.Add(int64(n))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heal.routes += n
}

// rebuild writes the routes of all sessions whose users are this router's, and if
// counts are lost those of the gateways that are.
func (s *Store) rebuild(routers []string, h recovery) error {
	if h.emptied {
		s.mu.Lock()
		s.drift = map[share]int{} // the gateways know better
		s.mu.Unlock()
	}
	if !s.write() {
		return errMore
	}
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	places := make(chan struct{}, listsAtOnce)
	for _, g := range s.cluster.Directory.Gateways() {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			if err := s.rebuildFrom(g, routers, h); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// rebuildFrom does one gateway's part. A gateway that is out of reach holds the
// rebuilding up as long as it lives, but not for ever: nothing could be delivered
// to it either.
func (s *Store) rebuildFrom(g route.Node, routers []string, h recovery) error {
	ctx, cancel := context.WithTimeout(s.ctx, listTimeout)
	defer cancel()
	mine := &gatewayv1.SessionsRequest{}
	counted := h.emptied && s.homeOf(routers, route.UserKey{User: g.ID})
	counts := map[string]int{}
	if len(routers) > 1 {
		mine.Routers, mine.HomeRouter = routers, s.opts.Self.ID
	}
	var stored error
	err := s.sessions(ctx, g, mine, func(list []*gatewayv1.SessionInfo) error {
		for _, i := range list {
			counts[i.GetTenantId()]++
		}
		stored = s.restoreList(ctx, g.NodeRef, routers, list)
		return stored
	})
	if err == nil && counted && len(routers) > 1 {
		clear(counts)
		err = s.sessions(ctx, g, &gatewayv1.SessionsRequest{}, func(list []*gatewayv1.SessionInfo) error {
			for _, i := range list {
				counts[i.GetTenantId()]++
			}
			return nil
		})
	}
	if err == nil && counted {
		for tenant, n := range counts {
			if stored = s.backend.SetConns(ctx, tenant, g.NodeRef, n); stored != nil {
				s.failed(ctx, stored)
				return stored
			}
		}
	}
	if err == nil || stored != nil {
		return err
	}
	if _, alive := s.cluster.Directory.Gateway(g.NodeRef); !alive {
		return nil
	}
	if time.Since(h.began) > listPatience {
		s.log.Error("gateway_not_listed", "gateway", g.ID, "err", err.Error())
		return nil
	}
	return err
}

// restoreList writes the routes of a part of a gateway's sessions. What the mirror
// knows of a device goes before, also what it learns meanwhile: a session that ends
// now must not come back.
func (s *Store) restoreList(ctx context.Context, node route.NodeRef, routers []string, list []*gatewayv1.SessionInfo) error {
	records := make([]route.Restored, 0, len(list))
	for _, i := range list {
		key, r := recordOf(node, i)
		if key.Check() != nil || !s.homeOf(routers, key.UserKey) {
			continue
		}
		if known := s.mirror.device(key); known == nil || better(r, *known) {
			records = append(records, route.Restored{Key: key, Record: r})
		}
	}
	if len(records) == 0 {
		return nil
	}
	n, err := s.backend.Restore(ctx, records)
	s.countRebuilt(n)
	if err != nil {
		s.failed(ctx, err)
		return err
	}
	var again []route.Restored
	for _, r := range records {
		if known := s.mirror.device(r.Key); known != nil && better(*known, r.Record) {
			again = append(again, route.Restored{Key: r.Key, Record: *known})
		}
	}
	if len(again) == 0 {
		return nil
	}
	return s.restore(ctx, again)
}
