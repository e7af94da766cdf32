package hook

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	hookv1 "github.com/mics-im/mics/proto/mics/hook/v1"
)

// Request is any hook request.
type Request interface {
	proto.Message
	GetMeta() *hookv1.HookMeta
}

// Field numbers of what carries a signature.
const (
	requestMeta = 1  // meta in every request
	metaSign    = 4  // sign in HookMeta
	eventSign   = 11 // sign in MqEvent
)

// Sign signs a request as the cluster does, for tests of a tenant's server. The
// request's meta must be set; its sign is replaced.
func Sign(req Request, secret string) error {
	m := req.GetMeta()
	if m == nil {
		return errors.New("hook: sign: the request has no meta")
	}
	if secret == "" {
		return ErrNoSecret
	}
	m.Sign = ""
	plain, err := canonical(req)
	if err != nil {
		return err
	}
	m.Sign = sum(secret, plain, requestSuffix(m))
	return nil
}

// requestSuffix is what the signature of a request covers beyond its bytes:
// request_id, then timestamp_ms as 8 bytes little-endian.
func requestSuffix(m *hookv1.HookMeta) []byte {
	return binary.LittleEndian.AppendUint64([]byte(m.GetRequestId()), uint64(m.GetTimestampMs()))
}

// canonical serializes with fields in number order and unknown ones last.
func canonical(m proto.Message) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("hook: encode: %w", err)
	}
	return b, nil
}

func sum(secret string, parts ...[]byte) string {
	mac := hmac.New(sha256.New, []byte(secret))
	for _, p := range parts {
		_, _ = mac.Write(p)
	}
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// authenticate checks the signature and the age of a request that was decoded
// from raw.
func (h *Handler) authenticate(ctx context.Context, raw []byte, req Request) error {
	m := req.GetMeta()
	secrets := []string{h.opts.Secret}
	if h.opts.Secrets != nil {
		var err error
		if secrets, err = h.opts.Secrets(ctx, m.GetTenantId()); err != nil {
			return fmt.Errorf("secrets: %w", err)
		}
	}
	secrets = known(secrets)
	if h.opts.AllowUnsigned && (m.GetSign() == "" || len(secrets) == 0) {
		return nil
	}
	switch {
	case len(secrets) == 0:
		return refuse(http.StatusUnauthorized, "no secret known for this tenant")
	case m.GetSign() == "":
		return refuse(http.StatusUnauthorized, "request is not signed")
	}
	ok, err := verify(secrets, m.GetSign(), requestSuffix(m), withoutSign(raw, requestMeta, metaSign), func() ([]byte, error) {
		c := proto.Clone(req).(Request)
		c.GetMeta().Sign = ""
		return canonical(c)
	})
	if err != nil {
		return err
	}
	if !ok {
		return refuse(http.StatusUnauthorized, "signature does not match")
	}
	if h.opts.MaxAge > 0 {
		// Sub saturates, so that no timestamp whatever comes round to now.
		if age := time.Since(time.UnixMilli(m.GetTimestampMs())); age > h.opts.MaxAge || age < -h.opts.MaxAge {
			return refuse(http.StatusUnauthorized, "timestamp_ms is more than %s from now", h.opts.MaxAge)
		}
	}
	return nil
}

// known drops empty secrets: with one of them everybody could sign.
func known(secrets []string) []string {
	out := make([]string, 0, len(secrets))
	for _, s := range secrets {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}

// verify compares sign, in constant time, with that of the received bytes
// (unsigned; nil: they cannot be told) and, failing that, with that of the
// message serialized anew. The first keeps what this version does not know where
// it was; the second serves senders that do not write fields in number order.
func verify(secrets []string, sign string, suffix, unsigned []byte, anew func() ([]byte, error)) (bool, error) {
	matches := func(plain []byte) bool {
		for _, s := range secrets {
			if hmac.Equal([]byte(sum(s, plain, suffix)), []byte(sign)) {
				return true
			}
		}
		return false
	}
	if unsigned != nil && matches(unsigned) {
		return true, nil
	}
	plain, err := anew()
	if err != nil {
		return false, err
	}
	return matches(plain), nil
}

// withoutSign returns the serialized message without the string field at the
// path, everything else byte for byte as it was. It returns nil where that is
// not well defined: bytes that are no message, or an embedded message in several
// pieces.
func withoutSign(raw []byte, path ...protowire.Number) []byte {
	out := make([]byte, 0, len(raw))
	pieces := 0
	for len(raw) > 0 {
		num, kind, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return nil
		}
		size := protowire.ConsumeFieldValue(num, kind, raw[n:])
		if size < 0 {
			return nil
		}
		field := raw[:n+size]
		raw = raw[n+size:]
		switch {
		case num != path[0] || kind != protowire.BytesType:
			out = append(out, field...)
		case len(path) > 1:
			inner, _ := protowire.ConsumeBytes(field[n:])
			stripped := withoutSign(inner, path[1:]...)
			if pieces++; pieces > 1 || stripped == nil {
				return nil
			}
			out = append(out, field[:n]...)
			out = protowire.AppendBytes(out, stripped)
		}
	}
	return out
}
