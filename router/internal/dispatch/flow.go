package dispatch

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

// A flow exists for a user while something for him is under way: not answered
// yet, or accepted and not confirmed. It keeps the order to each device over
// changes of route:
//
//   - a message goes out at once to a device if everything under way to that
//     device goes to the same place;
//   - else, and after a refusal, that device's copy waits until what is under way
//     has been answered and, if the device is elsewhere now, confirmed or given
//     back; then the user is looked up afresh and what was refused goes first.
//
// So a device that comes back elsewhere before its dead gateway's lease has run
// out waits for what that gateway had accepted, and gets it first.
//
// A flow is guarded by its shard's mu.
type flow struct {
	key      route.UserKey
	underWay []place
	refused  []item // tried and not taken
	waiting  []item // not tried yet, or not where they have to go now
	settling bool   // a goroutine is looking the user up
	// gated is the device whose backlog is being made up; nothing new goes to it.
	// quiet is closed when no entry is on its way into the buffer any more.
	gated string
	quiet chan struct{}
	// next and low are where item.order goes on: up for what is sent, down for a
	// backlog, which is older than all that is under way.
	next, low int64
}

// item is one message for one user, or for one of his devices.
type item struct {
	msg *Message
	// tracker waits for the item; nil when it had been accepted once, so that
	// its sender may think it is SENT: it is not given up then.
	tracker  *tracker
	user     int // index in the tracker
	device   string
	order    int64          // within its flow; to one device a lower one goes first
	attempts int            // refusals in all
	at       route.Location // where it was refused last
	same     int            // refusals in a row there
	behind   route.Location // copies held there must be confirmed first; zero: none
	unknown  int            // looks at the routes in a row that failed
}

// older tells whether it was kept for its device, before it came to the dispatcher: it has
// its place before all that did not (flow.low).
func (it item) older() bool { return it.order < 0 }

// everything says that an item waits until nothing at all is under way.
var everything = route.Location{Session: 1<<64 - 1}

const (
	// maxSame is how often one session may be looked up afresh and refused: with
	// the pauses below about 0.2 s, far longer than a route takes to follow its
	// session. A gateway that is alive and still says unknown is the truth then,
	// and the route is wrong.
	maxSame = 5
	// maxAttempts bounds all tries of a copy, for a device that moves faster than
	// it can be followed.
	maxAttempts = 50
	// maxUnknown is how many looks at the routes in a row may fail, of a message that has not been
	// promised: about 10 s. Another device of the user may have it already, so it
	// cannot simply be refused.
	maxUnknown = 5
	// lookupTimeout bounds one look into the store.
	lookupTimeout = 2 * time.Second
	// storePause is the wait before another look when the store did not answer.
	storePause = 200 * time.Millisecond
)

func pause(attempts int) time.Duration {
	if attempts == 0 {
		return 0
	}
	return min(2*time.Millisecond<<(2*min(attempts-1, 8)), 200*time.Millisecond)
}

// submit sends it along, or lets it wait for the next look-up.
func (d *Dispatcher) submit(f *flow, it item, records []route.Record, out *outbox) {
	it.order = f.nextOrder()
	if f.settling || f.unresolved() {
		it.tracker.hold()
		f.waiting = append(f.waiting, it)
	} else {
		d.try(f, it, records, out)
	}
	d.settle(f)
	d.forget(f)
}

func (f *flow) nextOrder() int64 {
	f.next++
	return f.next
}

// unresolved tells that an item waits whose devices are not known: everything
// later waits behind it.
func (f *flow) unresolved() bool {
	whole := func(it item) bool { return it.device == "" }
	return slices.ContainsFunc(f.refused, whole) || slices.ContainsFunc(f.waiting, whole)
}

