package away

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

// errWent is the outcome of a step for which the store came and went too often.
var errWent = fmt.Errorf("%w: it comes and goes", route.ErrUnavailable)

// maxTurns bounds how often one call changes sides.
const maxTurns = 4

// Bind implements route.Store.
func (s *Store) Bind(ctx context.Context, key route.DeviceKey, loc route.Location, version uint8) (uint64, *route.Record, error) {
	if err := key.Check(); err != nil {
		return 0, nil, err
	}
	wrong := false // the backend has made this bind without knowing the device
	for range maxTurns {
		if s.phase() == up && !wrong {
			losses := s.losses.Load()
			epoch, prev, err := s.backend.Bind(ctx, key, loc, version)
			if err == nil && s.bound(key, loc, version, epoch, prev, losses) {
				return epoch, prev, nil
			}
			if err == nil {
				// Its epoch may be another session's. If this fails that is known, too.
				wrong = true
				_, err = s.backend.Change(ctx, []route.Change{{Key: key, Node: loc.Node, Session: loc.Session, Epoch: epoch, To: route.Ghost}})
			}
			if err != nil && !s.failed(ctx, err) {
				return 0, nil, err
			}
		}
		// What the gateways and others know must be in the mirror first.
		s.resolve(ctx, key.UserKey)
		if epoch, prev, ok := s.bindHere(ctx, key, loc, version, wrong); ok {
			return epoch, prev, nil
		}
	}
	return 0, nil, errWent
}

// bound remembers a bind that the backend has made, and tells whether it can have
// been right: a backend that has lost its content begins anew.
func (s *Store) bound(key route.DeviceKey, loc route.Location, version uint8, epoch uint64, prev *route.Record, losses uint64) bool {
	s.turn()
	known := s.mirror.device(key)
	if prev == nil || known != nil && known.Epoch >= epoch {
		if !s.certain(losses) {
			return false
		}
	}
	if s.mine(key.UserKey) {
		s.mirror.put(key, route.Record{Device: key.Device, State: route.Live, Node: loc.Node, Session: loc.Session, Epoch: epoch, Version: version}, prev)
	}
	return true
}

// bindHere binds in the mirror; not ok: the backend is back, and can do it.
func (s *Store) bindHere(ctx context.Context, key route.DeviceKey, loc route.Location, version uint8, anyway bool) (uint64, *route.Record, bool) {
	s.gate.RLock()
	if s.phase() == up && !anyway {
		s.gate.RUnlock()
		return 0, nil, false
	}
	r, prev := s.mirror.bind(key, loc, version)
	s.gate.RUnlock()
	s.save(ctx, []route.Restored{{Key: key, Record: r}})
	return r.Epoch, prev, true
}

// Change implements route.Store.
func (s *Store) Change(ctx context.Context, changes []route.Change) ([]bool, error) {
	for _, c := range changes {
		if err := c.Check(); err != nil {
			return nil, err
		}
	}
	for range maxTurns {
		if s.phase() == up {
			losses := s.losses.Load()
			applied, err := there(ctx, s, func(ctx context.Context) ([]bool, error) { return s.backend.Change(ctx, changes) })
			if err == nil && (!slices.Contains(applied, false) || s.certain(losses)) {
				s.turn()
				for i, c := range changes {
					if applied[i] {
						s.mirror.applied(c)
					}
				}
				return applied, nil
			}
			if err != nil && !s.failed(ctx, err) {
				return nil, err
			}
		}
		if applied, ok := s.changeHere(ctx, changes); ok {
			return applied, nil
		}
	}
	return nil, errWent
}

// there calls the backend, for as long as it counts as being there. A call that has found
// out that it is not ends all others: a device that has left is to be known as absent
// before anybody looks for it without the backend, and who asks this router has not got
// another second.
func there[T any](ctx context.Context, s *Store, call func(context.Context) (T, error)) (T, error) {
	bounded, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.presence.Load().ctx, cancel)()
	res, err := call(bounded)
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: another call has found that it is away", route.ErrUnavailable)
	}
	return res, err
}

func (s *Store) changeHere(ctx context.Context, changes []route.Change) ([]bool, bool) {
	s.turn()
	s.gate.RLock()
	if s.phase() == up {
		s.gate.RUnlock()
		return nil, false
	}
	applied := make([]bool, len(changes))
	var records []route.Restored
	for i, c := range changes {
		var r route.Record
		if r, applied[i] = s.mirror.change(c); applied[i] {
			records = append(records, route.Restored{Key: c.Key, Record: r})
		}
	}
	s.gate.RUnlock()
	s.save(ctx, records)
	return applied, true
}

// LookupFresh implements route.Store.
func (s *Store) LookupFresh(ctx context.Context, key route.UserKey) ([]route.Record, error) {
	if s.phase() == up {
		s.turn()
		mine := s.mine(key)
		version := uint64(0)
		if mine {
			version = s.mirror.version(key)
		}
		losses := s.losses.Load()
		records, err := there(ctx, s, func(ctx context.Context) ([]route.Record, error) { return s.backend.LookupFresh(ctx, key) })
		if err == nil && (s.plausible(key, records, mine) || s.certain(losses)) {
			if mine {
				s.mirror.saw(key, records, version)
			}
			return records, nil
		}
		if err != nil && !s.failed(ctx, err) {
			return nil, err
		}
	}
	f := s.lookup(ctx, []route.UserKey{key}, asking)[0]
	return f.records, f.err
}

// plausible tells whether a user's records are all that can be expected.
func (s *Store) plausible(key route.UserKey, records []route.Record, mine bool) bool {
	if len(records) == 0 || !mine {
		return len(records) > 0
	}
	known, _ := s.mirror.records(key)
	now := time.Now()
	return !slices.ContainsFunc(known, func(r route.Record) bool {
		_, found := find(records, r.Device)
		return !found && !r.Forgotten(now)
	})
}

