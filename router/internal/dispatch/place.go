package dispatch

import (
	"slices"

	"github.com/mics-im/mics/router/internal/route"
)

// place is where copies are under way to. The zero loc is the offline buffer;
// an empty device is whichever comes first.
type place struct {
	device string
	loc    route.Location
	n      int // not answered
	held   int // accepted, not confirmed
	older  int // of both: item.older
}

// put adds a copy that is not answered.
func (p *place) put(it item) {
	p.n++
	if it.older() {
		p.older++
	}
}

func (p place) buffer() bool { return p.loc == route.Location{} }

// at returns the place, which is added if it is not there. It is valid until the
// flow changes.
func (f *flow) at(device string, loc route.Location) *place {
	for i := range f.underWay {
		if f.underWay[i].device == device && f.underWay[i].loc == loc {
			return &f.underWay[i]
		}
	}
	f.underWay = append(f.underWay, place{device: device, loc: loc})
	return &f.underWay[len(f.underWay)-1]
}

// answer ends the way of one copy to a place; a kept one is held there.
func (f *flow) answer(device string, loc route.Location, it item, keep bool) {
	p := f.at(device, loc)
	p.n--
	if keep {
		p.held++
	} else if it.older() {
		p.older--
	}
	f.drop(p)
}

// release ends the holding of a copy at a place.
func (f *flow) release(it item, loc route.Location) {
	p := f.at(it.device, loc)
	p.held--
	if it.older() {
		p.older--
	}
	f.drop(p)
}

func (f *flow) drop(p *place) {
	if p.n == 0 && p.held == 0 {
		f.underWay = slices.DeleteFunc(f.underWay, func(u place) bool { return u.n == 0 && u.held == 0 })
	}
}