// try puts the item under way to every device of its plan that it does not
// overtake anything to; for the others it goes on waiting, one by one.
func (d *Dispatcher) try(f *flow, it item, records []route.Record, out *outbox) {
	it.behind = route.Location{}
	plan := route.PlanFor(records, it.device, d.opts.Directory.Alive, time.Now())
	if plan.Nobody() {
		if len(f.underWay) > 0 || len(f.refused)+len(f.waiting) > 0 {
			f.wait(it, it.device, everything)
			return
		}
		d.buffer(f, it, nil, out)
		return
	}
	for _, r := range plan.Live {
		if ok, behind := f.follows(r.Device, r.Location()); !ok {
			f.wait(it, r.Device, behind)
			continue
		}
		it.tracker.hold()
		f.at(r.Device, r.Location()).put(it)
		one := it
		one.device = r.Device
		out.live(f, r, one)
	}
	if len(plan.Absent) == 0 {
		return
	}
	var absent []string
	for _, device := range plan.Absent {
		if ok, behind := f.follows(device, route.Location{}); ok {
			absent = append(absent, device)
		} else {
			f.wait(it, device, behind)
		}
	}
	if len(absent) == 0 {
		return
	}
	if len(plan.Live) == 0 && it.device == "" && !it.tracker.mayBuffer() {
		it.tracker.note(it.user, skipped)
		return
	}
	d.buffer(f, it, absent, out)
}

// buffer puts one entry under way.
func (d *Dispatcher) buffer(f *flow, it item, devices []string, out *outbox) {
	if len(devices) == 0 && it.device == "" && !it.tracker.mayBuffer() {
		it.tracker.note(it.user, skipped)
		return
	}
	it.tracker.hold()
	if len(devices) == 0 {
		f.at("", route.Location{}).put(it)
	}
	for _, device := range devices {
		f.at(device, route.Location{}).put(it)
	}
	out.absent(f, devices, it)
}

// follows reports whether a message for the device that goes to loc can follow
// what is under way without overtaking it; if it only has to wait for confirms
// it says from where. Entries for the buffer go one at a time: a device may come
// and leave again between two, and the first would be refused and the second
// kept. Sessions are simpler, one that refused never accepts again.
func (f *flow) follows(device string, loc route.Location) (ok bool, behind route.Location) {
	mine := func(it item) bool { return it.device == device || it.device == "" }
	if f.gated == device {
		return false, route.Location{}
	}
	if slices.ContainsFunc(f.refused, mine) || slices.ContainsFunc(f.waiting, mine) {
		return false, route.Location{}
	}
	for _, u := range f.underWay {
		switch {
		case u.buffer() && (loc == route.Location{} || u.device == "" || u.device == device):
			return false, route.Location{}
		case u.device != device || u.loc == loc:
		case u.n > 0:
			return false, route.Location{}
		default:
			behind = u.loc
		}
	}
	return behind == route.Location{}, behind
}

// wait lets the device's copy of the item wait.
func (f *flow) wait(it item, device string, behind route.Location) {
	it.tracker.hold()
	it.device, it.behind = device, behind
	f.waiting = append(f.waiting, it)
}

// forget drops a flow with nothing under way.
func (d *Dispatcher) forget(f *flow) {
	if len(f.underWay)+len(f.refused)+len(f.waiting) == 0 && !f.settling && f.gated == "" {
		delete(d.shard(f.key).users, f.key)
	}
}

