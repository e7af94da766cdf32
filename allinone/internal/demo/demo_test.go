package demo

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mics-im/mics/internal/testkit"
	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	"github.com/mics-im/mics/sdk/go/hook"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const secret = "s3cret"

func started(t *testing.T) *Tenant {
	t.Helper()
	d, err := New(Config{Listen: "127.0.0.1:0", Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	d.Start()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := d.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return d
}

// ask calls a hook as a router does and returns the status.
func ask(t *testing.T, d *Tenant, name string, req hook.Request, signedWith string, res proto.Message) int {
	t.Helper()
	if signedWith != "" {
		if err := hook.Sign(req, signedWith); err != nil {
			t.Fatal(err)
		}
	}
	body, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.Post(d.URL()+"/"+name, "application/protobuf", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	raw, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode == http.StatusOK {
		if err := proto.Unmarshal(raw, res); err != nil {
			t.Fatal(err)
		}
	}
	return answer.StatusCode
}

func meta() *hookv1.HookMeta {
	return &hookv1.HookMeta{TenantId: TenantID, RequestId: "r", TimestampMs: time.Now().UnixMilli()}
}

func TestLogin(t *testing.T) {
	d := started(t)
	for token, user := range map[string]string{"valid:ann": "ann", "ann": "", "": "", "valid:": ""} {
		res := &hook.AuthResponse{}
		if code := ask(t, d, hook.NameAuth, &hook.AuthRequest{Meta: meta(), Token: token}, secret, res); code != http.StatusOK {
			t.Errorf("%q: status %d", token, code)
		}
		if res.GetOk() != (user != "") || res.GetUserId() != user || (res.GetReason() == "") != res.GetOk() {
			t.Errorf("%q: %v", token, res)
		}
		if cfg := res.GetConfig(); res.GetOk() && (cfg.GetTenantSecret() != secret || !cfg.GetHookSignRequired() || !cfg.GetCheckMessageEnabled()) {
			t.Errorf("configuration %v", cfg)
		}
	}
	for _, signedWith := range []string{"", "other"} {
		if code := ask(t, d, hook.NameAuth, &hook.AuthRequest{Meta: meta(), Token: "valid:ann"}, signedWith, nil); code != http.StatusUnauthorized {
			t.Errorf("signed with %q: status %d", signedWith, code)
		}
	}
}

func TestGroupIsEverybodyWhoLoggedIn(t *testing.T) {
	d := started(t)
	members := func(group string) []string {
		res := &hookv1.GetGroupMembersResponse{}
		if code := ask(t, d, hook.NameGroupMembers, &hook.GetGroupMembersRequest{Meta: meta(), GroupId: group}, secret, res); code != http.StatusOK {
			t.Errorf("status %d", code)
		}
		return res.GetUserIds()
	}
	if got := members(Group); len(got) != 0 {
		t.Errorf("before anybody came: %v", got)
	}
	for _, token := range []string{"valid:bob", "valid:ann", "valid:bob", "carl"} {
		ask(t, d, hook.NameAuth, &hook.AuthRequest{Meta: meta(), Token: token}, secret, &hook.AuthResponse{})
	}
	if got := members(Group); !slices.Equal(got, []string{"ann", "bob"}) {
		t.Errorf("members %v", got)
	}
	if got := members("other"); len(got) != 0 {
		t.Errorf("members of another group: %v", got)
	}
}

func TestCheckMessage(t *testing.T) {
	d := started(t)
	for body, reason := range map[string]string{
		"hello": "", "": "", "I said deny:": "", "deny:": "denied by the demo tenant", "deny: too rude": "too rude", "deny:\xff!": "!",
	} {
		res := &hook.CheckMessageResponse{}
		req := &hook.CheckMessageRequest{Meta: meta(), Message: &hook.Message{MsgBody: []byte(body)}}
		if code := ask(t, d, hook.NameCheckMessage, req, secret, res); code != http.StatusOK || res.GetAllow() != (reason == "") || res.GetReason() != reason {
			t.Errorf("%q: status %d, %v", body, code, res)
		}
	}
	offline := &hook.GetOfflineMessagesRequest{Meta: meta()}
	if code := ask(t, d, hook.NameOfflineMessages, offline, secret, nil); code != http.StatusNotImplemented {
		t.Errorf("get-offline-messages: status %d", code)
	}
}

func TestNewRefusesNonsense(t *testing.T) {
	if _, err := New(Config{Listen: "127.0.0.1:0"}); err == nil {
		t.Error("taken without a secret")
	}
	d, err := New(Config{Listen: "127.0.0.1:0", Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	_, err = New(Config{Listen: strings.TrimSuffix(strings.TrimPrefix(d.URL(), "http://"), basePath), Secret: secret})
	if err == nil {
		t.Error("listens on a taken address")
	}
	if err := d.Stop(t.Context()); err != nil { // also without Start
		t.Error(err)
	}
}