// Lookup implements route.Store.
func (s *Store) Lookup(ctx context.Context, keys []route.UserKey) ([][]route.Record, error) {
	if s.phase() == up {
		losses := s.losses.Load()
		found, err := s.backend.Lookup(ctx, keys)
		if err == nil && (!anyEmpty(found) || s.certain(losses)) {
			return found, nil
		}
		if err != nil && !s.failed(ctx, err) {
			return nil, err
		}
	}
	out := make([][]route.Record, len(keys))
	for i, f := range s.lookup(ctx, keys, asking) {
		if f.err != nil {
			return nil, f.err
		}
		out[i] = f.records
	}
	return out, nil
}

func anyEmpty(found [][]route.Record) bool {
	for _, records := range found {
		if len(records) == 0 {
			return true
		}
	}
	return false
}

// finding is what is known of one user; with an error it may not be all.
type finding struct {
	records []route.Record
	err     error
}

// who says on whose behalf users are looked up: another router's question is
// answered without asking further routers.
type who bool

const (
	asking    who = true
	answering who = false
)

// lookup finds users without relying on the backend: their homes know, and the
// gateways hold the sessions.
func (s *Store) lookup(ctx context.Context, keys []route.UserKey, w who) []finding {
	out := make([]finding, len(keys))
	if s.cluster.Directory == nil {
		for i := range out {
			out[i].err = s.unavailable()
		}
		return out
	}
	s.lookups.Add(int64(len(keys)))
	s.turn()
	var open []int
	homes := map[route.Router][]int{}
	for i, k := range keys {
		home, self := s.cluster.Directory.Home(k)
		if !self && w == asking {
			homes[home] = append(homes[home], i)
		} else if records, complete := s.mirror.records(k); self && complete {
			out[i].records = records
		} else {
			open = append(open, i)
		}
	}
	open = append(open, s.askHomes(ctx, keys, homes, out)...)
	if len(open) > 0 {
		s.gather(ctx, keys, open, out)
	}
	now := time.Now()
	for i := range out {
		out[i].records = remembered(out[i].records, now)
	}
	return out
}

// askHomes asks users' homes and returns the indexes of those whose home does not
// know.
func (s *Store) askHomes(ctx context.Context, keys []route.UserKey, homes map[route.Router][]int, out []finding) (open []int) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for home, indexes := range homes {
		wg.Go(func() {
			asker, theirs := s.homeAsker(home), pick(keys, indexes)
			found, err := asker.ask(ctx, theirs)
			if err != nil && ctx.Err() == nil {
				// It may just be finding out that the store is away. Gateways do not know
				// who is absent.
				found, err = asker.ask(ctx, theirs)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, i := range indexes {
				a := found[keys[i]]
				if err != nil || !a.whole {
					open = append(open, i)
					continue
				}
				// This router may have changed one itself.
				mine, _ := s.mirror.records(keys[i])
				out[i].records = join(slices.Clone(a.records), mine...)
			}
		})
	}
	wg.Wait()
	return open
}

func pick(keys []route.UserKey, indexes []int) []route.UserKey {
	out := make([]route.UserKey, len(indexes))
	for j, i := range indexes {
		out[j] = keys[i]
	}
	return out
}

// gather puts together what the backend (while healing), the other routers and the
// gateways know of the users at these indexes.
func (s *Store) gather(ctx context.Context, keys []route.UserKey, open []int, out []finding) {
	s.learnAbsent()
	want := pick(keys, open)
	found := make([][]route.Record, len(want))
	err := s.sources(ctx, want, found)
	for j, i := range open {
		if s.mine(keys[i]) {
			s.mirror.learn(keys[i], found[j], s.phase() == healing)
			if err == nil {
				s.mirror.whole(keys[i])
			}
		}
		mine, _ := s.mirror.records(keys[i])
		out[i] = finding{join(found[j], mine...), err}
	}
}

// sources adds to found what others than this router know. An error: not all that
// may know have answered.
func (s *Store) sources(ctx context.Context, keys []route.UserKey, found [][]route.Record) error {
	if s.phase() == away && s.othersRemember(ctx, keys, found) {
		return nil
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var errs []error
	for _, g := range s.cluster.Directory.Gateways() {
		wg.Go(func() {
			got, err := s.gatewayAsker(g).ask(ctx, keys)
			mu.Lock()
			defer mu.Unlock()
			if _, alive := s.cluster.Directory.Gateway(g.NodeRef); err != nil && alive {
				errs = append(errs, fmt.Errorf("gateway %s does not say whom it holds: %w", g.ID, err))
				return
			}
			for i, k := range keys {
				found[i] = join(found[i], got[k].records...)
			}
		})
	}
	wg.Wait()
	// After the gateways: what one does not hold any more is there by then.
	if s.phase() != away {
		got, err := s.backend.Lookup(ctx, keys)
		if err == nil {
			for i := range got {
				found[i] = join(found[i], got[i]...)
			}
		} else {
			s.failed(ctx, err)
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("%w: %w", route.ErrUnavailable, errors.Join(errs...))
	}
	return nil
}

// resolve brings all that is known of the user into the mirror, as far as it can be
// had.
func (s *Store) resolve(ctx context.Context, key route.UserKey) {
	if s.cluster.Directory == nil {
		return
	}
	s.turn()
	if _, complete := s.mirror.records(key); complete {
		return
	}
	s.findPeerIfAlone()
	out := make([]finding, 1)
	s.gather(ctx, []route.UserKey{key}, []int{0}, out)
	if !s.mine(key) {
		s.mirror.learn(key, out[0].records, false)
	}
}
