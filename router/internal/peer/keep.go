package peer

import (
	"context"
	"hash/maphash"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/rpc"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/offline"
	"github.com/mics-im/mics/router/internal/route"
)

const (
	// lanes is how many buffer writes go on at once; a user has always the same
	// lane, which keeps the order of what is kept for him.
	lanes = 16
	// maxQueued bounds the entries that wait in a lane; beyond it an entry is
	// not kept, and SENT is not said for it.
	maxQueued   = 10_000
	maxPerBatch = 256
	// holdFor is how long an entry may wait for its copy. A router that died is out
	// of the directory by then, and the next one has the copy. One that lives and
	// does not answer must not stop all messages to absent users: what waited so
	// long has one copy, as with a single router, is counted, and is repaired as
	// soon as there is an answer.
	holdFor = 5 * time.Second
	// settleFor is how long after a change of the routers another one may not have
	// seen it. A new home waits so long before it looks at the routes: a device that
	// connected at the old one has registered by then, and any other asks here.
	settleFor = time.Second
	// putFor is how long a home is asked again that is out of reach, or no home;
	// insistAfter is when a router that is reached keeps it nevertheless. After putFor
	// it is kept where it is, and that has hereFor: a home that dies and comes back
	// again and again, or whose answer was lost, may have it already, so that it must
	// not be said to have failed.
	putFor      = 5 * time.Second
	hereFor     = time.Second
	putPause    = 100 * time.Millisecond
	insistAfter = 2 * time.Second
	// putTimeout bounds one call to a home, which may hold it for holdFor.
	putTimeout    = holdFor + lookupTimeout + time.Second
	lookupTimeout = 2 * time.Second
)

// Put implements dispatch.Buffer.
func (b *Buffer) Put(e dispatch.BufferEntry) {
	lane := b.lanes[maphash.Comparable(b.seed, e.Key)%lanes]
	if !lane.Push(e) {
		// Not from the caller's stack: it may hold the user's flow.
		go e.Done(dispatch.NotKept)
	}
}

func (b *Buffer) serve(q *rpc.Queue[dispatch.BufferEntry]) {
	var spare []dispatch.BufferEntry
	for {
		batch, ok := q.Take(context.Background(), spare)
		if !ok {
			return
		}
		for start := range slices.Chunk(batch, maxPerBatch) {
			b.put(start)
		}
		spare = batch
	}
}

// put has entries kept at their homes, in order, and asks again what a home did
// not answer or was not the home for.
func (b *Buffer) put(entries []dispatch.BufferEntry) {
	start := time.Now()
	for {
		var again []dispatch.BufferEntry
		for len(entries) > 0 {
			n := b.run(entries)
			next := entries[:n]
			if len(again) > 0 { // a user's later entries do not overtake
				next = nil
				for _, e := range entries[:n] {
					if slices.ContainsFunc(again, func(a dispatch.BufferEntry) bool { return a.Key == e.Key }) {
						again = append(again, e)
					} else {
						next = append(next, e)
					}
				}
			}
			again = append(again, b.try(next, time.Since(start) >= insistAfter)...)
			entries = entries[n:]
		}
		if len(again) == 0 {
			return
		}
		if time.Since(start) >= putFor {
			b.putHere(again, hereFor)
			return
		}
		time.Sleep(putPause)
		entries = again
	}
}

// run is how many of the first entries have one home.
func (b *Buffer) run(entries []dispatch.BufferEntry) int {
	first, _ := b.home(entries[0].Key)
	n := 1
	for n < len(entries) {
		if home, _ := b.home(entries[n].Key); home.NodeRef != first.NodeRef {
			break
		}
		n++
	}
	return n
}

// putHere has entries kept here, whoever their home is.
func (b *Buffer) putHere(entries []dispatch.BufferEntry, within time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	in := make([]incoming, len(entries))
	for i, e := range entries {
		in[i] = b.incoming(e)
	}
	for i, r := range b.keep(ctx, in) {
		entries[i].Done(r)
	}
}

