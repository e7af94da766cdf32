package hook

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os"
	"testing"

	"google.golang.org/protobuf/proto"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
)

// vector is an entry of proto/testdata/*.json, whose README.md explains it.
type vector struct {
	Name        string   `json:"name"`
	Hook        string   `json:"hook"`
	Direction   string   `json:"direction"`
	Message     string   `json:"message"`
	Secret      string   `json:"secret"`
	Sign        string   `json:"sign"`
	Hex         hexBytes `json:"hex"`
	UnsignedHex hexBytes `json:"unsigned_hex"`
}

type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

func vectors(t testing.TB, file string) []vector {
	t.Helper()
	raw, err := os.ReadFile("../../../proto/testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var vs []vector
	if err := json.Unmarshal(raw, &vs); err != nil {
		t.Fatal(err)
	}
	if len(vs) == 0 {
		t.Fatalf("%s has no vectors", file)
	}
	return vs
}

// TestGoldenRequests: the handler takes what the contract's vectors say a
// router sends, and nothing of it that was tampered with.
func TestGoldenRequests(t *testing.T) {
	requests := 0
	for _, v := range vectors(t, "hooks.json") {
		if v.Direction != "request" {
			continue
		}
		requests++
		t.Run(v.Name, func(t *testing.T) {
			if got := withoutSign(v.Hex, requestMeta, metaSign); !bytes.Equal(got, v.UnsignedHex) {
				t.Errorf("unsigned %x, want %x", got, v.UnsignedHex)
			}
			var seen Request
			o := recording(&seen)
			o.Secret, o.MaxAge = v.Secret, -1
			h := handler(t, o)
			if rec := post(h, v.Hook, v.Hex); rec.Code != http.StatusOK {
				t.Fatalf("status %d: %s", rec.Code, rec.Body)
			}
			want := h.hooks[v.Hook].newRequest()
			if err := proto.Unmarshal(v.Hex, want); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(seen, want) {
				t.Errorf("the tenant got %v, want %v", seen, want)
			}
			if err := Sign(want, v.Secret); err != nil || want.GetMeta().GetSign() != v.Sign {
				t.Errorf("Sign makes %q, %v, want %q", want.GetMeta().GetSign(), err, v.Sign)
			}
			for i := range v.Hex {
				forged := bytes.Clone(v.Hex)
				forged[i] ^= 1
				if post(h, v.Hook, forged).Code == http.StatusOK {
					t.Errorf("taken with byte %d changed", i)
				}
			}
			o.Secret += "x"
			if rec := post(handler(t, o), v.Hook, v.Hex); rec.Code != http.StatusUnauthorized {
				t.Errorf("status %d with another secret", rec.Code)
			}
		})
	}
	if requests < 4 {
		t.Errorf("only %d requests among the vectors", requests)
	}
}

func TestGoldenEvents(t *testing.T) {
	for _, v := range vectors(t, "events.json") {
		t.Run(v.Name, func(t *testing.T) {
			if got := withoutSign(v.Hex, eventSign); !bytes.Equal(got, v.UnsignedHex) {
				t.Errorf("unsigned %x, want %x", got, v.UnsignedHex)
			}
			want := &hookv1.MqEvent{}
			if err := proto.Unmarshal(v.Hex, want); err != nil {
				t.Fatal(err)
			}
			got, err := DecodeEvent(v.Hex)
			if err != nil || !proto.Equal(got.MqEvent, want) {
				t.Fatalf("decoded %v, %v", got, err)
			}
			if connection := want.GetEventType() <= ConnectOffline; (got.Connection != nil) != connection || (got.Message != nil) == connection {
				t.Errorf("%s has the payload %v %v", got.GetEventType(), got.Connection, got.Message)
			}
			if v.Secret == "" {
				if _, err := ParseEvent(v.Hex, v.Secret); err != ErrNoSecret { //nolint:errorlint // this very error
					t.Errorf("without a secret: %v", err)
				}
				if _, err := ParseEvent(v.Hex, "any"); err == nil {
					t.Error("an unsigned event is taken for a signed one")
				}
				return
			}
			if _, err := ParseEvent(v.Hex, v.Secret); err != nil {
				t.Error(err)
			}
			if err := SignEvent(want, v.Secret); err != nil || want.GetSign() != v.Sign {
				t.Errorf("SignEvent makes %q, %v, want %q", want.GetSign(), err, v.Sign)
			}
			for i := range v.Hex {
				forged := bytes.Clone(v.Hex)
				forged[i] ^= 1
				if _, err := ParseEvent(forged, v.Secret); err == nil {
					t.Errorf("taken with byte %d changed", i)
				}
			}
		})
	}
}
