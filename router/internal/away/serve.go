package away

import (
	"context"
	"fmt"
	"slices"

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
	keys := make([]route.UserKey, len(req.GetUsers()))
	for i, u := range req.GetUsers() {
		keys[i] = route.UserKey{Tenant: u.GetTenantId(), User: u.GetUserId()}
	}
	if from.ID != "" {
		s.heard(from)
	}
	if req.GetRemembered() {
		if err := s.remember(req.GetLearn()); err != nil {
			return nil, fault.Wrap(fault.Invalid, "learn", err)
		}
		return &routerv1.RecordsResponse{Users: answers(keys, s.memory(ctx, keys))}, nil
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
	res.Users = answers(keys, s.known(ctx, keys))
	if req.GetSave() {
		res.Saved = s.phase() != away && s.write() && s.markerNow() == req.GetMarker()
	}
	res.Settled = s.settled(req.GetMarker(), req.GetRoutersHash())
	return res, nil
}

// answers puts what was found on the wire.
func answers(keys []route.UserKey, found []finding) (out []*routerv1.UserRecords) {
	for i, f := range found {
		u := toRecords(keys[i], f.records)
		u.Uncertain = f.err != nil
		out = append(out, u)
	}
	return out
}

// learn takes what another router could not store, and tells whether it is in the
// store.
func (s *Store) learn(ctx context.Context, users []*routerv1.UserRecords) (stored bool, err error) {
	if len(users) == 0 {
		return false, nil
	}
	all, err := fromUsers(users)
	if err != nil {
		return false, err
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

// memoryTimeout is how long the backend has for a part in memory: whoever asks has
// askTimeout, and what is remembered is better than nothing.
const memoryTimeout = askTimeout / 3

var errRemembered = fmt.Errorf("%w: that is only what is remembered", route.ErrUnavailable)

// memory is what this router remembers and the backend says, if that answers.
func (s *Store) memory(ctx context.Context, keys []route.UserKey) []finding {
	if len(keys) == 0 {
		return nil
	}
	s.turn()
	stored := make([][]route.Record, len(keys))
	if s.phase() == up {
		ctx, cancel := context.WithTimeout(ctx, memoryTimeout)
		defer cancel()
		found, err := there(ctx, s, func(ctx context.Context) ([][]route.Record, error) { return s.backend.Lookup(ctx, keys) })
		if err == nil {
			stored = found
		} else {
			s.failed(ctx, err)
		}
	}
	out := make([]finding, len(keys))
	for i, k := range keys {
		mine, _ := s.mirror.records(k)
		out[i].records = join(slices.Clone(stored[i]), mine...)
		if len(stored[i]) == 0 { // it may have been emptied
			out[i].err = errRemembered
		}
	}
	return out
}
