package hook

import (
	"context"
	"errors"

	"google.golang.org/protobuf/proto"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
)

// endpoint is one hook: its request's type, and the tenant's function or nil.
type endpoint struct {
	newRequest func() Request
	call       func(context.Context, Request) (proto.Message, error)
}

var errNil = errors.New("the function returned neither an answer nor an error")

// endpointOf adapts a tenant's function.
func endpointOf[Req any, PReq interface {
	*Req
	Request
}, Res any, PRes interface {
	*Res
	proto.Message
}](f func(context.Context, PReq) (PRes, error)) endpoint {
	e := endpoint{newRequest: func() Request { return PReq(new(Req)) }}
	if f == nil {
		return e
	}
	e.call = func(ctx context.Context, r Request) (proto.Message, error) {
		res, err := f(ctx, r.(PReq))
		switch {
		case err != nil:
			return nil, err
		case res == nil:
			return nil, errNil
		}
		return res, nil
	}
	return e
}

func (h *Handler) endpoints() map[string]endpoint {
	var auth func(context.Context, *AuthRequest) (*AuthResponse, error)
	if h.opts.Auth != nil {
		auth = h.auth
	}
	var members func(context.Context, *GetGroupMembersRequest) (*hookv1.GetGroupMembersResponse, error)
	if f := h.opts.GroupMembers; f != nil {
		members = func(ctx context.Context, r *GetGroupMembersRequest) (*hookv1.GetGroupMembersResponse, error) {
			users, err := f(ctx, r)
			return &hookv1.GetGroupMembersResponse{UserIds: users}, err
		}
	}
	return map[string]endpoint{
		NameAuth:            endpointOf(auth),
		NameCheckMessage:    endpointOf(h.opts.CheckMessage),
		NameGroupMembers:    endpointOf(members),
		NameOfflineMessages: endpointOf(h.opts.OfflineMessages),
	}
}

// auth calls Auth and completes what it accepted.
func (h *Handler) auth(ctx context.Context, req *AuthRequest) (*AuthResponse, error) {
	res, err := h.opts.Auth(ctx, req)
	if err != nil || res == nil || !res.GetOk() {
		return res, err
	}
	if res.GetUserId() == "" {
		return nil, errors.New("no user was named for an accepted token")
	}
	cfg := res.GetConfig()
	// Hooks at another base URL are somebody else's to answer for.
	if h.opts.CheckMessage != nil || cfg.GetHookBaseUrl() != "" || cfg != nil && cfg.CheckMessageEnabled != nil {
		return res, nil
	}
	// The function may return the same configuration to all: it is not ours.
	res = proto.CloneOf(res)
	if res.Config == nil {
		res.Config = &RuntimeConfig{}
	}
	res.Config.CheckMessageEnabled = proto.Bool(false)
	return res, nil
}
