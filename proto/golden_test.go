// Package proto_test holds the generated code to the outside contract: to its
// bytes (testdata) and to its tables (contract_test.go).
package proto_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// vector is an entry of testdata/*.json; testdata/README.md explains the keys.
type vector struct {
	Name         string          `json:"name"`
	Message      string          `json:"message"`
	Hex          hexBytes        `json:"hex"`
	Fields       json.RawMessage `json:"fields"`
	CanonicalHex hexBytes        `json:"canonical_hex"`

	Hook        string   `json:"hook"`
	Direction   string   `json:"direction"`
	Secret      string   `json:"secret"`
	UnsignedHex hexBytes `json:"unsigned_hex"`
	SignedBytes hexBytes `json:"signed_bytes_hex"`
	Sign        string   `json:"sign"`
}

type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

func load(t *testing.T, file string) []vector {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	var vs []vector
	if err := d.Decode(&vs); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, v := range vs {
		key := v.Direction + " " + v.Name
		if names[key] {
			t.Errorf("%s: two vectors are named %q", file, key)
		}
		names[key] = true
	}
	if len(vs) == 0 {
		t.Fatalf("%s has no vectors", file)
	}
	return vs
}

// newMessage returns an empty message of the vector's type.
func (v vector) newMessage(t *testing.T) proto.Message {
	t.Helper()
	mt, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(v.Message))
	if err != nil {
		t.Fatal(err)
	}
	return mt.New().Interface()
}

// decode decodes the vector, and checks its fields and that encoding it again
// gives its bytes.
func (v vector) decode(t *testing.T) proto.Message {
	t.Helper()
	m := v.newMessage(t)
	if err := proto.Unmarshal(v.Hex, m); err != nil {
		t.Fatal(err)
	}
	want := v.newMessage(t)
	if err := protojson.Unmarshal(v.Fields, want); err != nil {
		t.Fatal(err)
	}
	got := proto.Clone(m)
	dropUnknown(got.ProtoReflect())
	if !proto.Equal(got, want) {
		t.Errorf("decoded\n%v\nwant\n%v", got, want)
	}
	canonical := v.CanonicalHex
	if canonical == nil {
		canonical = v.Hex
	}
	if b := encode(t, m); !bytes.Equal(b, canonical) {
		t.Errorf("encoded again\n%x\nwant\n%x", b, canonical)
	}
	return m
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// dropUnknown removes unknown fields, at every depth.
func dropUnknown(m protoreflect.Message) {
	m.SetUnknown(nil)
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				dropUnknown(v.List().Get(i).Message())
			}
		default:
			dropUnknown(v.Message())
		}
		return true
	})
}

func mac(secret string, parts ...[]byte) string {
	h := hmac.New(sha256.New, []byte(secret))
	for _, p := range parts {
		_, _ = h.Write(p)
	}
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}

func TestFrames(t *testing.T) {
	for _, v := range load(t, "frames.json") {
		t.Run(v.Name, func(t *testing.T) { v.decode(t) })
	}
}

func TestInvalidFramesAreRefused(t *testing.T) {
	for _, v := range load(t, "invalid.json") {
		if m := v.newMessage(t); proto.Unmarshal(v.Hex, m) == nil {
			t.Errorf("%s: %x was taken for %v", v.Name, v.Hex, m)
		}
	}
}

// hookRequest is any hook request.
type hookRequest interface {
	proto.Message
	GetMeta() *hookv1.HookMeta
}

