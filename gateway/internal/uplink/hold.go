package uplink

import (
	"context"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/gateway/internal/session"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// holdTimeout bounds one Hold call.
const holdTimeout = 2 * time.Second

// Living are the routers that count as alive here: the others' copies are gone.
func (u *Uplink) Living() []session.RouterRef {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := make([]session.RouterRef, len(u.homes))
	for i, m := range u.homes {
		out[i] = session.RouterRef{ID: m.id, Incarnation: m.incarnation}
	}
	return out
}

// Held says who keeps the copies of a session's messages now, under which ids.
type Held struct {
	Keeper session.RouterRef
	IDs    []uint64
}

// Hold has the homes of the sessions' users keep copies. It returns one Held per
// session, without ids where the home has no room or gave no answer.
func (u *Uplink) Hold(ctx context.Context, sessions []*routerv1.HoldSession) []Held {
	out := make([]Held, len(sessions))
	u.mu.Lock()
	index := homeIndex(u.homes)
	at := map[*link][]int{} // positions in sessions
	for i, s := range sessions {
		if n := index(s.GetTenantId(), s.GetUserId()); n >= 0 {
			l := u.links[u.homes[n].url]
			at[l] = append(at[l], i)
		}
	}
	u.mu.Unlock()
	info := u.opts.Info()
	ctx, cancel := context.WithTimeout(ctx, holdTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for l, mine := range at {
		wg.Go(func() {
			req := &routerv1.HoldRequest{Gateway: &gatewayv1.GatewayRef{NodeId: info.GetNodeId(), Incarnation: info.GetIncarnation()}}
			for _, i := range mine {
				req.Sessions = append(req.Sessions, sessions[i])
			}
			res, err := l.client.Hold(ctx, connect.NewRequest(req))
			if err != nil {
				u.log.Warn("hold_failed", "router", l.url, "sessions", len(mine), "error", err)
				return
			}
			keeper := session.RouterRef{ID: res.Msg.GetRouterId(), Incarnation: res.Msg.GetRouterIncarnation()}
			for n, h := range res.Msg.GetSessions() {
				if n < len(mine) && len(h.GetIds()) == len(sessions[mine[n]].GetMessages()) {
					out[mine[n]] = Held{keeper, h.GetIds()}
				}
			}
		})
	}
	wg.Wait()
	return out
}
