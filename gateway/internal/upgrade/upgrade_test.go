package upgrade

import (
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"
)

func handshake(query string, protocols ...string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/ws?"+query, nil)
	for _, p := range protocols {
		r.Header.Add("Sec-WebSocket-Protocol", p)
	}
	return r
}

func query(tenant, token, device string) string {
	return url.Values{"tenantId": {tenant}, "token": {token}, "deviceId": {device}}.Encode()
}

// anew is a request that goes on with nothing.
func anew(tenant, token, device string, version uint32, protocol string) request {
	return request{tenant: tenant, token: token, device: device, version: version, protocol: protocol}
}

func TestParse(t *testing.T) {
	long := func(n int) string { return strings.Repeat("x", n) }
	b64 := func(s string) string { return tokenPrefix + base64.RawURLEncoding.EncodeToString([]byte(s)) }
	for name, c := range map[string]struct {
		r    *http.Request
		want request
		no   refusal
	}{
		"V1":              {handshake(query("t", "k", "d")), anew("t", "k", "d", 1, ""), refusal{}},
		"V2":              {handshake(query("t", "k", "d") + "&v=2"), anew("t", "k", "d", 2, ""), refusal{}},
		"a later version": {handshake(query("t", "k", "d") + "&v=7"), anew("t", "k", "d", 2, ""), refusal{}},
		"no version":      {handshake(query("t", "k", "d") + "&v=x"), anew("t", "k", "d", 1, ""), refusal{}},
		"longest":         {handshake(query(long(128), long(4096), long(128))), anew(long(128), long(4096), long(128), 1, ""), refusal{}},
		"beyond ASCII":    {handshake(query("tänant", "k", "电话")), anew("tänant", "k", "电话", 1, ""), refusal{}},
		"resume": {handshake(query("t", "k", "d") + "&v=2&resume=abc-_&lastSeq=18446744073709551615"),
			request{tenant: "t", token: "k", device: "d", version: 2, resume: "abc-_", lastSeq: 1<<64 - 1}, refusal{}},
		"resume, home known":   {handshake(query("t", "k", "d") + "&v=2&home=00c0ffee00000001&resume=a"), request{tenant: "t", token: "k", device: "d", version: 2, resume: "a", home: 0xc0ffee00000001}, refusal{}},
		"home of no use":       {handshake(query("t", "k", "d") + "&v=2&home=router-1&resume=a"), request{tenant: "t", token: "k", device: "d", version: 2, resume: "a"}, refusal{}},
		"resume, nothing seen": {handshake(query("t", "k", "d") + "&v=2&resume=a"), request{tenant: "t", token: "k", device: "d", version: 2, resume: "a"}, refusal{}},
		"V1 resumes nothing":   {handshake(query("t", "k", "d") + "&resume=a&lastSeq=x"), anew("t", "k", "d", 1, ""), refusal{}},
		"lastSeq alone":        {handshake(query("t", "k", "d") + "&v=2&lastSeq=x"), anew("t", "k", "d", 2, ""), refusal{}},
		"lastSeq of no use":    {handshake(query("t", "k", "d") + "&v=2&resume=a&lastSeq=-1"), request{}, refusal{4001, "invalid lastSeq"}},
		"long resume token":    {handshake(query("t", "k", "d") + "&v=2&resume=" + long(2049)), request{}, refusal{4001, "invalid resume token"}},
		"garbled resume token": {handshake(query("t", "k", "d") + "&v=2&resume=a%00"), request{}, refusal{4001, "invalid resume token"}},
		"token as protocol": {handshake("tenantId=t&deviceId=d", "mics.v2, "+b64("k?k")),
			anew("t", "k?k", "d", 2, "mics.v2"), refusal{}},
		"token as protocol, header twice": {handshake("tenantId=t&deviceId=d", b64("k")+"==", "mics.v2"),
			anew("t", "k", "d", 2, "mics.v2"), refusal{}},
		"protocol's token wins": {handshake(query("t", "old", "d"), "mics.v2", b64("k")), anew("t", "k", "d", 2, "mics.v2"), refusal{}},
		"unknown protocol":      {handshake(query("t", "k", "d"), "chat"), anew("t", "k", "d", 1, ""), refusal{}},

		"no tenant":        {handshake(query("", "k", "d")), request{}, refusal{4002, "invalid tenant"}},
		"long tenant":      {handshake(query(long(129), "k", "d")), request{}, refusal{4002, "invalid tenant"}},
		"tenant not UTF-8": {handshake("tenantId=%ff&token=k&deviceId=d"), request{}, refusal{4002, "invalid tenant"}},
		"NUL in tenant":    {handshake(query("a\x00b", "k", "d")), request{}, refusal{4002, "invalid tenant"}},
		"no token":         {handshake(query("t", "", "d")), request{}, refusal{4001, "missing token"}},
		"long token":       {handshake(query("t", long(4097), "d")), request{}, refusal{4001, "token too long"}},
		"unprintable":      {handshake(query("t", "a\nb", "d")), request{}, refusal{4001, "invalid token"}},
		"garbled query":    {handshake("tenantId=t&deviceId=d&token=%zz"), request{}, refusal{4001, "invalid token"}},
		"garbled protocol": {handshake("tenantId=t&deviceId=d", "mics.v2", tokenPrefix+"!"), request{}, refusal{4001, "invalid token"}},
		"no device":        {handshake(query("t", "k", "")), request{}, refusal{1008, "invalid deviceId"}},
		"long device":      {handshake(query("t", "k", long(129))), request{}, refusal{1008, "invalid deviceId"}},
		"device with ESC":  {handshake(query("t", "k", "\x1b[2J")), request{}, refusal{1008, "invalid deviceId"}},
	} {
		got, no := parse(c.r)
		if no != c.no || no.code == 0 && got != c.want {
			t.Errorf("%s: got %+v, %+v", name, got, no)
		}
	}
}