func TestHooks(t *testing.T) {
	for _, v := range load(t, "hooks.json") {
		t.Run(v.Direction+" "+v.Name, func(t *testing.T) {
			m := v.decode(t)
			if v.Direction != "request" {
				return
			}
			r, ok := m.(hookRequest)
			if !ok {
				t.Fatalf("%s has no meta", v.Message)
			}
			if r.GetMeta().GetSign() != v.Sign {
				t.Errorf("carries the sign %q, want %q", r.GetMeta().GetSign(), v.Sign)
			}
			r.GetMeta().Sign = ""
			unsigned := encode(t, r)
			if !bytes.Equal(unsigned, v.UnsignedHex) {
				t.Errorf("unsigned\n%x\nwant\n%x", unsigned, v.UnsignedHex)
			}
			signed := append(unsigned, r.GetMeta().GetRequestId()...)
			signed = binary.LittleEndian.AppendUint64(signed, uint64(r.GetMeta().GetTimestampMs()))
			if !bytes.Equal(signed, v.SignedBytes) {
				t.Errorf("signed bytes\n%x\nwant\n%x", signed, v.SignedBytes)
			}
			if s := mac(v.Secret, signed); s != v.Sign {
				t.Errorf("sign %q, want %q", s, v.Sign)
			}
		})
	}
}

func TestEvents(t *testing.T) {
	for _, v := range load(t, "events.json") {
		t.Run(v.Name, func(t *testing.T) {
			e := v.decode(t).(*hookv1.MqEvent)
			if e.GetSign() != v.Sign {
				t.Errorf("carries the sign %q, want %q", e.GetSign(), v.Sign)
			}
			e.Sign = ""
			unsigned := encode(t, e)
			if !bytes.Equal(unsigned, v.UnsignedHex) {
				t.Errorf("unsigned\n%x\nwant\n%x", unsigned, v.UnsignedHex)
			}
			if v.Secret == "" {
				if v.Sign != "" {
					t.Error("signed without a secret")
				}
			} else if s := mac(v.Secret, unsigned); s != v.Sign {
				t.Errorf("sign %q, want %q", s, v.Sign)
			}
			checkEventData(t, e)
		})
	}
}

// checkEventData checks that event_data is the message that the type of the
// event calls for.
func checkEventData(t *testing.T, e *hookv1.MqEvent) {
	t.Helper()
	var data proto.Message = &messagev1.MessageRequest{}
	switch e.GetEventType() {
	case hookv1.EventType_CONNECT_ONLINE, hookv1.EventType_CONNECT_OFFLINE:
		data = &messagev1.ConnectAck{}
	}
	if err := proto.Unmarshal(e.GetEventData(), data); err != nil {
		t.Error(err)
	}
	if len(e.GetEventData()) > 0 && proto.Size(data) == len(data.ProtoReflect().GetUnknown()) {
		t.Errorf("event_data of a %s is no %s", e.GetEventType(), data.ProtoReflect().Descriptor().Name())
	}
}

// TestEveryFieldIsInAVector notices a field that was added without one.
func TestEveryFieldIsInAVector(t *testing.T) {
	seen := map[protoreflect.FullName]bool{}
	var walk func(m protoreflect.Message)
	walk = func(m protoreflect.Message) {
		m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			seen[fd.FullName()] = true
			switch {
			case fd.Message() == nil:
			case fd.IsList():
				for i := range v.List().Len() {
					walk(v.List().Get(i).Message())
				}
			default:
				walk(v.Message())
			}
			return true
		})
	}
	for _, file := range []string{"frames.json", "hooks.json", "events.json"} {
		for _, v := range load(t, file) {
			m := v.newMessage(t)
			if err := proto.Unmarshal(v.Hex, m); err != nil {
				t.Fatal(err)
			}
			walk(m.ProtoReflect())
		}
	}
	for _, file := range []protoreflect.FileDescriptor{messagev1.File_mics_message_v1_message_proto, hookv1.File_mics_hook_v1_hook_proto} {
		for i := range file.Messages().Len() {
			fields := file.Messages().Get(i).Fields()
			for j := range fields.Len() {
				if name := fields.Get(j).FullName(); !seen[name] {
					t.Errorf("no vector sets %s", name)
				}
			}
		}
	}
}

func TestTheFilesAreWhatTheScriptWrites(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("SKIPPED: no python3 to run testdata/vectors.py --check with")
	}
	if out, err := exec.CommandContext(t.Context(), python, filepath.Join("testdata", "vectors.py"), "--check").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
