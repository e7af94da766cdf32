package away

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/router/internal/route"
)

const (
	// saveBatch bounds the records of one write.
	saveBatch = 1024
	// maxBatches bounds one flush; the next one goes on.
	maxBatches = 1000
)

// save writes what was changed in the mirror at once where that can be: to the
// backend while healing, else through a router that reaches it. What is not saved
// is written when the backend is back.
func (s *Store) save(ctx context.Context, records []route.Restored) {
	if len(records) == 0 || s.cluster.Directory == nil {
		return
	}
	for range 2 { // the store may be lost with the first try
		if s.phase() == away {
			s.awaitPeer(ctx)
			s.findPeerIfAlone()
		}
		if s.write() {
			return
		}
	}
	// Their homes answer for them.
	others := map[route.Router][]route.Restored{}
	for _, r := range records {
		if home, self := s.cluster.Directory.Home(r.Key.UserKey); !self {
			others[home] = append(others[home], r)
		}
	}
	for home, theirs := range others {
		s.push(ctx, home, theirs)
	}
}

// write writes all that is not saved, to wherever it can, and tells whether it
// did. One at a time: a ghost must not be overtaken by its device's live record.
func (s *Store) write() bool {
	return s.saves.do(func() bool {
		for range maxTurns {
			if s.phase() == away {
				break
			}
			into := s.markerNow()
			if s.flush(s.ctx) != nil {
				return false
			}
			// What went into a store that was emptied meanwhile is in doubt again.
			if s.verify(); s.markerNow() == into {
				return true
			}
		}
		peer := s.peerUp()
		if peer == nil {
			return false
		}
		for range maxBatches {
			records := s.mirror.some(saveBatch)
			if len(records) == 0 {
				return true
			}
			if !s.push(s.ctx, *peer, records) {
				return false
			}
		}
		return false
	})
}

// restore writes records of the mirror to the backend, as they are: a gateway that
// this router has not heard of may be there all the same, and the reaper finds
// those that are not.
func (s *Store) restore(ctx context.Context, records []route.Restored) error {
	n, err := s.backend.Restore(ctx, records)
	s.countRebuilt(n)
	if err != nil {
		s.failed(ctx, err)
		return err
	}
	s.mirror.saved(records)
	return nil
}

// errMore: what comes in keeps up with what is written.
var errMore = errors.New("more is left to be saved")

// flush writes what is not saved to the backend; for write only.
func (s *Store) flush(ctx context.Context) error {
	for range maxBatches {
		records := s.mirror.some(saveBatch)
		if len(records) == 0 {
			return nil
		}
		if err := s.restore(ctx, records); err != nil {
			return err
		}
	}
	return errMore
}

// push has another router store records, and tells whether it did.
func (s *Store) push(ctx context.Context, to route.Router, records []route.Restored) bool {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req := s.question()
	req.Learn = toUsers(records)
	res, err := s.cluster.Peer(to).Records(ctx, connect.NewRequest(req))
	if err != nil || !res.Msg.GetLearned() {
		s.peerDown(to)
		return false
	}
	s.mirror.saved(records)
	return true
}

// peerUp is a router that reaches the backend while this one does not; nil: none
// is known.
func (s *Store) peerUp() *route.Router {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.outage.peer
}

// alone tells whether no other router answered when they were asked last.
func (s *Store) alone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.outage.alone
}

// findPeerIfAlone looks for other routers again if none answered, because somebody has got
// through to this one: then it gets through to others, which may be about to take it for
// dead, or have.
func (s *Store) findPeerIfAlone() {
	if s.phase() == away && s.alone() {
		s.search.do(func() bool { s.findPeer(); return true })
	}
}

// awaitPeer waits until the other routers have been asked whether they reach the
// backend.
func (s *Store) awaitPeer(ctx context.Context) {
	s.mu.Lock()
	asked := s.outage.asked
	s.mu.Unlock()
	if asked == nil {
		return
	}
	t := time.NewTimer(askTimeout)
	defer t.Stop()
	select {
	case <-asked:
	case <-t.C:
	case <-ctx.Done():
	}
}

func (s *Store) peerDown(r route.Router) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.outage.peer; p != nil && p.NodeRef == r.NodeRef {
		s.outage.peer = nil
	}
}
