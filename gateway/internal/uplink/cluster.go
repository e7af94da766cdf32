package uplink

import (
	"context"
	"slices"
	"time"

	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/rpc"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
)

// registered takes an answer of l's router to a request that was sent then.
func (u *Uplink) registered(l *link, res *routerv1.RegisterResponse, sent time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.leaseFor = leaseOf(res)
	u.lease.renewed(sent, u.leaseFor)
	l.answer = toMembers(res.GetRouters())
	if !l.registered {
		l.registered, l.failing = true, false
		u.log.Info("router_linked", "router", l.url)
	}
	u.refresh()
	signal(l.place.wake)
	if u.lease.fenced {
		signal(u.kick)
	}
}

// learned takes an answer that was not asked for: it says who is there.
func (u *Uplink) learned(l *link, res *routerv1.RegisterResponse) {
	u.mu.Lock()
	defer u.mu.Unlock()
	l.answer = toMembers(res.GetRouters())
	u.refresh()
}

// unregistered says that l's Register stream has ended; nil: on our side.
func (u *Uplink) unregistered(l *link, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if l.registered {
		l.registered, l.downSince = false, time.Now()
	}
	if err == nil || u.ctx.Err() != nil {
		return
	}
	u.breaks.With("register").Inc()
	if !l.failing {
		l.failing = true
		u.log.Warn("router_lost", "router", l.url, "error", err)
	}
	if fault.KindOf(err) == fault.FailedPrecondition {
		u.superseded = true
	}
	u.refresh()
	signal(u.kick)
}

func (u *Uplink) isRegistered(l *link) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return l.registered
}

func (u *Uplink) anyRegistered() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, l := range u.links {
		if l.registered {
			return true
		}
	}
	return false
}

// refresh makes links and homes what the routers say. u.mu is held.
func (u *Uplink) refresh() {
	if u.stopped {
		return
	}
	var answers [][]member
	for _, l := range u.links {
		if l.registered {
			answers = append(answers, l.answer)
		}
	}
	if len(answers) > 0 {
		u.members = merge(answers)
	}
	wanted := map[string]bool{}
	for _, m := range u.members {
		wanted[m.url] = true
	}
	for s := range u.seeds {
		wanted[s] = true
	}
	for url := range wanted {
		if u.links[url] == nil {
			u.link(url)
		}
	}
	now := time.Now()
	homes := reachable(u.members, func(m member) time.Duration {
		if l := u.links[m.url]; !l.registered {
			return max(1, now.Sub(l.downSince))
		}
		return 0
	}, u.leaseFor)
	if !slices.Equal(homes, u.homes) {
		u.homes = homes
		u.applyHomes()
	}
	for url, l := range u.links {
		// Whoever has a stream may still answer.
		if !wanted[url] && !l.registered && !u.outbox.isUp(l.place) {
			u.log.Info("router_forgotten", "router", url)
			delete(u.links, url)
			l.cancel()
			u.closer.forget(l.closes)
		}
	}
}

// link adds and starts a link. u.mu is held.
func (u *Uplink) link(url string) {
	ctx, cancel := context.WithCancel(u.ctx)
	l := &link{
		u: u, url: url, client: routerv1connect.NewRouterServiceClient(u.opts.HTTP, url, rpc.ClientOptions()...),
		place: newPlace(), closes: newCloseQueue(), cancel: cancel, announce: make(chan struct{}, 1), downSince: time.Now(),
	}
	u.links[url] = l
	u.closer.add(l.closes)
	l.start(ctx)
}

// applyHomes tells outbox and closer of u.homes. u.mu is held.
func (u *Uplink) applyHomes() {
	var all, places []*place
	for _, l := range u.links {
		all = append(all, l.place)
	}
	var queues []*closeQueue
	for _, m := range u.homes {
		l := u.links[m.url]
		places, queues = append(places, l.place), append(queues, l.closes)
	}
	index := homeIndex(u.homes)
	u.outbox.setHomes(all, places, func(tenant, user string) *place {
		if i := index(tenant, user); i >= 0 {
			return places[i]
		}
		return nil
	})
	u.closer.setHomes(queues, func(tenant, user string) *closeQueue {
		if i := index(tenant, user); i >= 0 {
			return queues[i]
		}
		return nil
	})
	u.log.Info("routers_changed", "routers", ids(u.homes))
	u.opts.OnRouters()
}
