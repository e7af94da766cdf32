package away

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/ring"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/route"
)

func names(routers []route.Router) []string {
	out := make([]string, len(routers))
	for i, r := range routers {
		out[i] = r.ID
	}
	return out
}

// hashOf is a set of routers in one number.
func hashOf(routers []route.Router) uint64 {
	sorted := names(routers)
	slices.Sort(sorted)
	h := fnv.New64a()
	for _, n := range sorted {
		_, _ = h.Write(append([]byte(n), 0)) // never fails
	}
	return h.Sum64()
}

func toRefs(keys []route.UserKey) []*gatewayv1.UserRef {
	out := make([]*gatewayv1.UserRef, len(keys))
	for i, k := range keys {
		out[i] = &gatewayv1.UserRef{TenantId: k.Tenant, UserId: k.User}
	}
	return out
}

func toRecords(key route.UserKey, records []route.Record) *routerv1.UserRecords {
	out := &routerv1.UserRecords{TenantId: key.Tenant, UserId: key.User}
	for _, r := range records {
		out.Records = append(out.Records, &routerv1.DeviceRecord{DeviceId: r.Device, Record: r.Text()})
	}
	return out
}

// toUsers is records of any users.
func toUsers(records []route.Restored) (out []*routerv1.UserRecords) {
	users := map[route.UserKey]*routerv1.UserRecords{}
	for _, r := range records {
		u := users[r.Key.UserKey]
		if u == nil {
			u = toRecords(r.Key.UserKey, nil)
			users[r.Key.UserKey] = u
			out = append(out, u)
		}
		u.Records = append(u.Records, &routerv1.DeviceRecord{DeviceId: r.Key.Device, Record: r.Record.Text()})
	}
	return out
}

func fromUsers(users []*routerv1.UserRecords) (out []route.Restored, err error) {
	for _, u := range users {
		key, records, err := fromRecords(u)
		if err != nil {
			return nil, err
		}
		for _, r := range records {
			out = append(out, route.Restored{Key: route.DeviceKey{UserKey: key, Device: r.Device}, Record: r})
		}
	}
	return out, nil
}

func fromRecords(u *routerv1.UserRecords) (route.UserKey, []route.Record, error) {
	key := route.UserKey{Tenant: u.GetTenantId(), User: u.GetUserId()}
	var out []route.Record
	for _, d := range u.GetRecords() {
		if err := (route.DeviceKey{UserKey: key, Device: d.GetDeviceId()}).Check(); err != nil {
			return key, nil, err
		}
		r, err := route.ParseRecord(d.GetDeviceId(), d.GetRecord())
		if err != nil {
			return key, nil, err
		}
		out = join(out, r)
	}
	return key, out, nil
}

// recordOf is the record of a session that its gateway lists.
func recordOf(node route.NodeRef, i *gatewayv1.SessionInfo) (route.DeviceKey, route.Record) {
	key := route.DeviceKey{UserKey: route.UserKey{Tenant: i.GetTenantId(), User: i.GetUserId()}, Device: i.GetDeviceId()}
	r := route.Record{
		Device: i.GetDeviceId(), State: route.Live, Node: node, Session: i.GetSessionId(), Epoch: i.GetEpoch(), Version: uint8(i.GetVersion()),
	}
	if i.GetEnding() {
		r.State = route.Closing
	}
	return key, r
}

// sessions streams what a gateway holds, also what is ending: a device that nobody
// knows gets nothing kept. One that is a later incarnation, or that knows no such
// call, holds nothing.
func (s *Store) sessions(ctx context.Context, g route.Node, req *gatewayv1.SessionsRequest, each func([]*gatewayv1.SessionInfo) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream, whatever is left of it
	req.GatewayIncarnation, req.Ending = g.Incarnation, true
	stream, err := s.cluster.Gateway(g).Sessions(ctx, connect.NewRequest(req))
	if err == nil {
		for stream.Receive() {
			if err := each(stream.Msg().GetSessions()); err != nil {
				_ = stream.Close()
				return err
			}
		}
		if err = stream.Err(); err == nil {
			err = stream.Close()
		}
	}
	if fault.KindOf(err) == fault.FailedPrecondition || connect.CodeOf(err) == connect.CodeUnimplemented {
		return nil
	}
	return err
}

// gatewayAsker asks a gateway whom it holds.
func (s *Store) gatewayAsker(g route.Node) *asker {
	return s.gateways.get(g.NodeRef, func() *asker {
		return s.asker(func(ctx context.Context, keys []route.UserKey) (map[route.UserKey]answer, error) {
			found := make(map[route.UserKey]answer, len(keys))
			err := s.sessions(ctx, g, &gatewayv1.SessionsRequest{Users: toRefs(keys)}, func(list []*gatewayv1.SessionInfo) error {
				for _, i := range list {
					key, r := recordOf(g.NodeRef, i)
					found[key.UserKey] = answer{records: join(found[key.UserKey].records, r)}
				}
				return nil
			})
			return found, err
		})
	})
}

// homeAsker asks a router as its users' home, memoryAsker for what it has seen or
// reads in the store.
func (s *Store) homeAsker(r route.Router) *asker   { return s.routerAsker(&s.homes, r, false) }
func (s *Store) memoryAsker(r route.Router) *asker { return s.routerAsker(&s.memories, r, true) }

func (s *Store) routerAsker(among *askers, r route.Router, remembered bool) *asker {
	return among.get(r.NodeRef, func() *asker {
		return s.asker(func(ctx context.Context, keys []route.UserKey) (map[route.UserKey]answer, error) {
			req := s.question()
			req.Users, req.Remembered = toRefs(keys), remembered
			res, err := s.cluster.Peer(r).Records(ctx, connect.NewRequest(req))
			if err != nil {
				return nil, err
			}
			if len(res.Msg.GetUsers()) != len(keys) {
				return nil, fmt.Errorf("router %s answers for %d users instead of %d", r.ID, len(res.Msg.GetUsers()), len(keys))
			}
			found := make(map[route.UserKey]answer, len(keys))
			for i, u := range res.Msg.GetUsers() {
				key, records, err := fromRecords(u)
				if err != nil || key != keys[i] {
					return nil, fmt.Errorf("router %s answers for another user, or malformed: %w", r.ID, err)
				}
				found[key] = answer{records, !u.GetUncertain()}
			}
			return found, nil
		})
	})
}

func (s *Store) asker(call func(context.Context, []route.UserKey) (map[route.UserKey]answer, error)) *asker {
	return &asker{call: call, life: s.ctx, spawn: s.spawn, overflow: s.overflow}
}

// question is what every call to another router says about this one.
func (s *Store) question() *routerv1.RecordsRequest {
	s.mu.Lock()
	marker := s.marker
	s.mu.Unlock()
	return &routerv1.RecordsRequest{
		From: &routerv1.RouterInfo{NodeId: s.opts.Self.ID, Incarnation: s.opts.Self.Incarnation, Endpoint: s.opts.Self.Endpoint, Version: s.opts.Self.Version},
		Away: s.phase() == away, Marker: marker, RoutersHash: hashOf(s.cluster.Directory.Routers()),
	}
}

// homeOf tells whether this router is the user's home among these.
func (s *Store) homeOf(routers []string, key route.UserKey) bool {
	i := ring.Pick(routers, key.Tenant, key.User)
	return i >= 0 && routers[i] == s.opts.Self.ID
}
