package playground

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
)

func TestHandler(t *testing.T) {
	h, err := Handler([]string{"ws://127.0.0.1:1/ws"}, "demo")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]struct{ kind, has string }{
		"/":            {"text/html", "MICS playground"},
		"/app.mjs":     {"text/javascript", "frames.mjs"},
		"/frames.mjs":  {"text/javascript", "decodeServer"},
		"/style.css":   {"text/css", ".client"},
		"/config.json": {"application/json", "ws://127.0.0.1:1/ws"},
	} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
		if rec.Code != 200 || !strings.HasPrefix(rec.Header().Get("Content-Type"), want.kind) || !strings.Contains(rec.Body.String(), want.has) {
			t.Errorf("%s: %d %s", path, rec.Code, rec.Header().Get("Content-Type"))
		}
		if !strings.Contains(rec.Header().Get("Content-Security-Policy"), "default-src 'self'") {
			t.Errorf("%s has no content security policy", path)
		}
	}
}

// node runs a script against frames.mjs and returns what it prints.
func node(t *testing.T, script string) []byte {
	t.Helper()
	bin, err := exec.LookPath("node")
	if err != nil {
		t.Skip("SKIPPED: node is not installed, the page's own encoding goes untested")
	}
	cmd := exec.Command(bin, "--input-type=module", "-e", `import * as f from "./frames.mjs";`+
		`const hex = (b) => Buffer.from(b).toString("hex");`+script)
	cmd.Dir = "page"
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, errs.String())
	}
	return out
}

func TestPageEncodesAsProtobufDoes(t *testing.T) {
	out := node(t, `console.log(hex(f.encodeMessage({id:"i1",to:"bob",body:"h\u00e9",timestamp:1767225600123})));`+
		`console.log(hex(f.encodeMessage({id:"i2",group:"demo",body:"x".repeat(300),timestamp:1})));`+
		`console.log(hex(f.encodePing(1767225600123)));`)
	var got []*messagev1.ClientFrame
	for line := range strings.FieldsSeq(string(out)) {
		b, err := hex.DecodeString(line)
		if err != nil {
			t.Fatal(err)
		}
		m := &messagev1.ClientFrame{}
		if err := proto.Unmarshal(b, m); err != nil {
			t.Fatal(err)
		}
		got = append(got, m)
	}
	want := []*messagev1.ClientFrame{
		{Payload: &messagev1.ClientFrame_Message{Message: &messagev1.MessageRequest{
			MsgId: "i1", ToUserId: "bob", MsgBody: []byte("hé"), TimestampMs: 1767225600123}}},
		{Payload: &messagev1.ClientFrame_Message{Message: &messagev1.MessageRequest{MsgId: "i2",
			MsgType: messagev1.MessageType_GROUP_CHAT, GroupId: "demo", MsgBody: bytes.Repeat([]byte("x"), 300), TimestampMs: 1}}},
		{Payload: &messagev1.ClientFrame_HeartbeatPing{HeartbeatPing: &messagev1.HeartbeatPing{TimestampMs: 1767225600123}}},
	}
	for i, w := range want {
		if i >= len(got) || !proto.Equal(got[i], w) {
			t.Errorf("frame %d: %v, want %v", i, got, w)
		}
	}
}

func TestPageDecodesAsProtobufDoes(t *testing.T) {
	frames := []*messagev1.ServerFrame{
		{Payload: &messagev1.ServerFrame_ConnectAck{ConnectAck: &messagev1.ConnectAck{Code: 1000, UserId: "ann", NodeId: "gw-1", HeartbeatTimeoutSeconds: 30}}},
		{Payload: &messagev1.ServerFrame_Delivery{Delivery: &messagev1.MessageDelivery{Seq: 1 << 40, Message: &messagev1.MessageRequest{
			MsgId: "m", UserId: "bob", DeviceId: "d", ToUserId: "ann", MsgBody: []byte("hé"), TimestampMs: 1767225600123}}}},
		{Payload: &messagev1.ServerFrame_Ack{Ack: &messagev1.MessageAck{MsgId: "m", Status: messagev1.AckStatus_FAILED, Reason: "no", OfflineBufferedUsers: 2}}},
		{Payload: &messagev1.ServerFrame_Error{Error: &messagev1.ServerError{Code: 4400, Message: "bad"}}},
		{Payload: &messagev1.ServerFrame_HeartbeatPong{HeartbeatPong: &messagev1.HeartbeatPong{TimestampMs: 5}}},
		{},
	}
	want := []string{
		`{"kind":"connected","code":1000,"user":"ann","node":"gw-1","heartbeatSeconds":30}`,
		`{"kind":"delivery","id":"m","from":"bob","device":"d","to":"ann","group":"","body":"hé","timestamp":1767225600123}`,
		`{"kind":"ack","id":"m","sent":false,"reason":"no","buffered":2}`,
		`{"kind":"error","code":4400,"message":"bad"}`,
		`{"kind":"other"}`,
		`{"kind":"other"}`,
	}
	var in []string
	for _, f := range frames {
		b, err := proto.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		in = append(in, hex.EncodeToString(b))
	}
	list, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	out := node(t, `for (const h of `+string(list)+`) console.log(JSON.stringify(f.decodeServer(new Uint8Array(Buffer.from(h,"hex")))));`+
		`for (const bad of ["0aff", "ff", "0f", "08"]) { try { f.decodeServer(new Uint8Array(Buffer.from(bad,"hex"))); console.log("taken:", bad) } catch { console.log("refused") } }`)
	got := strings.Split(strings.TrimSpace(string(out)), "\n")
	want = append(want, "refused", "refused", "refused", "refused")
	for i, w := range want {
		if i >= len(got) || got[i] != w {
			t.Errorf("line %d of %q, want %s", i, got, w)
		}
	}
}
