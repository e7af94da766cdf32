package pipeline

import (
	"slices"
	"sync"

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

// pull gathers the absent users of one message.
type pull struct {
	mu    sync.Mutex
	users []string // guarded by mu; one whose devices were tried anew is in it again
}

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
	p.(*pull).add(e.Key.User)
	// Not from the caller's stack, as dispatch.Buffer promises.
	a.wg.Go(func() { e.Done(dispatch.NotKept) })
}

func (p *pull) add(user string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.users = append(p.users, user)
}

func (a *Absent) begin(m *dispatch.Message) *pull {
	p := &pull{}
	a.pulls.Store(m, p)
	return p
}

// end returns the users of whom an entry was not put, each once.
func (a *Absent) end(m *dispatch.Message, p *pull) []string {
	a.pulls.Delete(m)
	p.mu.Lock()
	defer p.mu.Unlock()
	slices.Sort(p.users)
	return slices.Compact(p.users)
}
