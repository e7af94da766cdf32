// Package peer finds a user's home router and does there, or here when this
// router is it, what only the home does: keep the user's offline buffer.
package peer

import (
	"context"
	"hash/maphash"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/rpc"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/proto/mics/router/v1/routerv1connect"
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
	putTimeout  = 3 * time.Second
	maxPerBatch = 256
)

// Directory tells who is a user's home.
type Directory interface {
	Home(route.UserKey) (home route.Router, self bool)
	Alive(route.NodeRef) bool
}

// Lookup reads a user's records past every cache.
type Lookup func(ctx context.Context, key route.UserKey) ([]route.Record, error)

// Options configure a Buffer; all are required.
type Options struct {
	Directory Directory
	Local     *offline.Buffer
	Lookup    Lookup
	// Client returns the client of another router.
	Client func(route.Router) routerv1connect.PeerServiceClient
	// TTL is how long the tenant keeps messages; zero: not at all.
	TTL func(tenant string) time.Duration
}

// Buffer implements dispatch.Buffer over all routers.
type Buffer struct {
	opts  Options
	seed  maphash.Seed
	lanes [lanes]*rpc.Queue[dispatch.BufferEntry]
	wg    sync.WaitGroup
}

// NewBuffer returns a buffer; Close ends it.
func NewBuffer(opts Options) *Buffer {
	b := &Buffer{opts: opts, seed: maphash.MakeSeed()}
	for i := range b.lanes {
		q := rpc.NewQueue[dispatch.BufferEntry](maxQueued)
		b.lanes[i] = q
		b.wg.Go(func() { b.serve(q) })
	}
	return b
}

// Close takes nothing more and waits until what is queued has been put.
func (b *Buffer) Close() {
	for _, q := range b.lanes {
		q.Close()
	}
	b.wg.Wait()
}

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
		for rest := batch; len(rest) > 0; {
			n := b.run(rest)
			b.put(rest[:n])
			rest = rest[n:]
		}
		spare = batch
	}
}

// run is how many of the first entries have one home.
func (b *Buffer) run(entries []dispatch.BufferEntry) int {
	first, _ := b.opts.Directory.Home(entries[0].Key)
	n := 1
	for n < len(entries) && n < maxPerBatch {
		if home, _ := b.opts.Directory.Home(entries[n].Key); home.NodeRef != first.NodeRef {
			break
		}
		n++
	}
	return n
}

func (b *Buffer) put(entries []dispatch.BufferEntry) {
	ctx, cancel := context.WithTimeout(context.Background(), putTimeout)
	defer cancel()
	home, self := b.opts.Directory.Home(entries[0].Key)
	if self {
		for _, e := range entries {
			e.Done(b.Keep(ctx, e))
		}
		return
	}
	req := &routerv1.BufferRequest{}
	for _, e := range entries {
		req.Entries = append(req.Entries, &routerv1.BufferEntry{
			TenantId: e.Key.Tenant, UserId: e.Key.User, DeviceIds: e.Devices,
			Message: e.Message.Bytes, Unmoderated: e.Message.Unmoderated, Front: e.Front, Key: e.Message.Key[:],
		})
	}
	res, err := b.opts.Client(home).Buffer(ctx, connect.NewRequest(req))
	for i, e := range entries {
		out := dispatch.NotKept
		if err == nil && i < len(res.Msg.Results) {
			switch res.Msg.Results[i] {
			case routerv1.BufferResponse_RESULT_STORED:
				out = dispatch.Stored
			case routerv1.BufferResponse_RESULT_ONLINE:
				out = dispatch.Online
			}
		}
		e.Done(out)
	}
}

// Keep puts one entry into this router's buffer. It inserts first and then
// looks whether a device has come: a connecting session registers its route
// before it takes the buffer, so between the two orders no message is stranded
// (DESIGN section 5).
func (b *Buffer) Keep(ctx context.Context, e dispatch.BufferEntry) dispatch.BufferResult {
	id, ok := b.opts.Local.Put(e.Key, offline.Entry{
		Message: offline.Message{Bytes: e.Message.Bytes, Unmoderated: e.Message.Unmoderated, Key: e.Message.Key},
		Devices: e.Devices, TTL: b.opts.TTL(e.Key.Tenant), Front: e.Front,
	})
	if !ok {
		return dispatch.NotKept
	}
	records, err := b.opts.Lookup(ctx, e.Key)
	if err != nil {
		// Kept; whoever connects takes it.
		return dispatch.Stored
	}
	if b.someoneCame(e, records) && b.opts.Local.TakeBack(e.Key, id) {
		return dispatch.Online
	}
	return dispatch.Stored
}

func (b *Buffer) someoneCame(e dispatch.BufferEntry, records []route.Record) bool {
	plan := route.PlanFor(records, "", b.opts.Directory.Alive, time.Now())
	if len(e.Devices) == 0 {
		return !plan.Nobody()
	}
	for _, r := range plan.Live {
		for _, d := range e.Devices {
			if r.Device == d {
				return true
			}
		}
	}
	return false
}

// KeepAll serves another router's Buffer call.
func (b *Buffer) KeepAll(ctx context.Context, req *routerv1.BufferRequest) *routerv1.BufferResponse {
	res := &routerv1.BufferResponse{}
	for _, e := range req.Entries {
		got := b.Keep(ctx, dispatch.BufferEntry{
			Key: route.UserKey{Tenant: e.TenantId, User: e.UserId}, Devices: e.DeviceIds,
			Message: &dispatch.Message{Bytes: e.Message, Unmoderated: e.Unmoderated, Key: KeyOf(e.Key)}, Front: e.Front,
		})
		res.Results = append(res.Results, map[dispatch.BufferResult]routerv1.BufferResponse_Result{
			dispatch.Stored:  routerv1.BufferResponse_RESULT_STORED,
			dispatch.Online:  routerv1.BufferResponse_RESULT_ONLINE,
			dispatch.NotKept: routerv1.BufferResponse_RESULT_SKIPPED,
		}[got])
	}
	return res
}

// HandBack keeps what a closing session did not deliver, before everything
// that came later; online is called for what its device must get live, since
// it is back already.
func (b *Buffer) HandBack(key route.DeviceKey, undelivered []*gatewayv1.Undelivered, online func(*dispatch.Message), lost func(n int)) {
	for _, u := range undelivered {
		m := &dispatch.Message{Bytes: u.Message, Unmoderated: u.Unmoderated, Key: KeyOf(u.Key)}
		b.Put(dispatch.BufferEntry{Key: key.UserKey, Devices: []string{key.Device}, Message: m, Front: true, Done: func(r dispatch.BufferResult) {
			switch r {
			case dispatch.Online:
				online(m)
			case dispatch.NotKept:
				lost(1)
			}
		}})
	}
}

// KeyOf is a message's key from the wire; one of another size is none.
func KeyOf(b []byte) (key [16]byte) {
	if len(b) == len(key) {
		copy(key[:], b)
	}
	return key
}
