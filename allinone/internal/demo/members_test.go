package demo

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestUserOf(t *testing.T) {
	for token, want := range map[string]string{
		"valid:ann": "ann", "valid:": "", "": "", "ann": "", "Valid:ann": "",
		"valid:" + strings.Repeat("x", maxUserID+1): "",
	} {
		user, refusal := userOf(token)
		if user != want || (refusal == "") != (want != "") {
			t.Errorf("%q: user %q, refusal %q", token, user, refusal)
		}
	}
}

func TestMembersAreBounded(t *testing.T) {
	m := newMembers(3)
	for _, u := range []string{"d", "b", "a", "d", "c"} { // d came again: b is the oldest
		m.login(u)
	}
	if got := m.all(); !slices.Equal(got, []string{"a", "c", "d"}) {
		t.Errorf("members %v", got)
	}
	for i := range 100 {
		m.login(fmt.Sprint(i))
	}
	if len(m.all()) != 3 || m.order.Len() != 3 {
		t.Errorf("members %v", m.all())
	}
}
