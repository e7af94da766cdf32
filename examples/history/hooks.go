package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"github.com/mics-im/mics/sdk/go/hook"
	"google.golang.org/protobuf/proto"
)

// newHooks serves the cluster's hooks under /mics/ and, for people, /history.
func newHooks(db *store, c config, log *slog.Logger) (http.Handler, error) {
	o := hook.Options{Secret: c.secret, Logger: log, OfflineMessages: db.offlineMessages}
	if c.trusting {
		o.Auth = trust
		o.GroupMembers = func(ctx context.Context, _ *hook.GetGroupMembersRequest) ([]string, error) { return db.everybody(ctx) }
	}
	h, err := hook.New(o)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/mics/", h)
	mux.HandleFunc("GET /history", db.serveHistory)
	return mux, nil
}

// trust lets in whoever says who he is, and asks the cluster to leave offline
// messages to this program.
func trust(_ context.Context, r *hook.AuthRequest) (*hook.AuthResponse, error) {
	user, ok := strings.CutPrefix(r.GetToken(), "user:")
	if !ok || user == "" {
		return hook.Refuse("the token must be user:NAME"), nil
	}
	return hook.Accept(user, &hook.RuntimeConfig{OfflineUseHookPull: proto.Bool(true)}), nil
}

// offlineMessages answers a page of what the user missed. Every page but an empty
// one says that there are more: the cluster asks for the next one only when it
// has this one, so that its cursor is the receipt.
func (s *store) offlineMessages(ctx context.Context, r *hook.GetOfflineMessagesRequest) (*hook.GetOfflineMessagesResponse, error) {
	after, _ := strconv.ParseInt(r.GetCursor(), 10, 64) // none: from the beginning
	if after > 0 {
		if err := s.taken(ctx, r.GetUserId(), after); err != nil {
			return nil, err
		}
	}
	page, last, err := s.missedBy(ctx, r.GetUserId(), after, max(1, min(int(r.GetMaxMessages()), 100)))
	if err != nil {
		return nil, err
	}
	res := &hook.GetOfflineMessagesResponse{Ok: true, Messages: page}
	if len(page) > 0 {
		res.HasMore, res.NextCursor = true, strconv.FormatInt(last, 10)
	}
	return res, nil
}

// serveHistory shows a conversation: ?group=G, or ?user=A&with=B; ?before=N for
// older ones. It is for trying this out: a real one asks who is asking.
func (s *store) serveHistory(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	before, _ := strconv.ParseInt(q.Get("before"), 10, 64)
	page, last, err := s.history(r.Context(), conversation(q.Get("user"), q.Get("with"), q.Get("group")), before, 50)
	if err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	type line struct {
		From   string `json:"from"`
		SentMS int64  `json:"sentMs"`
		Body   []byte `json:"body"`
	}
	out := struct {
		Messages []line `json:"messages"`
		Before   int64  `json:"before,omitempty"`
	}{Messages: []line{}}
	for _, m := range page {
		out.Messages = append(out.Messages, line{m.GetUserId(), m.GetTimestampMs(), m.GetMsgBody()})
	}
	if len(page) == 50 {
		out.Before = last
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out) // whoever asked may have gone
}
