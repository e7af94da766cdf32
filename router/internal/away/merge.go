package away

import (
	"cmp"
	"slices"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

// better tells whether a says more than b about one device. Within an epoch a
// record only goes from live over closing to ghost, so whoever remembers the
// later stage has heard more: what several remember can be put together in any
// order, and any number of times.
func better(a, b route.Record) bool {
	return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.State, b.State)) > 0
}

// join adds to the records of one user, sorted by device, what others say.
func join(records []route.Record, others ...route.Record) []route.Record {
	for _, o := range others {
		i, found := find(records, o.Device)
		switch {
		case !found:
			records = slices.Insert(records, i, o)
		case better(o, records[i]):
			records[i] = o
		}
	}
	return records
}

func find(records []route.Record, device string) (int, bool) {
	return slices.BinarySearchFunc(records, device, func(r route.Record, d string) int { return cmp.Compare(r.Device, d) })
}

// remembered leaves out the ghosts whose time is over.
func remembered(records []route.Record, now time.Time) []route.Record {
	out := make([]route.Record, 0, len(records))
	for _, r := range records {
		if !r.Forgotten(now) {
			out = append(out, r)
		}
	}
	return out
}

// rebound is the record of a device's next session at loc, and the one it
// replaces, nil when there is none. known is what is remembered of the device. Of
// an unknown device an epoch may have been given by somebody who is not asked, so
// the new one is above all that are counted up from one.
func rebound(known *route.Record, device string, loc route.Location, version uint8, now time.Time) (route.Record, *route.Record) {
	r := route.Record{Device: device, State: route.Live, Node: loc.Node, Session: loc.Session, Version: version}
	switch {
	case known == nil:
		r.Epoch = uint64(now.UnixMilli())
		return r, nil
	case known.State != route.Ghost && known.Location() == loc:
		// This very bind, made before the store was lost.
		r.Epoch = max(known.Epoch+1, uint64(now.UnixMilli()))
		return r, nil
	}
	r.Epoch = known.Epoch + 1
	if known.Forgotten(now) {
		return r, nil
	}
	return r, known
}

// changed applies c to what is known of its device, nil when nothing is. A change
// that names its session tells enough by itself: whoever knows of a later one
// refuses it by its epoch.
func changed(known *route.Record, c route.Change, now time.Time) (r route.Record, ok bool) {
	switch {
	case known != nil && !c.Matches(*known), known == nil && c.Session == 0:
		return route.Record{}, false
	case known != nil:
		r = *known
	default:
		r = route.Record{Device: c.Key.Device, Node: c.Node, Session: c.Session, Epoch: c.Epoch, Version: 1}
	}
	r.State = c.To
	if c.To == route.Ghost {
		r.Until = now.Add(max(c.GhostTTL, 0))
	}
	return r, true
}

// orderly decides when a store that was away counts as back: at once, unless it
// comes and goes.
type orderly struct {
	need, good int       // answers in a row
	back       time.Time // when it counted as back last
}

const (
	// flapWindow: a store that is lost again so soon must answer longer.
	flapWindow = 10 * time.Second
	// maxNeed: who waits for so many answers, probeEvery apart, still has a lease in a
	// store that was emptied before the others, who do not wait, take it for dead.
	maxNeed = 3
)

// lost is the state when the store is lost.
func (o orderly) lost(now time.Time) orderly {
	if !o.back.IsZero() && now.Sub(o.back) < flapWindow {
		o.need = min(max(o.need, 1)+1, maxNeed)
	} else {
		o.need = 1
	}
	o.good = 0
	return o
}

// answered is the state after a probe, and whether the store is back.
func (o orderly) answered(ok bool, now time.Time) (orderly, bool) {
	if !ok {
		o.good = 0
		return o, false
	}
	if o.good++; o.good < o.need {
		return o, false
	}
	o.back = now
	return o, true
}
