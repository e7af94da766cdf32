package token

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/internal/testkit"
	"github.com/mics-im/mics/router/internal/route"
)

func TestMain(m *testing.M) { testkit.Main(m) }

var claims = Claims{
	Kind:     Migrate,
	Key:      route.DeviceKey{UserKey: route.UserKey{Tenant: "acme", User: "änn"}, Device: "phone"},
	Loc:      route.Location{Node: route.NodeRef{ID: "g1", Incarnation: 1 << 50}, Session: 7},
	Epoch:    3,
	Deadline: time.UnixMilli(1_700_000_000_123),
}

func key(b byte) string {
	return base64.StdEncoding.EncodeToString([]byte(strings.Repeat(string(rune(b)), keySize)))
}

func parsed(t *testing.T, s string) *Keys {
	t.Helper()
	k, err := Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSealAndOpen(t *testing.T) {
	k := Random()
	resume := claims
	resume.Kind, resume.Deadline = Resume, time.Time{}
	long := claims
	name := strings.Repeat("ü", 64)
	long.Key = route.DeviceKey{UserKey: route.UserKey{Tenant: name, User: name}, Device: name}
	long.Loc.Node.ID = name
	for _, c := range []Claims{claims, resume, long} {
		s := k.Seal(c)
		if s == k.Seal(c) {
			t.Error("the same token twice")
		}
		if len(s) > MaxSize || strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			t.Errorf("token of %d characters: %q", len(s), s)
		}
		if got, err := k.Open(s); err != nil || got != c {
			t.Errorf("got %+v, %v", got, err)
		}
	}
}

func TestWhatIsNotAToken(t *testing.T) {
	k := Random()
	s := k.Seal(claims)
	for i := range len(s) {
		c := byte('A')
		if s[i] == c {
			c = 'B'
		}
		if _, err := k.Open(s[:i] + string(c) + s[i+1:]); err == nil {
			t.Fatalf("character %d was altered and nobody noticed", i)
		}
		if _, err := k.Open(s[:i]); !errors.Is(err, ErrInvalid) {
			t.Fatalf("the first %d characters: %v", i, err)
		}
	}
	for _, s := range []string{"", "x", "$", s + "A", strings.Repeat("A", MaxSize+4)} {
		if _, err := k.Open(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", s, err)
		}
	}
	if _, err := Random().Open(s); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("another process's token: %v", err)
	}
	if _, err := parsed(t, "a:"+key('x')).Open(parsed(t, "a:"+key('y')).Seal(claims)); !errors.Is(err, ErrInvalid) {
		t.Errorf("another key of the same id: %v", err)
	}
}

func TestKeysAreExchangedInSteps(t *testing.T) {
	before, both, after := parsed(t, "old:"+key('o')), parsed(t, "new:"+key('n')+", old:"+key('o')), parsed(t, "new:"+key('n'))
	if _, err := both.Open(before.Seal(claims)); err != nil {
		t.Errorf("an old token: %v", err)
	}
	if _, err := after.Open(both.Seal(claims)); err != nil {
		t.Errorf("a new token: %v", err)
	}
	if _, err := after.Open(before.Seal(claims)); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("a token of a key that is gone: %v", err)
	}
}

func TestParse(t *testing.T) {
	raw := strings.Repeat("\xfb\xff", keySize/2) // + and / in base64
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if _, err := parsed(t, "a:"+enc.EncodeToString([]byte(raw))).Open(parsed(t, "a:"+base64.StdEncoding.EncodeToString([]byte(raw))).Seal(claims)); err != nil {
			t.Error(err)
		}
	}
	secret := strings.Repeat("s", 20)
	for _, s := range []string{"", "a", ":" + key('x'), "a:", "a:" + secret, "a:" + key('x') + ",", "a:" + key('x') + ",a:" + key('y'), "a:$"} {
		if _, err := Parse(s); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// FuzzOpen: what somebody makes up is refused, and what parses says the same when
// it is written again.
func FuzzOpen(f *testing.F) {
	k, err := Parse("a:" + key('x'))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(k.Seal(claims), claims.append(nil))
	f.Add("", []byte{})
	f.Add(strings.Repeat("A", 100), []byte{1, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1})
	f.Fuzz(func(t *testing.T, token string, plain []byte) {
		if c, err := k.Open(token); err == nil {
			if again, err := k.Open(k.Seal(c)); err != nil || again != c {
				t.Errorf("%+v became %+v, %v", c, again, err)
			}
		}
		c, err := parse(plain)
		if err != nil {
			return
		}
		if again, err := parse(c.append(nil)); err != nil || again != c {
			t.Errorf("%+v became %+v, %v", c, again, err)
		}
	})
}
