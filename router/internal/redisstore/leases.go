package redisstore

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

const (
	nodesKey   = "mics:nodes"
	routersKey = "mics:routers"
)

// description is what a lease says about its holder, as JSON. Fields are only
// ever added, for routers of several versions read it side by side.
type description struct {
	ID          string `json:"id"`
	Incarnation uint64 `json:"incarnation"`
	Endpoint    string `json:"endpoint"`
	Track       string `json:"track,omitempty"`
	Version     string `json:"version,omitempty"`
	Phase       int32  `json:"phase,omitempty"`
	ClientURL   string `json:"client_url,omitempty"`
}

// incarnation is as wide as the widest number, so that text compares as numbers do.
func incarnation(n uint64) string { return fmt.Sprintf("%020d", n) }

func leaseMemory() string { return millis(route.LeaseMemory) }

// leaseRun is a run on a hash of leases; a script on gateways' notes the dead.
func leaseRun(key string, args ...string) run {
	if key == nodesKey {
		return run{key, args, []string{deadKey, buriedKey}}
	}
	return run{key: key, args: args}
}

func (s *Store) renewLease(ctx context.Context, key string, d description, lease time.Duration) error {
	text, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("describe %s: %w", d.ID, err)
	}
	n, err := s.renew.exec(ctx, s, leaseRun(key,
		d.ID, incarnation(d.Incarnation), millis(lease), string(text), leaseMemory(),
	)).AsInt64()
	if err != nil {
		return unavailable("renew lease", err)
	}
	if n == 0 {
		return route.ErrSuperseded
	}
	return nil
}

func (s *Store) removeLease(ctx context.Context, key string, ref route.NodeRef) error {
	return unavailable("remove lease", s.remove.exec(ctx, s, leaseRun(key, ref.ID, incarnation(ref.Incarnation))).Error())
}

func (s *Store) leases(ctx context.Context, key string) ([]description, error) {
	texts, err := s.living.exec(ctx, s, leaseRun(key, leaseMemory())).AsStrSlice()
	if err != nil {
		return nil, unavailable("read leases", err)
	}
	out := make([]description, 0, len(texts))
	for _, text := range texts {
		var d description
		if err := json.Unmarshal([]byte(text), &d); err != nil {
			s.skip(key, err)
			continue
		}
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b description) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

func (d description) ref() route.NodeRef {
	return route.NodeRef{ID: d.ID, Incarnation: d.Incarnation}
}

// RenewNode implements route.Store.
func (s *Store) RenewNode(ctx context.Context, n route.Node, lease time.Duration) error {
	return s.renewLease(ctx, nodesKey, description{
		ID: n.ID, Incarnation: n.Incarnation, Endpoint: n.Endpoint, Track: n.Track, Version: n.Version, Phase: n.Phase,
		ClientURL: n.ClientURL,
	}, lease)
}

// RemoveNode implements route.Store.
func (s *Store) RemoveNode(ctx context.Context, n route.NodeRef) error {
	return s.removeLease(ctx, nodesKey, n)
}

// Nodes implements route.Store.
func (s *Store) Nodes(ctx context.Context) ([]route.Node, error) {
	all, err := s.leases(ctx, nodesKey)
	if err != nil {
		return nil, err
	}
	out := make([]route.Node, len(all))
	for i, d := range all {
		out[i] = route.Node{NodeRef: d.ref(), Endpoint: d.Endpoint, Track: d.Track, Version: d.Version, Phase: d.Phase, ClientURL: d.ClientURL}
	}
	return out, nil
}

// RenewRouter implements route.Store.
func (s *Store) RenewRouter(ctx context.Context, r route.Router, lease time.Duration) error {
	return s.renewLease(ctx, routersKey, description{
		ID: r.ID, Incarnation: r.Incarnation, Endpoint: r.Endpoint, Version: r.Version,
	}, lease)
}

// RemoveRouter implements route.Store.
func (s *Store) RemoveRouter(ctx context.Context, r route.NodeRef) error {
	return s.removeLease(ctx, routersKey, r)
}

// Routers implements route.Store.
func (s *Store) Routers(ctx context.Context) ([]route.Router, error) {
	all, err := s.leases(ctx, routersKey)
	if err != nil {
		return nil, err
	}
	out := make([]route.Router, len(all))
	for i, d := range all {
		out[i] = route.Router{NodeRef: d.ref(), Endpoint: d.Endpoint, Version: d.Version}
	}
	return out, nil
}
