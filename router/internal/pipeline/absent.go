package pipeline

import (
	"sync"
	"sync/atomic"

	"github.com/mics-im/mics/router/internal/dispatch"
)

// Absent is the offline buffer as the dispatcher sees it: a message of a tenant
// that keeps offline messages itself (offline_use_hook_pull) is not put into
// it while it is being sent for the first time. What is handed back later, or
// recovered from a gateway that died, was SENT as delivered: that is kept.
// Safe for concurrent use.
type Absent struct {
	next  dispatch.Buffer
	pulls sync.Map // *dispatch.Message → *pull, from begin to end
	wg    sync.WaitGroup
}

// pull counts the absent users of one message.
type pull struct{ users atomic.Int64 }

// NewAbsent wraps the buffer of all other messages.
func NewAbsent(next dispatch.Buffer) *Absent { return &Absent{next: next} }

// Close waits until what was not put has been answered. Nothing may be put any
// more.
func (a *Absent) Close() { a.wg.Wait() }

// Put implements dispatch.Buffer.
func (a *Absent) Put(e dispatch.BufferEntry) {
	p, ok := a.pulls.Load(e.Message)
	if !ok {
		a.next.Put(e)
		return
	}
	p.(*pull).users.Add(1)
	// Not from the caller's stack, as dispatch.Buffer promises.
	a.wg.Go(func() { e.Done(dispatch.NotKept) })
}

func (a *Absent) begin(m *dispatch.Message) *pull {
	p := &pull{}
	a.pulls.Store(m, p)
	return p
}

// end returns the number of entries that were not put.
func (a *Absent) end(m *dispatch.Message, p *pull) int {
	a.pulls.Delete(m)
	return int(p.users.Load())
}
