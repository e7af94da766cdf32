package uplink

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/ring"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

const (
	// openTimeout bounds OpenSession, openTries and attemptTimeout each attempt.
	openTimeout    = 5 * time.Second
	openTries      = 3
	attemptTimeout = 2 * time.Second
)

// errNotLinked says that no router was asked.
var errNotLinked = errors.New("no router is linked")

// OpenSession asks one router after the other, until one answers; the first is the
// home of the user with that hash (ring.Hash), if it is known (not 0). The refusal of a
// session is an answer. unsure says that one was asked which did not answer: it
// may have admitted the session, whatever the result is.
func (u *Uplink) OpenSession(ctx context.Context, req *routerv1.OpenSessionRequest, home uint64) (res *routerv1.OpenSessionResponse, unsure bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	var b backoff
	var tried []*link
	err = errNotLinked
	turn := u.turn.Add(1)
	for len(tried) < openTries {
		var l *link
		if len(tried) == 0 && home != 0 {
			l = u.homeLink(home)
		}
		if l == nil {
			l = u.pick(turn, tried)
		}
		if l == nil || slices.Contains(tried, l) && !b.wait(ctx) { // the same again, but not at once
			break
		}
		if len(tried) > 0 {
			u.retries.Inc()
		}
		tried = append(tried, l)
		if res, err = l.open(ctx, req); err == nil {
			return res, len(tried) > 1, nil
		}
		if !elsewhere(err) || ctx.Err() != nil {
			break
		}
	}
	return nil, len(tried) > 0, err
}

// elsewhere reports whether another router may do better: this one is away or
// going, or does not know the gateway's incarnation yet.
func elsewhere(err error) bool {
	kind := fault.KindOf(err)
	return !connect.IsWireError(err) || kind == fault.Unavailable || kind == fault.FailedPrecondition
}

func (l *link) open(ctx context.Context, req *routerv1.OpenSessionRequest) (*routerv1.OpenSessionResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	res, err := l.client.OpenSession(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// homeLink is the link to a user's home, nil where there is none just now.
func (u *Uplink) homeLink(hash uint64) *link {
	u.mu.Lock()
	defer u.mu.Unlock()
	i := ring.PickHash(ids(u.homes), hash)
	if i < 0 {
		return nil
	}
	if l := u.links[u.homes[i].url]; l != nil && l.registered {
		return l
	}
	return nil
}

// pick returns the next linked router whose turn it is and that has not been
// tried; when all have been, the next one.
func (u *Uplink) pick(turn uint64, tried []*link) *link {
	u.mu.Lock()
	var linked []*link
	for _, l := range u.links {
		if l.registered {
			linked = append(linked, l)
		}
	}
	u.mu.Unlock()
	if len(linked) == 0 {
		return nil
	}
	slices.SortFunc(linked, func(a, b *link) int { return strings.Compare(a.url, b.url) })
	n := uint64(len(linked))
	for i := range n {
		if l := linked[(turn+i)%n]; !slices.Contains(tried, l) {
			return l
		}
	}
	return linked[(turn+uint64(len(tried)))%n]
}
