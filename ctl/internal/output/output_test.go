package output

import (
	"testing"
	"time"
	"unicode"
)

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 59 * time.Second: "59s", 60 * time.Second: "1m", 303 * time.Second: "5m3s",
		time.Hour: "1h", 25*time.Hour - time.Second: "1d", 26 * time.Hour: "1d2h", 90 * time.Minute: "1h30m", 7 * 24 * time.Hour: "7d",
	} {
		if got := Age(d); got != want {
			t.Errorf("Age(%v) = %q, want %q", d, got, want)
		}
	}
}

func FuzzCleanIsPrintable(f *testing.F) {
	for _, s := range []string{"", "alice", "ann\x1b[2J", "\xff\xfe", "日本", "\u202e", "a\nb\tc", `say "hi"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range Clean(s) {
			if !unicode.IsPrint(r) {
				t.Fatalf("Clean(%q) holds %q", s, r)
			}
		}
	})
}

func TestCleanKeepsWhatIsHarmless(t *testing.T) {
	for _, s := range []string{"", "alice", "日本 x", `say "hi" \o/`} {
		if got := Clean(s); got != s {
			t.Errorf("Clean(%q) = %q", s, got)
		}
	}
}
