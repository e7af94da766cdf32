package away

import (
	"context"

	"github.com/mics-im/mics/internal/fault"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/route"
)

// maxAsked bounds one call's users and records.
const maxAsked = 1 << 16

// ServeRecords answers PeerService.Records: another router's store is away, or not
// whole.
func (s *Store) ServeRecords(ctx context.Context, req *routerv1.RecordsRequest) (*routerv1.RecordsResponse, error) {
	if len(req.GetUsers()) > maxAsked || len(req.GetLearn()) > maxAsked {
		return nil, fault.New(fault.Invalid, "too many users at once")
	}
	from := route.Router{
		NodeRef:  route.NodeRef{ID: req.GetFrom().GetNodeId(), Incarnation: req.GetFrom().GetIncarnation()},
		Endpoint: req.GetFrom().GetEndpoint(), Version: req.GetFrom().GetVersion(),
	}
	if m := req.GetMarker(); m != "" && m != s.markerNow() && s.phase() == up {
		s.verify()
	}
	res := &routerv1.RecordsResponse{Up: s.phase() == up}
	learned, err := s.learn(ctx, req.GetLearn())
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, "learn", err)
	}
	res.Learned = learned
	if req.GetAway() && res.Up && from.ID != "" {
		err := s.backend.RenewRouter(ctx, from, s.opts.Lease)
		if s.failed(ctx, err) {
			res.Up = false
		}
	}
	if s.cluster.Directory != nil && from.ID != "" {
		s.cluster.Directory.Hear(ctx, from)
	}
	keys := make([]route.UserKey, len(req.GetUsers()))
	for i, u := range req.GetUsers() {
		keys[i] = route.UserKey{Tenant: u.GetTenantId(), User: u.GetUserId()}
	}
	for i, f := range s.known(ctx, keys) {
		u := toRecords(keys[i], f.records)
		u.Uncertain = f.err != nil
		res.Users = append(res.Users, u)
	}
	if req.GetSave() {
		res.Saved = s.phase() != away && s.write() && s.markerNow() == req.GetMarker()
	}
	res.Settled = s.settled(req.GetMarker(), req.GetRoutersHash())
	return res, nil
}

// learn takes what another router could not store, and tells whether it is in the
// store.
func (s *Store) learn(ctx context.Context, users []*routerv1.UserRecords) (stored bool, err error) {
	if len(users) == 0 {
		return false, nil
	}
	var all []route.Restored
	for _, u := range users {
		key, records, err := fromRecords(u)
		if err != nil {
			return false, err
		}
		for _, r := range records {
			all = append(all, route.Restored{Key: route.DeviceKey{UserKey: key, Device: r.Device}, Record: r})
		}
	}
	if s.phase() == up {
		_, err := s.backend.Restore(ctx, all)
		if err == nil {
			s.turn()
			for _, r := range all {
				if s.mine(r.Key.UserKey) {
					s.mirror.learn(r.Key.UserKey, []route.Record{r.Record}, false)
				}
			}
			return true, nil
		}
		s.failed(ctx, err)
	}
	s.turn()
	for _, r := range all {
		s.mirror.learn(r.Key.UserKey, []route.Record{r.Record}, true)
	}
	return false, nil
}

// known is what this router answers another one.
func (s *Store) known(ctx context.Context, keys []route.UserKey) []finding {
	if len(keys) == 0 {
		return nil
	}
	if s.phase() == up {
		if found, err := there(ctx, s, func(ctx context.Context) ([][]route.Record, error) { return s.Lookup(ctx, keys) }); err == nil {
			s.turn()
			out := make([]finding, len(keys))
			for i, k := range keys {
				// Lookup may be a moment behind what this router has done itself.
				mine, _ := s.mirror.records(k)
				out[i].records = join(found[i], mine...)
			}
			return out
		}
	}
	return s.lookup(ctx, keys, answering)
}
