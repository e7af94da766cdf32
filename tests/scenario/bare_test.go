package scenario

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/protobuf/proto"

	messagev1 "github.com/mics-im/mics/proto/mics/message/v1"
	"github.com/mics-im/mics/tests/harness"
)

// within bounds every wait of these tests; it measures nothing.
const within = 60 * time.Second

// bare is a WebSocket of its own, for clients that behave badly: nothing is read
// or written unless the test does.
type bare struct {
	t    *testing.T
	ctx  context.Context
	conn *websocket.Conn
}

func dialBare(t *testing.T, c *harness.Cluster, user, gateway string) *bare {
	t.Helper()
	return dialBareVersion(t, c, user, gateway, "1")
}

// dialBareVersion is dialBare for a version of the protocol; with 2 nothing counts as seen
// that is not acknowledged.
func dialBareVersion(t *testing.T, c *harness.Cluster, user, gateway, version string) *bare {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	t.Cleanup(cancel)
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	q := url.Values{"tenantId": {c.Tenant().Name}, "token": {"user:" + user}, "deviceId": {"bare"}, "v": {version}}
	//nolint:bodyclose // Dial documents that the body need not be closed
	conn, _, err := websocket.Dial(ctx, c.URLs(gateway)[0]+"?"+q.Encode(), &websocket.DialOptions{HTTPClient: hc})
	if err != nil {
		t.Fatal(err)
	}
	conn.SetReadLimit(1 << 24)
	t.Cleanup(func() { _ = conn.CloseNow() })
	b := &bare{t, ctx, conn}
	if f := b.read(); f.GetConnectAck().GetCode() != 1000 {
		t.Fatalf("first frame %v", f)
	}
	return b
}

func (b *bare) read() *messagev1.ServerFrame {
	b.t.Helper()
	_, raw, err := b.conn.Read(b.ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	f := &messagev1.ServerFrame{}
	if err := proto.Unmarshal(raw, f); err != nil {
		b.t.Fatal(err)
	}
	return f
}

// closed reads to the end and wants it to be a close frame with the code.
func (b *bare) closed(code int) {
	b.t.Helper()
	for {
		if _, _, err := b.conn.Read(b.ctx); err != nil {
			if got := int(websocket.CloseStatus(err)); got != code {
				b.t.Errorf("ended with %d (%v), want %d", got, err, code)
			}
			return
		}
	}
}

// handshake asks for a WebSocket by plain HTTP and returns the refusal.
func handshake(t *testing.T, c *harness.Cluster, gateway string, header http.Header) (status int, retryAfter, body string) {
	t.Helper()
	at := strings.Replace(c.URLs(gateway)[0], "ws://", "http://", 1)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at+"?tenantId=acme&token=user:x&deviceId=d", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: within}
	res, err := hc.Do(req)
	if err != nil {
		return 0, "", err.Error()
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode == http.StatusSwitchingProtocols {
		return res.StatusCode, "", ""
	}
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header.Get("Retry-After"), string(text)
}

// upgrade are the headers of a good handshake.
func upgrade(more ...string) http.Header {
	h := http.Header{
		"Connection": {"Upgrade"}, "Upgrade": {"websocket"},
		"Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="},
	}
	for i := 0; i+1 < len(more); i += 2 {
		h.Set(more[i], more[i+1])
	}
	return h
}
