package testkit

import (
	"bufio"
	"slices"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

func TestReadReply(t *testing.T) {
	for in, want := range map[string][]string{
		"+OK\r\n":                             {"OK"},
		":12\r\n":                             {"12"},
		"$5\r\na\r\nbc\r\n":                   {"a\r\nbc"},
		"$0\r\n\r\n":                          {""},
		"$-1\r\n":                             {""},
		"*3\r\n$1\r\na\r\n*1\r\n:1\r\n+b\r\n": {"a", "1", "b"},
		"*0\r\n":                              nil,
	} {
		if got, err := readReply(bufio.NewReader(strings.NewReader(in))); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "\r\n", "-ERR no\r\n", "$x\r\n", "?1\r\n", "$5\r\nab", "*2\r\n+a\r\n"} {
		if got, err := readReply(bufio.NewReader(strings.NewReader(in))); err == nil {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestAKilledRedisComesBackEmpty(t *testing.T) {
	s := StartRedis(t)
	s.must(t, "SET", "k", "v")
	if got := s.must(t, "GET", "k"); got[0] != "v" {
		t.Fatalf("%q", got)
	}
	s.Kill()
	if _, err := s.Do("PING"); err == nil {
		t.Fatal("a dead server answered")
	}
	s.Restart(t)
	if got := s.must(t, "GET", "k"); got[0] != "" {
		t.Fatalf("%q", got)
	}
}
