package hook

import (
	"bytes"
	"net/http"
	"testing"

	"google.golang.org/protobuf/proto"
)

// FuzzHandler: whatever is sent, the answer is a status of the documented ones,
// and the tenant's function runs only for what is signed.
func FuzzHandler(f *testing.F) {
	for _, v := range vectors(f, "hooks.json") {
		if v.Direction == "request" {
			f.Add(v.Hook, []byte(v.Hex))
		}
	}
	f.Add("auth", []byte("\x0a\x02\x22\x00\x0a\x00"))
	f.Add("nothing", []byte{})
	f.Fuzz(func(t *testing.T, name string, body []byte) {
		var seen Request
		o := recording(&seen)
		o.MaxAge = -1
		h := handler(t, o)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.URL.Path = "/" + name
		r.Header.Set("Content-Type", "application/protobuf")
		rec := serve(h, r)
		switch rec.Code {
		case http.StatusOK:
			// It verifies: signing it anew, from what was decoded or from the bytes,
			// must give the same.
			anew := proto.Clone(seen).(Request)
			if err := Sign(anew, secret); err != nil {
				t.Fatal(err)
			}
			plain := withoutSign(body, requestMeta, metaSign)
			if got := seen.GetMeta().GetSign(); got != anew.GetMeta().GetSign() && got != sum(secret, plain, requestSuffix(seen.GetMeta())) {
				t.Errorf("%x was taken", body)
			}
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusNotFound, http.StatusRequestEntityTooLarge:
			if seen != nil {
				t.Errorf("status %d after the tenant was asked", rec.Code)
			}
		default:
			t.Errorf("status %d: %s", rec.Code, rec.Body)
		}
	})
}

// FuzzWithoutSign: taking the sign away leaves a message that decodes to the
// same one without it.
func FuzzWithoutSign(f *testing.F) {
	for _, v := range vectors(f, "hooks.json") {
		f.Add([]byte(v.Hex))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		want := &CheckMessageRequest{}
		if proto.Unmarshal(raw, want) != nil {
			return
		}
		plain := withoutSign(raw, requestMeta, metaSign)
		if plain == nil {
			return
		}
		if want.Meta != nil {
			want.Meta.Sign = ""
		}
		got := &CheckMessageRequest{}
		if err := proto.Unmarshal(plain, got); err != nil || !proto.Equal(got, want) {
			t.Errorf("%x without its sign is %x: %v, %v, want %v", raw, plain, got, err, want)
		}
	})
}

func FuzzParseEvent(f *testing.F) {
	for _, v := range vectors(f, "events.json") {
		f.Add([]byte(v.Hex))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		e, err := ParseEvent(value, secret)
		if (e == nil) == (err == nil) {
			t.Fatalf("%v, %v", e, err)
		}
		if e == nil {
			return
		}
		if plain := withoutSign(value, eventSign); e.GetSign() != sum(secret, plain) {
			anew := proto.CloneOf(e.MqEvent)
			if err := SignEvent(anew, secret); err != nil || anew.GetSign() != e.GetSign() {
				t.Errorf("%x was taken", value)
			}
		}
		if e.Message != nil && e.Connection != nil {
			t.Errorf("two payloads: %v", e)
		}
	})
}
