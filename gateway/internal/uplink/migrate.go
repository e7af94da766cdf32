package uplink

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/gateway/internal/session"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

// migrateTimeout bounds one PrepareMigration call.
const migrateTimeout = 2 * time.Second

// Migrate asks the homes for the tokens with which the sessions' clients are to
// move, good for that long, in one call per home. It returns one per session,
// empty for one that cannot move; the error says why some cannot.
func (u *Uplink) Migrate(ctx context.Context, sessions []*session.Session, deadline time.Duration) ([]string, error) {
	moving := make([]*routerv1.MigratingSession, len(sessions))
	for i, s := range sessions {
		id := s.Identity()
		moving[i] = &routerv1.MigratingSession{SessionId: s.ID(), TenantId: id.Tenant, UserId: id.User, DeviceId: id.Device, Epoch: s.Epoch()}
	}
	return u.migrate(ctx, moving, deadline)
}

func (u *Uplink) migrate(ctx context.Context, sessions []*routerv1.MigratingSession, deadline time.Duration) ([]string, error) {
	tokens := make([]string, len(sessions))
	u.mu.Lock()
	if u.lease.fenced || u.superseded {
		u.mu.Unlock()
		return tokens, errFenced
	}
	index := homeIndex(u.homes)
	at := map[*link][]int{} // positions in sessions
	homeless := 0
	for i, s := range sessions {
		if n := index(s.GetTenantId(), s.GetUserId()); n >= 0 {
			l := u.links[u.homes[n].url]
			at[l] = append(at[l], i)
		} else {
			homeless++
		}
	}
	u.mu.Unlock()
	info := u.opts.Info()
	ctx, cancel := context.WithTimeout(ctx, migrateTimeout)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error // guarded by mu
	if homeless > 0 {
		errs = append(errs, fmt.Errorf("%d sessions: %w", homeless, errNotLinked))
	}
	for l, mine := range at {
		wg.Go(func() {
			req := &routerv1.PrepareMigrationRequest{
				Gateway:    &gatewayv1.GatewayRef{NodeId: info.GetNodeId(), Incarnation: info.GetIncarnation()},
				DeadlineMs: uint64(max(1, deadline.Milliseconds())),
			}
			for _, i := range mine {
				req.Sessions = append(req.Sessions, sessions[i])
			}
			res, err := l.client.PrepareMigration(ctx, connect.NewRequest(req))
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("%d sessions at %s: %w", len(mine), l.url, err))
				return
			}
			for n, token := range res.Msg.GetTokens() {
				if n < len(mine) {
					tokens[mine[n]] = token
				}
			}
		})
	}
	wg.Wait()
	return tokens, errors.Join(errs...)
}
