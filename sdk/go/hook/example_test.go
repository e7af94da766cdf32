package hook_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	"github.com/mics-im/mics/sdk/go/hook"
)

// A tenant's whole server. A real one ends with
//
//	srv := &http.Server{Addr: ":8090", Handler: mux, ReadTimeout: 5 * time.Second}
//	log.Fatal(srv.ListenAndServe())
func Example() {
	const secret = "agreed upon with the cluster's operators"
	h, err := hook.New(hook.Options{
		Secret: secret,
		Auth: func(_ context.Context, r *hook.AuthRequest) (*hook.AuthResponse, error) {
			user, ok := strings.CutPrefix(r.GetToken(), "valid:")
			if !ok {
				return hook.Refuse("unknown token"), nil
			}
			return hook.Accept(user, &hook.RuntimeConfig{UserMaxConnections: 5}), nil
		},
		GroupMembers: func(context.Context, *hook.GetGroupMembersRequest) ([]string, error) {
			return []string{"ann", "bob"}, nil
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	mux := http.NewServeMux()
	mux.Handle("/mics/", h)

	// What the cluster does when somebody connects:
	srv := httptest.NewServer(mux)
	defer srv.Close()
	for _, token := range []string{"valid:ann", "stolen"} {
		fmt.Println(ask(srv.URL+"/mics/auth", secret, token))
	}
	// Output:
	// 200 OK: ok, user "ann", messages checked false
	// 200 OK: refused, unknown token
}

func ask(url, secret, token string) string {
	req := &hook.AuthRequest{
		Meta:  &hookv1.HookMeta{TenantId: "acme", RequestId: "1", TimestampMs: time.Now().UnixMilli()},
		Token: token,
	}
	if err := hook.Sign(req, secret); err != nil {
		return err.Error()
	}
	body, err := proto.Marshal(req)
	if err != nil {
		return err.Error()
	}
	res, err := http.Post(url, "application/protobuf", bytes.NewReader(body))
	if err != nil {
		return err.Error()
	}
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return err.Error()
	}
	var answer hook.AuthResponse
	if err := proto.Unmarshal(raw, &answer); err != nil {
		return err.Error()
	}
	if !answer.GetOk() {
		return res.Status + ": refused, " + answer.GetReason()
	}
	return fmt.Sprintf("%s: ok, user %q, messages checked %t", res.Status, answer.GetUserId(), answer.GetConfig().GetCheckMessageEnabled())
}

// A consumer of the tenant's events: call it with the value of every record.
func ExampleParseEvent() {
	const secret = "tenant_secret of the configuration"
	sequence := hook.NewSequence(hook.SequenceOptions{})
	consume := func(value []byte) {
		e, err := hook.ParseEvent(value, secret)
		if err != nil {
			fmt.Println("not an event of ours:", errors.Is(err, hook.ErrMalformed), errors.Is(err, hook.ErrSignature))
			return
		}
		arrival, gaps := sequence.Observe(e)
		if arrival == hook.Repeated {
			return
		}
		for _, g := range gaps {
			fmt.Printf("lost: %d to %d of %s\n", g.From, g.To, g.Node)
		}
		switch {
		case e.Message != nil:
			fmt.Printf("%s wrote to %s: %s\n", e.Message.GetUserId(), e.Message.GetToUserId(), e.Message.GetMsgBody())
		case e.GetEventType() == hook.ConnectOnline:
			fmt.Printf("%s is online at %s\n", e.GetUserId(), e.Connection.GetNodeId())
		}
	}

	data, _ := proto.Marshal(&hook.Message{UserId: "ann", ToUserId: "bob", MsgBody: []byte("hello")})
	event := &hookv1.MqEvent{TenantId: "acme", EventType: hook.SingleChat, EventData: data, NodeId: "router-1", TenantSeq: 7}
	_ = hook.SignEvent(event, secret)
	value, _ := proto.Marshal(event)
	consume(value)
	consume(value) // at least once means that it may come twice
	consume([]byte("garbage"))
	// Output:
	// ann wrote to bob: hello
	// not an event of ours: true false
}
