package upgrade

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mics-im/mics/gateway/internal/ws"
	"github.com/mics-im/mics/internal/ring"
)

// Limits of what a client says of itself, in bytes.
const (
	maxTenant = 128
	maxToken  = 4096
	maxDevice = 128
	maxResume = 2048
)

// Close codes of a refusal (CONTRACT section 1.3).
const (
	codeUnauthorized  = 4001
	codeInvalidTenant = 4002
)

// protocolV2 is the subprotocol that the server selects; tokenPrefix comes before
// a token in base64url among those that the client offers.
const (
	protocolV2  = "mics.v2"
	tokenPrefix = "mics.token."
)

// request is what a client asks for.
type request struct {
	tenant, token, device string
	version               uint32
	// resume names the session to go on with, empty: none; of V2 clients only.
	resume  string
	lastSeq uint64
	// home is the user's place among the routers, as the gateway says that sent the
	// client here; 0: not known. It only says whom to ask first.
	home uint64
	// protocol is the subprotocol to select.
	protocol string
	// began is when its header had been read.
	began time.Time
}

// refusal is a close code and its text; the zero value is none.
type refusal struct {
	code   int
	reason string
}

// parse reads a handshake. A refusal is to be sent after the upgrade, so that
// browsers can see it.
func parse(r *http.Request) (request, refusal) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	req := request{tenant: q.Get("tenantId"), token: q.Get("token"), device: q.Get("deviceId"), version: 1}
	if v, verr := strconv.ParseUint(q.Get("v"), 10, 32); verr == nil && v >= 2 {
		req.version = 2 // a later client is told in the ConnectAck
	}
	badToken := err != nil && req.token == ""
	for p := range offered(r.Header) {
		if p == protocolV2 {
			req.version, req.protocol = 2, protocolV2
		}
		if text, ok := strings.CutPrefix(p, tokenPrefix); ok {
			b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
			req.token, badToken = string(b), err != nil
		}
	}
	var badSeq error
	if req.version == 2 {
		req.resume = q.Get("resume")
		req.home = ring.ParseHint(q.Get(ring.HomeParam))
		if text := q.Get("lastSeq"); text != "" && req.resume != "" {
			req.lastSeq, badSeq = strconv.ParseUint(text, 10, 64)
		}
	}
	switch {
	case !sound(req.tenant, maxTenant):
		return req, refusal{codeInvalidTenant, "invalid tenant"}
	case badToken:
		return req, refusal{codeUnauthorized, "invalid token"}
	case req.token == "":
		return req, refusal{codeUnauthorized, "missing token"}
	case len(req.token) > maxToken:
		return req, refusal{codeUnauthorized, "token too long"}
	case !sound(req.token, maxToken):
		return req, refusal{codeUnauthorized, "invalid token"}
	case !sound(req.device, maxDevice):
		return req, refusal{ws.CodePolicy, "invalid deviceId"}
	case req.resume != "" && !sound(req.resume, maxResume):
		return req, refusal{codeUnauthorized, "invalid resume token"}
	case badSeq != nil:
		return req, refusal{codeUnauthorized, "invalid lastSeq"}
	}
	return req, refusal{}
}

// offered yields the subprotocols of the request.
func offered(h http.Header) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for _, v := range h.Values("Sec-Websocket-Protocol") {
			for p := range strings.SplitSeq(v, ",") {
				if p = strings.TrimSpace(p); p != "" && !yield(p) {
					return
				}
			}
		}
	}
}

// sound: not empty, not too long, printable.
func sound(s string, limit int) bool {
	if s == "" || len(s) > limit || !utf8.ValidString(s) {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// originAllowed: a request without an origin is no browser's. "*" and an empty
// list allow all.
func originAllowed(allowed []string, origin string) bool {
	if len(allowed) == 0 || origin == "" {
		return true
	}
	for _, a := range allowed {
		if a == "*" || strings.EqualFold(a, origin) {
			return true
		}
	}
	return false
}

// CheckOrigin says what is wrong with an element of ALLOWED_ORIGINS.
func CheckOrigin(s string) error {
	if s == "*" {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil || strings.Contains(s, "*") || u.Scheme == "" || u.Host == "" || u.Scheme+"://"+u.Host != s {
		return errOrigin
	}
	return nil
}
