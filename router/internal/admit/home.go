package admit

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/telemetry"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/dispatch"
	"github.com/mics-im/mics/router/internal/offline"
	"github.com/mics-im/mics/router/internal/recall"
	"github.com/mics-im/mics/router/internal/route"
	"github.com/mics-im/mics/router/internal/stats"
	"github.com/mics-im/mics/router/internal/token"
	"google.golang.org/protobuf/proto"
)

const (
	// admitTimeout bounds an admission; it goes on when the caller has given up,
	// because a step taken halfway is worse than one taken back.
	admitTimeout = 5 * time.Second
	// handoverTimeout bounds the wait for the old session's gateway.
	handoverTimeout = time.Second
	// owedTimeout bounds it if the old session was given what had been kept for its device
	// and has not confirmed it. That would come later, behind what other routers send to
	// the new session at once (CONTRACT section 1.1, order). In the time of a lease the
	// gateway has answered or is dead, and it is known. The rest of admitTimeout is for the
	// other steps.
	owedTimeout = 4 * time.Second
	// handoverLook is how often is looked whether that gateway is dead, and the pause
	// before it is asked again.
	handoverLook = 50 * time.Millisecond
	// stallLook is how often is looked whether the time after a stall is over.
	stallLook = 50 * time.Millisecond
)

// admit lets an authenticated connection in: this router is its user's home.
// The route is registered before the buffer is taken, and the buffer looks at
// the routes after it has put something in: between the two orders no message
// is stranded (DESIGN section 5).
func (a *Admitter) admit(ctx context.Context, o opening) (*routerv1.AdmitResponse, error) {
	if err := a.awake(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), admitTimeout)
	defer cancel()
	unlock, err := a.locks.lock(ctx, o.key.UserKey)
	if err != nil {
		return refusal(codeAuth, textUnavailable), nil
	}
	defer unlock()
	switch known, abandoned := a.ledger.begin(o.loc, o.key); {
	case abandoned:
		return nil, errAbandoned
	case known != nil && known.key == o.key:
		return known.again(), nil
	case known != nil:
		return nil, fault.New(fault.Invalid, "this session was opened for another device")
	}
	resumable, refused := a.lineage(ctx, o)
	if refused == nil {
		refused = a.limit(ctx, o)
	}
	if refused != nil {
		return refused, nil
	}
	// Other routers send to the new session as soon as they see its route: what waits
	// here for the device is older, and has to be in the backlog.
	a.opts.Dispatcher.Gate(o.key)
	defer a.opts.Dispatcher.Ungate(o.key)
	binds := time.Now()
	epoch, prev, err := a.opts.Routes.Bind(ctx, o.key, o.loc, o.version)
	if err != nil {
		a.giveBack(ctx, o)
		return a.unavailable(ctx, o, err), nil
	}
	a.ledger.bind(o.loc, time.Now())
	res := &routerv1.AdmitResponse{Epoch: epoch, RouterId: a.opts.Self.ID, RouterIncarnation: a.opts.Self.Incarnation}
	if o.version >= 2 {
		res.ResumeToken = a.opts.Tokens.Seal(token.Claims{Kind: token.Resume, Key: o.key, Loc: o.loc, Epoch: epoch})
	}
	if !resumable || prev == nil || prev.Location() != o.resume.claims.Loc {
		o.resume = resumption{}
	}
	began := time.Now()
	if o.resume.claims != nil && a.opts.Log.Enabled(ctx, slog.LevelDebug) {
		// With the gateways' session_frozen and session_went_on it tells where the time of
		// a move goes.
		a.opts.Log.DebugContext(ctx, "session_bound", telemetry.TenantID, o.key.Tenant, "UserId", o.key.User, "DeviceId", o.key.Device,
			"from", prev.Node.ID, "to", o.loc.Node.ID, "at_ns", binds.UnixNano())
	}
	drained, ok := a.backlog(ctx, o, prev, res)
	if !ok {
		return refusal(codeAuth, textUnavailable), nil
	}
	adm := &admission{opening: o, epoch: epoch, res: res}
	if res.Resumed {
		adm.frozen = began
		res.Origin = &gatewayv1.GatewayRef{NodeId: prev.Node.ID, Incarnation: prev.Node.Incarnation}
		res.Migrating = o.resume.claims.Kind == token.Migrate
		res.FrozenMs = adm.frozenMS()
	}
	if !a.ledger.admit(adm) {
		if err := a.undo(ctx, adm); err != nil {
			return nil, fault.Wrap(fault.Unavailable, "take an abandoned session back", err)
		}
		return nil, errAbandoned
	}
	a.opts.Stats.Drained.Add(int64(drained))
	a.announce(ctx, o, prev, res)
	if o.tenant.OfflineHookPull() && !res.Resumed { // a resumed session has not been away
		a.pull(o)
	}
	return res, nil
}

