package mics

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"time"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

const (
	// lingering is how long the connection that has been left is still read. The
	// gateway closes it; whatever it still says comes over the new one as well.
	lingering = 5 * time.Second
	// defaultMoveTime is the deadline of a Migrate that names none.
	defaultMoveTime = 10 * time.Second
	// targetShare of the time to move is for the URL that the cluster names; then it
	// is the usual ones' turn.
	targetShare = 3
	// closeMoveTime is how long Close waits for a second connection that is being opened.
	closeMoveTime = 2 * time.Second
	// maxMoveTime keeps a mistaken deadline from overflowing.
	maxMoveTime = time.Hour
)

var (
	errMoveLate       = errors.New("mics: could not move before the deadline")
	errReplacedBySelf = errors.New("mics: replaced by a connection of this client that was given up")
)

// move is a migration under way: the second connection of make before break.
type move struct {
	// stop ends it, but for an attempt that is under way.
	stop context.CancelFunc
	// result has capacity 1 and is always written.
	result chan moved
}

// moved is how a migration ended: with a link, or with err.
type moved struct {
	link *link
	err  error
	at   int // index of the link's URL
	// doubtful attempts failed after the cluster may have moved the session.
	doubtful int
}

// serve runs a connection, and those to which the cluster moves it, until none
// is left, and returns why the last one ended.
func (c *Client) serve(d *dialer, l *link) error {
	c.connects.Add(1)
	if l.resumed {
		c.resumes.Add(1)
	}
	c.opts.Logger.Info("mics: connected", "url", l.at, "node", l.ack.GetNodeId(), "trace", l.ack.GetTraceId(), "resumed", l.resumed)
	c.adopt(d, l)
	c.setState(connectedState(l))

	var (
		old    *link // has been left, may still be open
		linger <-chan time.Time
		mv     *move
		again  *messagev1.Migrate // came during a move
	)
	leave := func() {
		if old != nil {
			old.cut(errLost)
			<-old.done
		}
	}
	defer leave()
	follow := func(r moved) {
		leave()
		old, linger = l, time.After(lingering)
		l, mv, again = r.link, nil, nil
		c.at = r.at
		c.migrations.Add(1)
		c.opts.Logger.Info("mics: moved", "url", l.at, "node", l.ack.GetNodeId(), "trace", l.ack.GetTraceId(), "resumed", l.resumed)
		c.adopt(d, l)
		c.mu.Lock()
		c.state = connectedState(l) // no change for OnState: it was connected all the time
		c.mu.Unlock()
	}
	for {
		var result chan moved
		if mv != nil {
			result = mv.result
		}
		select {
		case m := <-l.migrate:
			if mv != nil {
				mv.stop()
				again = m
				continue
			}
			mv = c.beginMove(l, m)
		case r := <-result:
			mv = nil
			c.doubts.add(r.doubtful)
			if r.link != nil {
				follow(r)
				continue
			}
			c.opts.Logger.Info("mics: not moved", "err", r.err)
			if again != nil {
				mv, again = c.beginMove(l, again), nil
			}
		case <-linger:
			old.cut(errLost)
		case <-l.done:
			if mv != nil {
				mv.stop()
				r := <-mv.result
				c.doubts.add(r.doubtful)
				if mv = nil; r.link != nil {
					follow(r)
					continue
				}
			}
			c.out.unlink()
			return l.err
		}
	}
}

// adopt makes l the client's connection: unanswered messages are sent again on
// it, in order, before new ones, and deliveries of its session are taken.
func (c *Client) adopt(d *dialer, l *link) {
	c.in.current.Store(l.session)
	d.resume = l.resumption("")
	c.start(l)
}

func connectedState(l *link) State {
	return State{Phase: Connected, URL: l.at,
		Node: l.ack.GetNodeId(), User: l.ack.GetUserId(), Device: l.ack.GetDeviceId()}
}

// beginMove follows a Migrate of l in the background.
func (c *Client) beginMove(l *link, m *messagev1.Migrate) *move {
	ctx, stop := context.WithCancel(c.live)
	mv := &move{stop: stop, result: make(chan moved, 1)}
	at := c.at
	go func() {
		defer stop()
		mv.result <- c.move(ctx, l, m, at)
	}()
	return mv
}

