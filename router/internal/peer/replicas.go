package peer

import (
	"slices"
	"sync"
	"time"

	"github.com/mics-im/mics/internal/fault"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/dedup"
	"github.com/mics-im/mics/router/internal/offline"
	"github.com/mics-im/mics/router/internal/recall"
	"github.com/mics-im/mics/router/internal/route"
)

// linger is how long a copy is kept after its owner has given the entry away, or
// until the owner says that the device has confirmed it. If it dies before the
// message has reached anybody else the copy is all there is; if not, the message's
// key tells.
const linger = 5 * time.Second

// replicas are the copies of what other routers hold, apart by their owners. They
// are served to nobody while the owner lives. Safe for concurrent use.
type replicas struct {
	max     int64
	refused func(n int)

	mu    sync.Mutex
	bytes int64                         // guarded by mu
	sets  map[route.NodeRef]*replicaSet // guarded by mu
}

type replicaSet struct {
	stream, seq uint64
	last        *routerv1.SyncResponse // to seq
	users       map[route.UserKey][]replica
}

// replica is a copy of one entry; its TTL counts from when it was made.
type replica struct {
	offline.Entry
	id      uint64
	expires time.Time
	gone    time.Time // the owner has given it away, and it goes then; zero: not
}

func (r *replica) over(now time.Time) bool {
	return !now.Before(r.expires) || !r.gone.IsZero() && !now.Before(r.gone)
}

func (r *replica) size() int64 { return int64(len(r.Bytes) + wireOverhead) }

func newReplicas(max int64, refused func(int)) *replicas {
	return &replicas{max: max, refused: refused, sets: map[route.NodeRef]*replicaSet{}}
}

func (r *replicas) size() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bytes
}

// apply takes one call of the owner's link.
func (r *replicas) apply(from route.NodeRef, req *routerv1.SyncRequest) *routerv1.SyncResponse {
	r.mu.Lock()
	defer r.mu.Unlock()
	set := r.sets[from]
	switch {
	case req.Seq == 1 && (set == nil || req.Stream > set.stream):
		if set != nil {
			r.forget(set)
		}
		set = &replicaSet{stream: req.Stream, users: map[route.UserKey][]replica{}}
		r.sets[from] = set
	case set == nil || req.Stream != set.stream || req.Seq > set.seq+1:
		return &routerv1.SyncResponse{}
	case req.Seq == set.seq:
		return set.last
	case req.Seq < set.seq:
		return &routerv1.SyncResponse{InStep: true} // a call that was given up long ago
	}
	res := &routerv1.SyncResponse{InStep: true}
	now := time.Now()
	for i, u := range req.Users {
		missing, full := r.replace(set, u, now)
		if missing {
			res.Missing = append(res.Missing, uint32(i))
		}
		if full {
			res.Full = append(res.Full, uint32(i))
		}
	}
	set.seq, set.last = req.Seq, res
	return res
}

// replace makes the copies of a user's entries what the owner says.
func (r *replicas) replace(set *replicaSet, u *routerv1.SyncUser, now time.Time) (missing, full bool) {
	key := route.UserKey{Tenant: u.TenantId, User: u.UserId}
	old := set.users[key]
	known := make(map[uint64]int, len(old))
	for i := range old {
		known[old[i].id] = i
	}
	var list []replica
	for _, e := range u.Entries {
		i, have := known[e.Id]
		switch {
		case e.Entry != nil:
			c := replica{Entry: entryOf(e.Entry, 0), id: e.Id}
			c.expires = now.Add(c.TTL)
			if have {
				r.bytes -= old[i].size()
				delete(known, e.Id)
			}
			if r.bytes+c.size() > r.max {
				full = true
				r.refused(1)
				continue
			}
			if e.Taken {
				c.gone = now.Add(linger)
			}
			r.bytes += c.size()
			list = append(list, c)
		case have:
			old[i].gone = time.Time{}
			list = append(list, old[i])
			delete(known, e.Id)
		default:
			missing = true
		}
	}
	for i := range old {
		c := old[i]
		if _, left := known[c.id]; !left {
			continue
		}
		if c.gone.IsZero() {
			c.gone = now.Add(linger)
		}
		if c.over(now) {
			r.bytes -= c.size()
			continue
		}
		list = append(list, c)
	}
	list = slices.DeleteFunc(list, func(c replica) bool {
		settled := !c.gone.IsZero() && (len(c.Devices) == 0 || slices.ContainsFunc(c.Devices, func(d string) bool {
			return slices.Contains(u.SettledDevices, d)
		})) && len(u.SettledDevices) > 0
		if settled {
			r.bytes -= c.size()
		}
		return settled
	})
	if len(list) == 0 {
		delete(set.users, key)
	} else {
		set.users[key] = list
	}
	return missing, full
}