// answered ends the way of one copy: to one live device, or of one buffer entry
// to its devices. A refused one is tried again, each device for itself; one that
// a gateway accepted is held until it is confirmed.
func (d *Dispatcher) answered(f *flow, devices []string, loc route.Location, it item, refused bool) {
	s := d.shard(f.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	it.attempts++
	if it.at == loc {
		it.same++
	} else {
		it.at, it.same = loc, 1
	}
	if len(devices) == 0 {
		devices = []string{""}
	}
	held := !refused && loc != route.Location{}
	for _, dev := range devices {
		f.answer(dev, loc, it, held)
		if refused {
			again := it
			again.device = dev
			again.tracker.hold()
			f.refused = append(f.refused, again)
		}
	}
	if f.quiet != nil && !f.buffering() {
		close(f.quiet)
		f.quiet = nil
	}
	d.settle(f)
	d.forget(f)
}

// confirmed ends the holding of one copy.
func (d *Dispatcher) confirmed(t target, node route.NodeRef) {
	s := d.shard(t.flow.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	t.flow.release(t.item, t.loc(node))
	d.settle(t.flow)
	d.forget(t.flow)
}

// ready reports whether looking up the item's user may help it now.
func (f *flow) ready(it item) bool {
	if it.behind == everything {
		return len(f.underWay) == 0
	}
	if it.device != "" && it.device == f.gated {
		return false
	}
	for _, u := range f.underWay {
		if it.device != "" && u.device != "" && it.device != u.device && !u.buffer() {
			continue
		}
		if u.n > 0 || it.behind != (route.Location{}) && u.device == it.device && u.loc == it.behind {
			return false
		}
	}
	return true
}

// anyReady reports whether a look-up would get something on. What waits behind
// another one that waits is not asked: it would go round in circles.
func (f *flow) anyReady() bool {
	var blocked []string
	for _, items := range [2][]item{f.refused, f.waiting} {
		for _, it := range items {
			switch {
			case slices.Contains(blocked, it.device):
			case f.ready(it):
				return true
			case it.device == "":
				return false
			default:
				blocked = append(blocked, it.device)
			}
		}
	}
	return false
}

// settle starts the look-up when something that waits could go.
func (d *Dispatcher) settle(f *flow) {
	if f.settling || len(f.refused)+len(f.waiting) == 0 || d.ctx.Err() != nil || !f.anyReady() {
		return
	}
	f.settling = true
	d.wg.Go(func() { d.resettle(f) })
}

// resettle looks the user up afresh and sends what was refused and what waited,
// in its order.
func (d *Dispatcher) resettle(f *flow) {
	s := d.shard(f.key)
	s.mu.Lock()
	attempts := 0
	var wrong []item
	for _, it := range f.refused {
		attempts = max(attempts, it.attempts)
		if it.same >= maxSame {
			wrong = append(wrong, it)
		}
	}
	s.mu.Unlock()
	if !d.sleep(pause(attempts)) {
		return
	}
	records, err := d.lookup(f.key)
	if err == nil && len(wrong) > 0 {
		records, err = d.disown(f.key, records, wrong)
	}
	if err != nil && !d.sleep(storePause) {
		return
	}

	s.mu.Lock()
	items := append(f.refused, f.waiting...)
	f.refused, f.waiting = nil, nil
	slices.SortStableFunc(items, func(a, b item) int { return cmp.Compare(a.order, b.order) })
	out := outbox{d: d}
	for _, it := range items {
		if err == nil {
			it.unknown = 0
		}
		switch {
		case err != nil && (it.tracker == nil || it.unknown < maxUnknown):
			it.unknown++
			f.wait(it, it.device, route.Location{})
		case err != nil, it.attempts >= maxAttempts:
			it.tracker.note(it.user, skipped)
			if it.tracker == nil {
				d.opts.Hooks.Lost()
			}
		case f.unresolved():
			f.wait(it, it.device, route.Location{})
		default:
			d.try(f, it, records, &out)
		}
	}
	s.mu.Unlock()
	out.flush()

	// Only now may newer messages go out directly: before, they could have
	// been pushed ahead of these.
	s.mu.Lock()
	f.settling = false
	d.settle(f)
	d.forget(f)
	s.mu.Unlock()
	for _, it := range items {
		it.tracker.finish(it.user, 0)
	}
}

// sleep waits; false when the dispatcher ends.
func (d *Dispatcher) sleep(wait time.Duration) bool {
	if wait <= 0 {
		return d.ctx.Err() == nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-d.ctx.Done():
		return false
	}
}

func (d *Dispatcher) lookup(key route.UserKey) ([]route.Record, error) {
	ctx, cancel := context.WithTimeout(d.ctx, lookupTimeout)
	defer cancel()
	return d.opts.Routes.LookupFresh(ctx, key)
}

// disown turns the routes into ghosts to whose very session a living gateway
// went on saying that it does not hold it.
func (d *Dispatcher) disown(key route.UserKey, records []route.Record, wrong []item) ([]route.Record, error) {
	var changes []route.Change
	for _, r := range records {
		if r.State != route.Live || !slices.ContainsFunc(wrong, func(it item) bool { return it.device == r.Device && it.at == r.Location() }) {
			continue
		}
		changes = append(changes, route.Change{
			Key: route.DeviceKey{UserKey: key, Device: r.Device}, Node: r.Node, Epoch: r.Epoch, Session: r.Session,
			To: route.Ghost, GhostTTL: d.opts.GhostTTL(key.Tenant),
		})
	}
	if len(changes) == 0 {
		return records, nil
	}
	ctx, cancel := context.WithTimeout(d.ctx, lookupTimeout)
	defer cancel()
	if _, err := d.opts.Routes.Change(ctx, changes); err != nil {
		return nil, err
	}
	return d.opts.Routes.LookupFresh(ctx, key)
}