func TestOrigins(t *testing.T) {
	list := []string{"https://app.example.com", "http://localhost:3000"}
	for origin, want := range map[string]bool{
		"": true, "https://app.example.com": true, "HTTPS://App.Example.com": true, "http://localhost:3000": true,
		"https://example.com": false, "https://app.example.com.evil.test": false, "null": false, "http://localhost": false,
	} {
		if got := originAllowed(list, origin); got != want {
			t.Errorf("%q: %v", origin, got)
		}
		if !originAllowed(nil, origin) || !originAllowed([]string{"*"}, origin) {
			t.Errorf("%q is refused where all are allowed", origin)
		}
	}
	for s, ok := range map[string]bool{
		"*": true, "https://a": true, "http://a:1": true, "a.com": false, "https://a/": false, "https://": false, "https://*.a": false,
	} {
		if (CheckOrigin(s) == nil) != ok {
			t.Errorf("CheckOrigin(%q): %v", s, CheckOrigin(s))
		}
	}
}

func TestLimiter(t *testing.T) {
	now := time.Unix(1000, 0)
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	l := newLimiter(3, 2)
	for i, c := range []struct {
		from netip.Addr
		want verdict
	}{{a, allowed}, {a, allowed}, {a, perAddress}, {b, allowed}, {b, perNode}} {
		v, wait := l.allow(c.from, now)
		if v != c.want || (wait > 0) != (v != allowed) {
			t.Fatalf("step %d: %q, wait %v", i, v, wait)
		}
	}
	// Being refused costs nothing: after the wait there is room again.
	if v, _ := l.allow(a, now.Add(time.Second)); v != allowed {
		t.Errorf("after a second: %q", v)
	}
	if v, _ := newLimiter(0, 0).allow(a, now); v != allowed {
		t.Error("no limit is none")
	}
}

func TestLimiterForgetsTheOldestAddress(t *testing.T) {
	l := newLimiter(0, 1)
	l.max = 2
	addr := func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, i}) }
	now := time.Unix(1000, 0)
	for _, c := range []struct {
		from byte
		want verdict
	}{{1, allowed}, {2, allowed}, {1, perAddress}, {3, allowed}, {1, perAddress}, {2, allowed}} {
		if v, _ := l.allow(addr(c.from), now); v != c.want {
			t.Fatalf("%d: %q", c.from, v)
		}
	}
	if len(l.table) != 2 || l.order.Len() != 2 {
		t.Errorf("%d addresses, %d in order", len(l.table), l.order.Len())
	}
}

func TestClientAddr(t *testing.T) {
	proxies, err := ParseProxies([]string{"10.0.0.0/8", "fd00::1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		remote, forwarded, want string
		trusted                 []netip.Prefix
	}{
		{"1.2.3.4:5", "", "1.2.3.4", nil},
		{"[::ffff:1.2.3.4]:5", "", "1.2.3.4", nil},
		{"[2001:db8:1:2:3:4:5:6]:5", "", "2001:db8:1:2::", nil},
		{"10.0.0.1:5", "9.9.9.9", "10.0.0.1", nil},
		{"1.2.3.4:5", "9.9.9.9", "1.2.3.4", proxies},
		{"10.0.0.1:5", "9.9.9.9", "9.9.9.9", proxies},
		{"10.0.0.1:5", "6.6.6.6, 9.9.9.9, 10.1.1.1", "9.9.9.9", proxies},
		{"10.0.0.1:5", "10.2.2.2, 10.1.1.1", "10.2.2.2", proxies},
		{"10.0.0.1:5", "nonsense", "10.0.0.1", proxies},
		{"10.0.0.1:5", "", "10.0.0.1", proxies},
		{"[fd00::1]:5", "2001:db8:1:2:3::9", "2001:db8:1:2::", proxies},
	} {
		r := httptest.NewRequest(http.MethodGet, "/ws", nil)
		r.RemoteAddr = c.remote
		if c.forwarded != "" {
			r.Header.Set("X-Forwarded-For", c.forwarded)
		}
		if got := clientAddr(r, c.trusted); got.String() != c.want {
			t.Errorf("%s for %q: %v, want %s", c.remote, c.forwarded, got, c.want)
		}
	}
	if _, err := ParseProxies([]string{"10.0.0.0/99"}); err == nil {
		t.Error("a prefix that is none")
	}
}