func (r *replicas) forget(set *replicaSet) {
	for _, list := range set.users {
		for i := range list {
			r.bytes -= list[i].size()
		}
	}
}

// sweep drops what is over.
func (r *replicas) sweep() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for _, set := range r.sets {
		for key, list := range set.users {
			list = slices.DeleteFunc(list, func(c replica) bool {
				over := c.over(now)
				if over {
					r.bytes -= c.size()
				}
				return over
			})
			if len(list) == 0 {
				delete(set.users, key)
			} else {
				set.users[key] = list
			}
		}
	}
}

// orphans are the users of whom there are copies whose owners are not alive. Sets
// of such owners that are empty are forgotten.
func (r *replicas) orphans(alive func(route.NodeRef) bool) (keys []route.UserKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for owner, set := range r.sets {
		if alive(owner) {
			continue
		}
		if len(set.users) == 0 {
			delete(r.sets, owner)
		}
		for key := range set.users {
			keys = append(keys, key)
		}
	}
	return keys
}

// orphansOf takes the copies of one user's entries out.
func (r *replicas) orphansOf(key route.UserKey, alive func(route.NodeRef) bool) [][]replica {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out [][]replica
	for owner, set := range r.sets {
		list := set.users[key]
		if len(list) == 0 || alive(owner) {
			continue
		}
		for i := range list {
			r.bytes -= list[i].size()
		}
		delete(set.users, key)
		out = append(out, list)
	}
	return out
}

// ServeSync serves another router's Sync call.
func (b *Buffer) ServeSync(req *routerv1.SyncRequest) (*routerv1.SyncResponse, error) {
	if b.opts.Members == nil {
		return nil, fault.New(fault.FailedPrecondition, "this router keeps no copies")
	}
	from := route.NodeRef{ID: req.GetFrom().GetNodeId(), Incarnation: req.GetFrom().GetIncarnation()}
	if self := b.opts.Members.Self(); req.ToIncarnation != self.Incarnation {
		return nil, fault.New(fault.FailedPrecondition, "this is another incarnation")
	}
	if b.opts.Sents != nil {
		for _, s := range req.Sents {
			if len(s.Key) == len(dedup.Key{}) {
				b.opts.Sents.Learn(dedup.Record{Key: KeyOf(s.Key), User: s.UserHash, Window: time.Duration(s.WindowMs) * time.Millisecond})
			}
		}
	}
	for _, t := range req.Took {
		key := route.DeviceKey{UserKey: route.UserKey{Tenant: t.TenantId, User: t.UserId}, Device: t.DeviceId}
		b.opts.Recall.Learn(key, recall.FromWire(t.RecentKeys, t.RecentAges))
	}
	// Copies of a router that counts as dead would be taken for what it left.
	if !b.view().alive(from) {
		if len(req.Users) == 0 && len(req.Sents)+len(req.Took) > 0 {
			return &routerv1.SyncResponse{InStep: true}, nil // the last words of one that leaves
		}
		return nil, fault.New(fault.Unavailable, "the calling router is not in the directory")
	}
	return b.replicas.apply(from, req), nil
}
