package admit

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/mics-im/mics/internal/fault"
	"github.com/mics-im/mics/internal/telemetry"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
	"github.com/mics-im/mics/router/internal/route"
	"github.com/mics-im/mics/router/internal/tenant"
	"github.com/mics-im/mics/router/internal/token"
)

// Texts of refusals of a resume (CONTRACT section 1.4). They harm nothing: the
// session that the token names goes on.
const (
	textInvalid = "invalid resume token"
	textForeign = "resume token of another session"
	textExpired = "expired migrate token"
	textStale   = "stale resume token"
	textAhead   = "invalid resume: lastSeq from the future"
)

const (
	// maxMigrating bounds the sessions of one PrepareMigration.
	maxMigrating = 10_000
	// maxDeadline bounds how long a token may stand for an authentication.
	maxDeadline = time.Hour
)

// resumption is how a connection wants to go on with an earlier session.
type resumption struct {
	// claims of its token; nil: it has none, or of a key that is not known.
	claims  *token.Claims
	lastSeq uint64
	// unread is a token of a key that is not known here.
	unread string
}

// present reads the token of a request. migrating: it stands for the
// authentication, and its key is the connection's. no says why it is refused.
func (a *Admitter) present(t *tenant.Tenant, req *routerv1.OpenSessionRequest) (r resumption, migrating bool, no string) {
	if req.ResumeToken == "" || req.Version < 2 {
		return resumption{}, false, ""
	}
	c, err := a.opts.Tokens.Open(req.ResumeToken)
	switch {
	case errors.Is(err, token.ErrUnknownKey):
		return resumption{unread: req.ResumeToken, lastSeq: req.LastSeq}, false, ""
	case err != nil:
		return resumption{}, false, textInvalid
	case c.Key.Tenant != t.Name():
		return resumption{}, false, textForeign
	case c.Kind == token.Migrate && !time.Now().Before(c.Deadline):
		return resumption{}, false, textExpired
	}
	// The hook may have given the device another name than its client does; then
	// the client is authenticated like any other.
	return resumption{claims: &c, lastSeq: req.LastSeq}, c.Kind == token.Migrate && c.Key.Device == req.DeviceId, ""
}

// write puts it into a request to the user's home.
func (r resumption) write(req *routerv1.AdmitRequest) {
	req.ResumeToken, req.LastSeq = r.unread, r.lastSeq
	if c := r.claims; c != nil {
		req.Resume = &routerv1.ResumedSession{
			Gateway:   &gatewayv1.GatewayRef{NodeId: c.Loc.Node.ID, Incarnation: c.Loc.Node.Incarnation},
			SessionId: c.Loc.Session, Epoch: c.Epoch, Migrating: c.Kind == token.Migrate,
		}
	}
}

// presented reads what another router has written. It has checked what it could
// read; a token of a key that nobody knows is as good as none.
func (a *Admitter) presented(key route.DeviceKey, req *routerv1.AdmitRequest) (r resumption, no string) {
	r.lastSeq = req.LastSeq
	if s := req.Resume; s != nil {
		r.claims = &token.Claims{Kind: token.Resume, Key: key, Loc: route.Location{Node: ref(s.Gateway), Session: s.SessionId}, Epoch: s.Epoch}
		if s.Migrating {
			r.claims.Kind = token.Migrate
		}
		return r, ""
	}
	if req.ResumeToken == "" {
		return resumption{}, ""
	}
	c, err := a.opts.Tokens.Open(req.ResumeToken)
	switch {
	case errors.Is(err, token.ErrUnknownKey):
		return resumption{}, ""
	case err != nil:
		return resumption{}, textInvalid
	case c.Key != key:
		return resumption{}, textForeign
	case c.Kind == token.Migrate && !time.Now().Before(c.Deadline):
		return resumption{}, textExpired
	}
	r.claims = &c
	return r, ""
}

// lineage looks whether the token's session is still the device's latest, and
// whether it can go on. A session that has ended cannot, and begins anew; a token
// that stood for the authentication needs one that has not, so that a kick is one.
// The user is locked.
func (a *Admitter) lineage(ctx context.Context, o opening) (resumable bool, no *routerv1.AdmitResponse) {
	c := o.resume.claims
	if c == nil {
		return false, nil
	}
	records, err := a.opts.Routes.LookupFresh(ctx, o.key.UserKey)
	if err != nil {
		return false, a.unavailable(ctx, o, err)
	}
	i := slices.IndexFunc(records, func(r route.Record) bool { return r.Device == o.key.Device })
	known := i >= 0
	switch {
	case known && (records[i].Epoch != c.Epoch || records[i].Location() != c.Loc),
		c.Kind == token.Migrate && (!known || records[i].State == route.Ghost):
		return false, resumeRefusal(textStale)
	case !known || records[i].State == route.Ghost:
		return false, nil
	}
	if o.resume.lastSeq == 0 {
		return true, nil
	}
	// Nothing may have changed when this is refused, so it is asked for first.
	ctx, cancel := context.WithTimeout(ctx, handoverTimeout)
	defer cancel()
	got, err := a.handover(ctx, c.Loc, &gatewayv1.HandoverRequest{Resume: true, LastSeq: o.resume.lastSeq, Check: true})
	switch {
	case err != nil:
		a.opts.Log.WarnContext(ctx, "resume_check_failed", telemetry.TenantID, o.key.Tenant, "gateway", c.Loc.Node.ID, "err", err)
		return false, nil
	case got == nil:
		return false, nil
	case got.Ahead:
		return false, resumeRefusal(textAhead)
	}
	return true, nil
}

// PrepareMigration makes the tokens for sessions of a gateway that drains.
func (a *Admitter) PrepareMigration(req *routerv1.PrepareMigrationRequest) (*routerv1.PrepareMigrationResponse, error) {
	node := ref(req.GetGateway())
	if !a.opts.Directory.Alive(node) {
		return nil, fault.New(fault.FailedPrecondition, "this gateway incarnation holds no lease")
	}
	if len(req.Sessions) > maxMigrating || req.DeadlineMs == 0 || req.DeadlineMs > uint64(maxDeadline/time.Millisecond) {
		return nil, fault.New(fault.Invalid, "too many sessions, or deadline_ms is out of bounds")
	}
	deadline := time.Now().Add(time.Duration(req.DeadlineMs) * time.Millisecond)
	res := &routerv1.PrepareMigrationResponse{Tokens: make([]string, len(req.Sessions))}
	for i, s := range req.Sessions {
		c := token.Claims{
			Kind:  token.Migrate,
			Key:   route.DeviceKey{UserKey: route.UserKey{Tenant: s.TenantId, User: s.UserId}, Device: s.DeviceId},
			Loc:   route.Location{Node: node, Session: s.SessionId},
			Epoch: s.Epoch, Deadline: deadline,
		}
		if c.Key.Check() == nil {
			res.Tokens[i] = a.opts.Tokens.Seal(c)
		}
	}
	return res, nil
}
