package dispatch

import (
	"context"
	"slices"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

// A flow exists for a user while something for him is under way. It keeps order
// over changes of route:
//
//   - a message goes out at once if everything under way goes to the same places;
//   - else, and after a refusal, it waits until all that is under way has been
//     answered; then the user is looked up afresh and what was refused goes first.
//
// A flow is guarded by its shard's mu.
type flow struct {
	key      route.UserKey
	underWay []place
	refused  []item // in the order of their first try
	waiting  []item // came later than all that is under way or refused
	settling bool   // a goroutine is looking the user up
}

// place is where copies are under way to. The zero loc is the offline buffer;
// an empty device is whichever comes first.
type place struct {
	device string
	loc    route.Location
	n      int
}

// item is one message for one user, or for one of his devices.
type item struct {
	msg      *Message
	tracker  *tracker
	user     int // index in the tracker
	device   string
	attempts int            // refusals in all
	at       route.Location // where it was refused last
	same     int            // refusals in a row there
}

const (
	// maxSame is how often one session may be looked up afresh and refused: with
	// the pauses below about 0.2 s, far longer than a route takes to follow its
	// session. A gateway that is alive and still says unknown is the truth then,
	// and the route is wrong.
	maxSame = 5
	// maxAttempts bounds all tries of a copy, for a device that moves faster than
	// it can be followed.
	maxAttempts = 50
	// lookupTimeout bounds one look into the store.
	lookupTimeout = 2 * time.Second
)

func pause(attempts int) time.Duration {
	if attempts == 0 {
		return 0
	}
	return min(2*time.Millisecond<<(2*min(attempts-1, 8)), 200*time.Millisecond)
}

// submit sends it along, or lets it wait for the next look-up.
func (d *Dispatcher) submit(f *flow, it item, records []route.Record, out *outbox) {
	if f.settling || !d.try(f, it, records, out) {
		it.tracker.hold()
		f.waiting = append(f.waiting, it)
		d.settle(f)
	}
	d.forget(f)
}

// try puts the item under way unless it would overtake something.
func (d *Dispatcher) try(f *flow, it item, records []route.Record, out *outbox) bool {
	plan := route.PlanFor(records, it.device, d.opts.Directory.Alive, time.Now())
	if len(f.refused) > 0 || len(f.waiting) > 0 || !f.compatible(plan) {
		return false
	}
	d.route(f, it, plan, out)
	return true
}

// compatible reports whether a message with this plan can follow what is under
// way without overtaking it. Entries for the buffer go one at a time: a device
// may come and leave again between two, and the first would be refused and the
// second kept. Sessions are simpler, one that refused never accepts again.
func (f *flow) compatible(p route.Plan) bool {
	for _, u := range f.underWay {
		if u.loc == (route.Location{}) {
			return false
		}
		same := slices.ContainsFunc(p.Live, func(r route.Record) bool { return r.Device == u.device && r.Location() == u.loc })
		if !same && (p.Nobody() || p.Includes(u.device)) {
			return false
		}
	}
	return true
}

// route puts the item under way to every place of the plan.
func (d *Dispatcher) route(f *flow, it item, p route.Plan, out *outbox) {
	for _, r := range p.Live {
		it.tracker.hold()
		f.add(r.Device, r.Location())
		one := it
		one.device = r.Device
		out.live(f, r, one)
	}
	if len(p.Live) > 0 && len(p.Absent) == 0 {
		return
	}
	if len(p.Live) == 0 && it.device == "" && !it.tracker.mayBuffer() {
		it.tracker.note(it.user, skipped)
		return
	}
	it.tracker.hold()
	devices := p.Absent
	if len(devices) == 0 {
		f.add("", route.Location{})
	}
	for _, a := range devices {
		f.add(a, route.Location{})
	}
	out.absent(f, devices, it)
}

func (f *flow) add(device string, loc route.Location) {
	for i := range f.underWay {
		if f.underWay[i].device == device && f.underWay[i].loc == loc {
			f.underWay[i].n++
			return
		}
	}
	f.underWay = append(f.underWay, place{device, loc, 1})
}

func (f *flow) remove(device string, loc route.Location) {
	for i := range f.underWay {
		if f.underWay[i].device == device && f.underWay[i].loc == loc {
			if f.underWay[i].n--; f.underWay[i].n == 0 {
				f.underWay = append(f.underWay[:i], f.underWay[i+1:]...)
			}
			return
		}
	}
}

// forget drops a flow with nothing under way.
func (d *Dispatcher) forget(f *flow) {
	if len(f.underWay)+len(f.refused)+len(f.waiting) == 0 && !f.settling {
		delete(d.shard(f.key).users, f.key)
	}
}

// answered ends the way of one copy: to one live device, or of one buffer entry
// to its devices. A refused one is tried again, each device for itself.
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
	for _, dev := range devices {
		f.remove(dev, loc)
		if refused {
			again := it
			again.device = dev
			again.tracker.hold()
			f.refused = append(f.refused, again)
		}
	}
	d.settle(f)
	d.forget(f)
}

// settle starts the look-up when everything under way has been answered.
func (d *Dispatcher) settle(f *flow) {
	if f.settling || len(f.underWay) > 0 || len(f.refused)+len(f.waiting) == 0 || d.ctx.Err() != nil {
		return
	}
	f.settling = true
	d.wg.Go(func() { d.resettle(f) })
}

// resettle looks the user up afresh and sends what was refused and what waited,
// in this order.
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
	select {
	case <-time.After(pause(attempts)):
	case <-d.ctx.Done():
		return
	}
	records, err := d.lookup(f.key)
	if err == nil && len(wrong) > 0 {
		records, err = d.disown(f.key, records, wrong)
	}

	s.mu.Lock()
	items := append(f.refused, f.waiting...)
	f.refused, f.waiting = nil, nil
	out := outbox{d: d}
	for _, it := range items {
		switch {
		case err != nil || it.attempts >= maxAttempts:
			it.tracker.note(it.user, skipped)
		case !d.try(f, it, records, &out):
			it.tracker.hold()
			f.waiting = append(f.waiting, it)
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
			Key: route.DeviceKey{UserKey: key, Device: r.Device}, Node: r.Node, Epoch: r.Epoch,
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
