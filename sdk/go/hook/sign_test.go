package hook

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
)

func TestAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for maxAge, cases := range map[time.Duration]map[time.Duration]bool{
			0:           {0: true, 5 * time.Minute: true, 5*time.Minute + time.Millisecond: false, -5*time.Minute - time.Millisecond: false},
			time.Second: {time.Second: true, 1001 * time.Millisecond: false, -time.Second: true, -1001 * time.Millisecond: false},
			-1:          {24 * time.Hour: true, -24 * time.Hour: true},
		} {
			var seen Request
			o := recording(&seen)
			o.MaxAge = maxAge
			h := handler(t, o)
			for age, taken := range cases {
				m := meta()
				m.TimestampMs -= age.Milliseconds()
				rec := post(h, NameAuth, signed(t, &AuthRequest{Meta: m}, secret))
				if (rec.Code == http.StatusOK) != taken || !taken && rec.Code != http.StatusUnauthorized {
					t.Errorf("MaxAge %s, age %s: status %d %s", maxAge, age, rec.Code, rec.Body)
				}
			}
			for _, ts := range []int64{-1 << 63, 1<<63 - 1, 0} {
				m := meta()
				m.TimestampMs = ts
				if rec := post(h, NameAuth, signed(t, &AuthRequest{Meta: m}, secret)); (rec.Code == http.StatusOK) != (maxAge < 0) {
					t.Errorf("MaxAge %s, timestamp %d: status %d", maxAge, ts, rec.Code)
				}
			}
		}
	})
}

func TestSecrets(t *testing.T) {
	var seen Request
	o := recording(&seen)
	o.Secret = ""
	o.Secrets = func(_ context.Context, tenant string) ([]string, error) {
		switch tenant {
		case "acme":
			return []string{"", "old", "new"}, nil
		case "broken":
			return nil, errors.New("database: password is hunter2")
		case "careless":
			return []string{""}, nil
		}
		return nil, nil
	}
	h := handler(t, o)
	for _, c := range []struct {
		tenant, secret string
		want           int
	}{
		{"acme", "old", 200}, {"acme", "new", 200}, {"acme", "other", 401}, {"nobody", "old", 401}, {"broken", "old", 500}, {"careless", "x", 401},
	} {
		m := meta()
		m.TenantId = c.tenant
		rec := post(h, NameAuth, signed(t, &AuthRequest{Meta: m}, c.secret))
		if rec.Code != c.want || strings.Contains(rec.Body.String(), "hunter2") {
			t.Errorf("%s signed with %s: %d %s, want %d", c.tenant, c.secret, rec.Code, rec.Body, c.want)
		}
	}
	// An HMAC with an empty key is one that everybody can make.
	r := &AuthRequest{Meta: meta()}
	r.Meta.TenantId = "careless"
	r.Meta.Sign = sum("", encode(t, r), requestSuffix(r.Meta))
	if rec := post(h, NameAuth, encode(t, r)); rec.Code != http.StatusUnauthorized {
		t.Errorf("signed with nothing: %d", rec.Code)
	}
}

func TestAllowUnsigned(t *testing.T) {
	var seen Request
	o := recording(&seen)
	o.AllowUnsigned = true
	plain := encode(t, &AuthRequest{Meta: meta()})
	forged := signed(t, &AuthRequest{Meta: meta()}, "theirs")
	h := handler(t, o)
	if rec := post(h, NameAuth, plain); rec.Code != http.StatusOK {
		t.Errorf("unsigned: %d", rec.Code)
	}
	if rec := post(h, NameAuth, forged); rec.Code != http.StatusUnauthorized {
		t.Errorf("wrongly signed beside a secret: %d", rec.Code)
	}
	o.Secret = ""
	h = handler(t, o)
	for _, body := range [][]byte{plain, forged, {}} {
		if rec := post(h, NameAuth, body); rec.Code != http.StatusOK {
			t.Errorf("without any secret: %d", rec.Code)
		}
	}
}

// TestSerializationsOfOthers: what is verified are the received bytes, with
// unknown fields wherever they are, and failing that the message itself.
func TestSerializationsOfOthers(t *testing.T) {
	var seen Request
	h := handler(t, recording(&seen))
	m := meta()
	mark := func(b []byte, num protowire.Number) []byte {
		return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), fmt.Sprint("unknown ", num))
	}
	field := func(b []byte, num protowire.Number, v []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
	}
	// A later version: unknown fields between the known ones, in both messages.
	build := func(sign string) []byte {
		inner := field(nil, 1, []byte(m.TenantId))
		inner = field(inner, 2, []byte(m.RequestId))
		inner = protowire.AppendVarint(protowire.AppendTag(inner, 3, protowire.VarintType), uint64(m.TimestampMs))
		if sign != "" {
			inner = field(inner, 4, []byte(sign))
		}
		inner = mark(inner, 50)
		inner = field(inner, 5, []byte("trace"))
		return field(mark(mark(field(mark(nil, 70), 1, inner), 60), 61), 2, []byte("token"))
	}
	if rec := post(h, NameAuth, build(sum(secret, build(""), requestSuffix(m)))); rec.Code != http.StatusOK {
		t.Errorf("unknown fields anywhere: %d %s", rec.Code, rec.Body)
	}
	// Fields out of order, signed as the contract says: in number order.
	r := &AuthRequest{Meta: m, Token: "token", DeviceId: "d"}
	if err := Sign(r, secret); err != nil {
		t.Fatal(err)
	}
	outOfOrder := field(field(field(nil, 3, []byte("d")), 2, []byte("token")), 1, encode(t, m))
	if rec := post(h, NameAuth, outOfOrder); rec.Code != http.StatusOK {
		t.Errorf("out of order: %d %s", rec.Code, rec.Body)
	}
	// meta in two pieces, which decoders put together.
	first, second := &hookv1.HookMeta{TenantId: m.TenantId, RequestId: m.RequestId}, &hookv1.HookMeta{TimestampMs: m.TimestampMs, Sign: m.Sign}
	pieces := field(field(field(field(nil, 1, encode(t, first)), 1, encode(t, second)), 2, []byte("token")), 3, []byte("d"))
	if rec := post(h, NameAuth, pieces); rec.Code != http.StatusOK {
		t.Errorf("in pieces: %d %s", rec.Code, rec.Body)
	}
	// An added field is not covered by the old signature.
	if rec := post(h, NameAuth, mark(encode(t, r), 60)); rec.Code != http.StatusUnauthorized {
		t.Errorf("something was added: %d", rec.Code)
	}
}