// again is the answer for a gateway that asks once more.
func (m *admission) again() *routerv1.AdmitResponse {
	if m.frozen.IsZero() {
		return m.res
	}
	res := proto.CloneOf(m.res)
	res.FrozenMs = m.frozenMS()
	return res
}

func (m *admission) frozenMS() float64 {
	return float64(time.Since(m.frozen)) / float64(time.Millisecond)
}

// awake waits, when this router has just stood still, until it is known whether the
// caller still wants what it asked for meanwhile: its client may be connected
// elsewhere by now, and would be replaced by a connection that it has given up.
func (a *Admitter) awake(ctx context.Context) error {
	for a.opts.Stalled() && ctx.Err() == nil {
		select {
		case <-time.After(stallLook):
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		return fault.Wrap(fault.Unavailable, "the caller has gone", ctx.Err())
	}
	return nil
}

// errAbandoned answers an opening that its gateway has given up.
var errAbandoned = fault.New(fault.FailedPrecondition, "the gateway has given this session up")

// backlog puts into res what the device must get before anything else, in this
// order: what a resumed session had, under its seqs; what earlier sessions handed
// back, what the one had that is replaced, then in the order of time what a dead gateway
// had and what came while the device was absent. What a session had that never got its
// own backlog has its place among that. It returns how many were in the buffer; not ok: the
// admission has been taken back.
func (a *Admitter) backlog(ctx context.Context, o opening, prev *route.Record, res *routerv1.AdmitResponse) (drained int, ok bool) {
	window, seqs, opened, lost := a.takeOver(ctx, o, prev, res)
	collect, err := a.opts.Dispatcher.Reclaim(ctx, o.key, func(at route.Location) bool {
		return !a.opts.Directory.Alive(at.Node) || !opened && at == prev.Location()
	})
	if err != nil {
		a.takeBack(ctx, o, res.Epoch, window)
		return 0, false
	}
	front, rest, recent, err := a.opts.Kept.TakeFor(ctx, o.key, lost)
	if err != nil {
		a.takeBack(ctx, o, res.Epoch, window)
		return 0, false
	}
	recent = recent.Join(recall.FromWire(res.RecentKeys, res.RecentAges))
	res.RecentKeys, res.RecentAges = recent.Keys, recent.Ages
	later := inTurn(collect(), kept(rest))
	var msgs []*dispatch.Message
	switch {
	case res.Resumed:
		msgs = slices.Concat(window, kept(front), later)
	case opened:
		msgs = slices.Concat(kept(front), window, later)
	default:
		msgs = slices.Concat(kept(front), inTurn(later, window))
	}
	ids, ok := a.opts.Dispatcher.Hold(o.key, o.loc, msgs)
	if !ok {
		a.takeBack(ctx, o, res.Epoch, msgs)
		return 0, false
	}
	for i, m := range msgs {
		u := &gatewayv1.Undelivered{Message: m.Bytes, Unmoderated: m.Unmoderated, Key: keyBytes(m.Key), Id: ids[i]}
		if i < len(seqs) {
			u.Seq = seqs[i]
		}
		res.Backlog = append(res.Backlog, u)
	}
	return len(front) + len(rest), true
}

// kept makes messages to deliver of those that were kept.
func kept(entries []offline.Entry) []*dispatch.Message {
	out := make([]*dispatch.Message, 0, len(entries))
	for _, e := range entries {
		out = append(out, dispatch.Kept(e))
	}
	return out
}

// inTurn puts two lists together by when the cluster took the messages, each in its
// order.
func inTurn(a, b []*dispatch.Message) []*dispatch.Message {
	out := make([]*dispatch.Message, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if a[0].At <= b[0].At {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// limit counts the connection, or says why it may not be. An older session of
// the same device does not count: it is about to be replaced.
func (a *Admitter) limit(ctx context.Context, o opening) *routerv1.AdmitResponse {
	perUser, perTenant := o.tenant.UserMaxConnections(), o.tenant.MaxConnections()
	others, replaces := 0, 0
	if perUser > 0 || perTenant > 0 {
		records, err := a.opts.Routes.LookupFresh(ctx, o.key.UserKey)
		if err != nil {
			return a.unavailable(ctx, o, err)
		}
		others, replaces = a.count(records, o.key.Device)
	}
	if perUser > 0 && others >= perUser {
		a.opts.Stats.Limited(o.key.Tenant, stats.KindUserConnections, perUser, others)
		a.opts.Signals.Of(o.loc.Node).Limited()
		return refusal(codeLimit, textUserLimit)
	}
	limit := perTenant
	if limit > 0 {
		limit += replaces
	}
	ok, current, err := a.opts.Routes.AcquireConn(ctx, o.key.Tenant, o.loc.Node, limit, a.opts.Directory.Refs())
	if err != nil {
		return a.unavailable(ctx, o, err)
	}
	if !ok {
		a.opts.Stats.Limited(o.key.Tenant, stats.KindTenantConnections, perTenant, current)
		a.opts.Signals.Of(o.loc.Node).Limited()
		return refusal(codeLimit, textTenantLimit)
	}
	return nil
}

// count tells how many other devices of the user are connected, and whether the
// device itself still holds a place among the tenant's connections.
func (a *Admitter) count(records []route.Record, device string) (others, replaces int) {
	for _, r := range records {
		switch {
		case r.State == route.Ghost || !a.opts.Directory.Alive(r.Node):
		case r.Device == device:
			replaces = 1
		case r.State == route.Live:
			others++
		}
	}
	return others, replaces
}

// unavailable refuses a connection because the store did not answer.
func (a *Admitter) unavailable(ctx context.Context, o opening, err error) *routerv1.AdmitResponse {
	a.opts.Log.WarnContext(ctx, "admission_failed", telemetry.TenantID, o.key.Tenant, "err", err)
	return refusal(codeAuth, textUnavailable)
}

// giveBack undoes limit.
func (a *Admitter) giveBack(ctx context.Context, o opening) {
	if err := a.opts.Routes.ReleaseConns(context.WithoutCancel(ctx), o.key.Tenant, o.loc.Node, 1); err != nil {
		a.opts.Stats.ReleasesFailed.Inc()
	}
}

// takeOver ends the session that this one replaces and returns what its device
// has not got, with its seqs if this one goes on with it. Not opened: it is not known
// to have got its backlog, and never will. One that has ended is asked, too, while the
// gateway may not have been able to tell anybody what its device has got. lost is the
// session if other routers may hold messages for it that nobody else has.
func (a *Admitter) takeOver(ctx context.Context, o opening, prev *route.Record, res *routerv1.AdmitResponse) (window []*dispatch.Message, seqs []uint64, opened bool, lost route.Location) {
	switch {
	case prev != nil && prev.Location() == o.loc:
		// The home before this one has let this very session in, and its answer was lost.
		// What it gave for it is held there for a session that never got it.
		return nil, nil, false, o.loc
	case prev == nil || prev.State == route.Ghost && !a.opts.Homes.Changed():
		return nil, nil, true, lost
	}
	ask, patience := a.handover, handoverTimeout
	if a.opts.Dispatcher.Owes(o.key, prev.Location()) {
		ask, patience = a.insist, owedTimeout
	}
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	got, err := ask(bounded, prev.Location(), &gatewayv1.HandoverRequest{
		CloseCode: codeReplaced, CloseReason: textReplaced, Resume: o.resume.claims != nil, LastSeq: o.resume.lastSeq,
	})
	if err != nil {
		// The routers' own copies of what it held stay until it confirms or is gone.
		a.opts.Log.WarnContext(ctx, "handover_failed", telemetry.TenantID, o.key.Tenant, "gateway", prev.Node.ID, "err", err)
	}
	if got == nil {
		return nil, nil, true, lost
	}
	opened = got.Found && got.Whole
	if !opened {
		lost = prev.Location()
	}
	if !got.Found && prev.State == route.Ghost {
		return nil, nil, true, lost
	}
	if opened {
		a.ledger.handedOver(prev.Location())
	}
	res.RecentKeys, res.RecentAges = got.RecentKeys, got.RecentAges
	if o.resume.claims != nil && got.Found && got.NextSeq > 0 {
		res.Resumed, res.NextSeq, res.AcknowledgedSeq = true, got.NextSeq, got.AcknowledgedSeq
		for _, u := range got.Undelivered {
			seqs = append(seqs, u.Seq)
		}
	}
	if !opened {
		return dispatch.Accepted(got.Undelivered, time.Now()), seqs, false, lost
	}
	return dispatch.Messages(got.Undelivered), seqs, true, lost
}

// handover asks the gateway of a session; nil without an error: it is dead.
func (a *Admitter) handover(ctx context.Context, at route.Location, req *gatewayv1.HandoverRequest) (*gatewayv1.HandoverResponse, error) {
	if !a.opts.Directory.Alive(at.Node) { // first: it asks the store for one that nobody here has heard of
		return nil, nil
	}
	node, ok := a.opts.Directory.Gateway(at.Node)
	if !ok {
		return nil, nil
	}
	req.GatewayIncarnation, req.SessionId = at.Node.Incarnation, at.Session
	res, err := a.opts.Gateway(node).Handover(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// insist is handover until the gateway answers, is dead, or ctx ends.
func (a *Admitter) insist(ctx context.Context, at route.Location, req *gatewayv1.HandoverRequest) (*gatewayv1.HandoverResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with the call
		look := time.NewTicker(handoverLook)
		defer look.Stop()
		for a.opts.Directory.Alive(at.Node) {
			select {
			case <-look.C:
			case <-ctx.Done():
				return
			}
		}
		cancel()
	}()
	for {
		res, err := a.handover(ctx, at, req)
		if err == nil || connect.IsWireError(err) && fault.KindOf(err) != fault.Unavailable {
			return res, err
		}
		select {
		case <-time.After(handoverLook):
		case <-ctx.Done():
			if !a.opts.Directory.Alive(at.Node) {
				err = nil
			}
			return nil, err
		}
	}
}

// takeBack undoes an admission that could not be completed, perhaps because ctx has
// ended: the device is absent, and what was to be its backlog is kept for it.
func (a *Admitter) takeBack(ctx context.Context, o opening, epoch uint64, backlog []*dispatch.Message) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), admitTimeout)
	defer cancel()
	err := errors.Join(a.ghost(ctx, o, epoch), a.keep(ctx, o.key, backlog))
	if err != nil {
		a.opts.Log.ErrorContext(ctx, "admission_not_undone", telemetry.TenantID, o.key.Tenant, "messages", len(backlog), "err", err)
	}
}

// undo takes a completed admission back: its session never came to be.
func (a *Admitter) undo(ctx context.Context, adm *admission) error {
	if err := a.ghost(ctx, adm.opening, adm.epoch); err != nil {
		return err
	}
	a.opts.Dispatcher.Abandon(adm.loc)
	a.ledger.forget(adm.loc)
	return nil
}

// ghost makes the device absent, unless it is somewhere else already.
func (a *Admitter) ghost(ctx context.Context, o opening, epoch uint64) error {
	_, err := a.opts.Routes.Change(ctx, []route.Change{{
		Key: o.key, Node: o.loc.Node, Session: o.loc.Session, Epoch: epoch, To: route.Ghost, GhostTTL: o.tenant.OfflineTTL(),
	}})
	return err
}