// try asks the home of the first entry, and returns what has to be asked again.
func (b *Buffer) try(entries []dispatch.BufferEntry, insist bool) (again []dispatch.BufferEntry) {
	if len(entries) == 0 {
		return nil
	}
	home, self := b.home(entries[0].Key)
	if self {
		b.putHere(entries, putTimeout)
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), putTimeout)
	defer cancel()
	req := &routerv1.BufferRequest{Insist: insist}
	for _, e := range entries {
		req.Entries = append(req.Entries, wireEntry(e.Key, b.incoming(e).Entry))
		req.Entries[len(req.Entries)-1].TtlMs = 0 // the home knows its tenants
	}
	res, err := b.opts.Client(home).Buffer(ctx, connect.NewRequest(req))
	for i, e := range entries {
		result := routerv1.BufferResponse_RESULT_UNSPECIFIED
		if err == nil && i < len(res.Msg.Results) {
			result = res.Msg.Results[i]
		}
		switch result {
		case routerv1.BufferResponse_RESULT_STORED:
			e.Done(dispatch.Stored)
		case routerv1.BufferResponse_RESULT_ONLINE:
			e.Done(dispatch.Online)
		case routerv1.BufferResponse_RESULT_SKIPPED:
			e.Done(dispatch.NotKept)
		default:
			again = append(again, e)
		}
	}
	return again
}

// incoming is an entry on its way into this router's buffer.
type incoming struct {
	offline.Entry
	key route.UserKey
}

func (b *Buffer) incoming(e dispatch.BufferEntry) incoming {
	return incoming{key: e.Key, Entry: offline.Entry{
		Message: offline.Message{Bytes: e.Message.Bytes, Unmoderated: e.Message.Unmoderated, Key: e.Message.Key},
		Devices: e.Devices, TTL: b.opts.TTL(e.Key.Tenant), Front: e.Front, At: e.Message.At,
	}}
}

// Keep puts one entry into this router's buffer.
func (b *Buffer) Keep(ctx context.Context, e dispatch.BufferEntry) dispatch.BufferResult {
	return b.keep(ctx, []incoming{b.incoming(e)})[0]
}

// keep puts entries into this router's buffer and waits for their copies. It
// inserts first and then looks whether a device has come: a connecting session
// registers its route before it takes the buffer, so between the two orders no
// message is stranded (DESIGN section 5). The same holds when the home has
// changed meanwhile: the new one asks this router after it has registered the
// route.
func (b *Buffer) keep(ctx context.Context, entries []incoming) []dispatch.BufferResult {
	results := make([]dispatch.BufferResult, len(entries))
	ids := make([]uint64, len(entries))
	users := map[route.UserKey][]int{} // → indexes of what was kept
	var keys []route.UserKey
	for i, e := range entries {
		id, known, ok := b.opts.Local.Put(e.key, e.Entry)
		if !ok {
			results[i] = dispatch.NotKept
			continue
		}
		// A repeat stays in its place among what else is there, as what was moved does.
		entries[i].Moved = e.Moved || known
		if users[e.key] == nil {
			keys = append(keys, e.key)
		}
		ids[i] = id
		users[e.key] = append(users[e.key], i)
	}
	copied := newWait()
	if b.opts.Members != nil {
		b.mark(keys, copied)
	}
	patience := time.NewTimer(holdFor)
	defer patience.Stop()
	look := func() {
		keys, wait := b.settled(keys)
		for i, key := range keys {
			if wait[i] > 0 {
				sleep(ctx, wait[i])
			}
			b.check(ctx, key, entries, users[key], ids, results)
			if _, self := b.home(key); !self {
				kick(b.keepKick) // it changed after the caller looked
			}
		}
	}
	seen := b.changed()
	look()
	copied.finish(true)
	select {
	case <-copied.done:
	case <-patience.C:
	case <-ctx.Done():
	}
	if b.changed() != seen {
		look() // another one was the home meanwhile, or took itself for it
	}
	if !copied.result() {
		stored := 0
		for _, r := range results {
			if r == dispatch.Stored {
				stored++
			}
		}
		b.opts.Hooks.SingleCopy(stored)
	}
	return results
}