// move opens the second connection: not before the delay that the cluster gave,
// plus jitter, and not after the deadline, however often it takes.
func (c *Client) move(ctx context.Context, l *link, m *messagev1.Migrate, at int) moved {
	r := moved{at: at, err: errMoveLate}
	resume := l.resumption(m.GetResumeToken())
	if resume == nil {
		return moved{err: errors.New("mics: asked to move without a token")}
	}
	within := defaultMoveTime
	if ms := m.GetDeadlineMs(); ms > 0 {
		within = time.Duration(min(ms, maxMoveTime.Milliseconds())) * time.Millisecond
	}
	deadline := time.Now().Add(within)
	pace := newPacer(c.opts.MinBackoff, c.opts.MaxBackoff)
	target := c.moveURL(m.GetUrl(), l.at)
	if target == nil {
		r.at = (at + 1) % len(c.urls) // away from the node that asks
	}
	for wait := moveWait(m.GetDelayMs(), within, c.opts.MinBackoff); ; {
		if !time.Now().Add(wait).Before(deadline) || !sleep(ctx, wait) {
			return r
		}
		u := target
		if u == nil {
			u = c.urls[r.at]
		}
		patience := c.opts.DialTimeout
		if target != nil {
			patience = min(patience, within/targetShare) // then there is time for another
		}
		// Not ctx: an attempt that is under way may have been admitted already. Then
		// acknowledgements count over the new connection only, also those of Close.
		dctx, cancel := context.WithTimeout(c.hard, patience)
		closing := context.AfterFunc(c.live, func() { time.AfterFunc(closeMoveTime, cancel) })
		// The resume token stands for the authentication, so the token is not renewed.
		next, err := open(dctx, &c.opts, u, l.token, resume)
		closing()
		cancel()
		if err == nil {
			r.link, r.err = next, nil
			return r
		}
		r.err = fmt.Errorf("mics: move: %w", err)
		if doubtful(err) {
			r.doubtful++
		}
		v := judge(err, true)
		if ce, ok := errors.AsType[*CloseError](err); v.stop != nil || ok && ce.Code == codeUnauthorized && v.atOnce {
			return r // the same answer is to be expected
		}
		if v.elsewhere {
			target = nil // out of reach: then by the usual way
			r.at = (r.at + 1) % len(c.urls)
		}
		wait = pace.next(v)
	}
}

// moveWait is when to open the second connection: the cluster's pace, full
// jitter on top, within the deadline.
func moveWait(delayMs int64, within, jitter time.Duration) time.Duration {
	wait := within / 2 // of a delay that makes no sense
	if delayMs < within.Milliseconds() {
		wait = time.Duration(max(0, delayMs)) * time.Millisecond
	}
	return wait + time.Duration(rand.Float64()*float64(min(jitter, (within-wait)/2)))
}

// moveURL is where a Migrate sends the client, nil for the usual URLs: a ws:// or
// wss:// URL, or a reference to one like that of the present connection (RFC 3986,
// section 5). It must not take the token from an encrypted connection to one that is
// not.
func (c *Client) moveURL(s, present string) *url.URL {
	if s == "" {
		return nil
	}
	u := resolve(s, present)
	if u == nil {
		c.opts.Logger.Warn("mics: asked to move to an address that will not do")
	}
	return u
}

func resolve(s, present string) *url.URL {
	base, err := url.Parse(present)
	if err != nil {
		return nil
	}
	u, err := base.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.User != nil:
		return nil
	case u.Scheme != "ws" && u.Scheme != "wss" && u.Scheme != base.Scheme: // which may be http
		return nil
	case secure(present) && !secure(u.Scheme):
		return nil
	}
	u.Fragment, u.RawFragment = "", ""
	if u.Path == "" || u.Path == "/" {
		u.Path = defaultPath
	}
	return u
}

func secure(s string) bool { return strings.HasPrefix(s, "wss") || strings.HasPrefix(s, "https") }
