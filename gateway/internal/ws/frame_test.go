package ws

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestHeaders(t *testing.T) {
	for _, tc := range []struct {
		size int
		want string
	}{
		{0, "\x82\x00"},
		{1, "\x82\x01"},
		{125, "\x82\x7d"},
		{126, "\x82\x7e\x00\x7e"},
		{65535, "\x82\x7e\xff\xff"},
		{65536, "\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00"},
		{1 << 30, "\x82\x7f\x00\x00\x00\x00\x40\x00\x00\x00"},
	} {
		got := AppendHeader([]byte("x"), Binary, tc.size)
		if string(got) != "x"+tc.want {
			t.Errorf("size %d: % x, want % x", tc.size, got[1:], tc.want)
		}
		if HeaderSize(tc.size) != len(tc.want) {
			t.Errorf("size %d: HeaderSize %d, want %d", tc.size, HeaderSize(tc.size), len(tc.want))
		}
	}
	// RFC 6455, section 5.7.
	if got := AppendFrame(nil, Ping, []byte("Hello")); string(got) != "\x89\x05Hello" {
		t.Errorf("ping: % x", got)
	}
}

func TestCloseFrames(t *testing.T) {
	long := strings.Repeat("x", MaxReason)
	for _, tc := range []struct {
		code   int
		reason string
		want   string // payload
	}{
		{1000, "", "\x03\xe8"},
		{4200, "server draining", "\x10\x68server draining"},
		{CodeNone, "ignored", ""},
		{CodeAbnormal, "ignored", ""},
		{4001, long, "\x0f\xa1" + long},
		{4001, long + "y", "\x0f\xa1" + long},
		{4001, long[:122] + "é", "\x0f\xa1" + long[:122]}, // not half of it
		{4001, long[:121] + "é", "\x0f\xa1" + long[:121] + "é"},
		{4001, long[:120] + "𝄞", "\x0f\xa1" + long[:120]},
		{4001, "a\xffb", "\x0f\xa1a\uFFFDb"},
		{4001, strings.Repeat("\xff", 1000), "\x0f\xa1\uFFFD"},
	} {
		got := AppendClose([]byte("pre"), tc.code, tc.reason)
		if want := append([]byte("pre\x88"), append([]byte{byte(len(tc.want))}, tc.want...)...); !bytes.Equal(got, want) {
			t.Errorf("%d %q: %q, want %q", tc.code, tc.reason, got, want)
			continue
		}
		code, reason, err := ParseClose(got[5:])
		if err != nil {
			t.Errorf("%d %q: not readable: %v", tc.code, tc.reason, err)
		}
		if tc.want != "" && (code != tc.code || reason != tc.want[2:]) || tc.want == "" && code != CodeNone {
			t.Errorf("%d %q came back as %d %q", tc.code, tc.reason, code, reason)
		}
	}
}

func TestCloseCodes(t *testing.T) {
	valid := func(code int) bool {
		switch code {
		case 1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014:
			return true
		}
		return code >= 3000 && code <= 4999
	}
	for code := range 1 << 16 {
		got, _, err := ParseClose(binary.BigEndian.AppendUint16(nil, uint16(code)))
		if valid(code) != (err == nil) || err == nil && got != code {
			t.Fatalf("close code %d: got %d, %v", code, got, err)
		}
		if err != nil {
			wantCode(t, err, CodeProtocol)
		}
	}
	_, _, err := ParseClose([]byte{3})
	wantCode(t, err, CodeProtocol)
	for _, bad := range []string{"\xff", "ok\xc3", "\xed\xa0\x80", "\xf5\x80\x80\x80"} {
		_, _, err = ParseClose([]byte("\x03\xe8" + bad))
		wantCode(t, err, CodeInvalid)
	}
	if code, reason, err := ParseClose([]byte("\x03\xe8hé")); code != 1000 || reason != "hé" || err != nil {
		t.Fatal(code, reason, err)
	}
}

func FuzzCutReason(f *testing.F) {
	f.Add("server draining")
	f.Add(strings.Repeat("é", 80))
	f.Fuzz(func(t *testing.T, s string) {
		got := CutReason(s)
		if len(got) > MaxReason || !utf8.ValidString(got) {
			t.Fatalf("%q does not fit", got)
		}
		if utf8.ValidString(s) && !strings.HasPrefix(s, got) {
			t.Fatalf("%q is not the start of %q", got, s)
		}
		if utf8.ValidString(s) && len(s) > MaxReason && len(got) <= MaxReason-utf8.UTFMax {
			t.Fatalf("cut more than needed: %d bytes", len(got))
		}
	})
}

func TestMask(t *testing.T) {
	plain := pattern(100)
	for pos := range 9 {
		for n := range 40 {
			got := bytes.Clone(plain[:n])
			mask(got, testKey, pos)
			for i := range got {
				if got[i] != plain[i]^testKey[(pos+i)%4] {
					t.Fatalf("at %d of %d, starting at %d", i, n, pos)
				}
			}
		}
	}
}