// settled orders the users by how long the look at their routes has to wait after
// the one before.
func (b *Buffer) settled(keys []route.UserKey) ([]route.UserKey, []time.Duration) {
	wait := make([]time.Duration, len(keys))
	if b.opts.Members == nil {
		return keys, wait
	}
	v := b.view()
	var now, later []route.UserKey
	longest := time.Duration(0)
	for _, key := range keys {
		if d := v.unsettled(key); d > 0 {
			later, longest = append(later, key), max(longest, d)
		} else {
			now = append(now, key)
		}
	}
	if len(later) > 0 {
		wait[len(now)] = longest
	}
	return append(now, later...), wait
}

// check takes a user's entries back if a device has come.
func (b *Buffer) check(ctx context.Context, key route.UserKey, entries []incoming, indexes []int, ids []uint64, results []dispatch.BufferResult) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	records, err := b.opts.Lookup(ctx, key)
	if err != nil {
		return // kept; whoever connects takes it
	}
	var mine []int
	var back []offline.Back
	for _, i := range indexes {
		switch {
		case !b.someoneCame(entries[i].Entry, records):
		case entries[i].Moved:
			// The device may be taking what else there is; in order, only all of it.
			if b.deliverTo(key, records) {
				kick(b.moveKick)
			}
			return
		default:
			mine, back = append(mine, i), append(back, offline.Back{ID: ids[i], Devices: entries[i].Devices})
		}
	}
	for n, ok := range b.opts.Local.TakeBackAll(key, back) {
		if ok {
			results[mine[n]] = dispatch.Online
		}
	}
}

// someoneCame tells whether the entry should be brought to a device instead. One
// for whichever device comes first is for all that are known now, also if they
// have left again; if it was moved it has been for the first one all along.
func (b *Buffer) someoneCame(e offline.Entry, records []route.Record) bool {
	plan := route.PlanFor(records, "", b.opts.Directory.Alive, time.Now())
	if len(e.Devices) == 0 {
		return len(plan.Live) > 0 || !e.Moved && !plan.Nobody()
	}
	return slices.ContainsFunc(plan.Live, func(r route.Record) bool { return slices.Contains(e.Devices, r.Device) })
}

// KeepAll serves another router's Buffer call.
func (b *Buffer) KeepAll(ctx context.Context, req *routerv1.BufferRequest) *routerv1.BufferResponse {
	res := &routerv1.BufferResponse{Results: make([]routerv1.BufferResponse_Result, len(req.Entries))}
	var in []incoming
	var at []int
	here := map[route.UserKey]bool{} // one answer for all of a user's entries
	for i, e := range req.Entries {
		key := userOf(e)
		if _, asked := here[key]; !asked && !req.Insist {
			_, here[key] = b.home(key)
		}
		if !here[key] && !req.Insist {
			res.Results[i] = routerv1.BufferResponse_RESULT_MOVED
			continue
		}
		in = append(in, incoming{key: key, Entry: entryOf(e, b.opts.TTL(e.TenantId))})
		at = append(at, i)
	}
	for i, r := range b.keep(ctx, in) {
		switch r {
		case dispatch.Stored:
			res.Results[at[i]] = routerv1.BufferResponse_RESULT_STORED
		case dispatch.Online:
			res.Results[at[i]] = routerv1.BufferResponse_RESULT_ONLINE
		default:
			res.Results[at[i]] = routerv1.BufferResponse_RESULT_SKIPPED
		}
	}
	return res
}
