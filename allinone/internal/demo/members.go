// Package demo is the tenant that mics-dev serves when it is given none: it
// lets everybody in who asks nicely and has one group with everybody in it.
package demo

import (
	"container/list"
	"slices"
	"strings"
	"sync"
)

// Names and limits of the demo tenant.
const (
	TenantID = "demo"
	// Group is the one group; its members are all users who have logged in.
	Group = "demo"
	// tokenPrefix comes before the user id in a valid token.
	tokenPrefix = "valid:"
	// maxMembers bounds the group: whoever logged in longest ago goes.
	maxMembers = 10_000
	maxUserID  = 128
)

// userOf returns whom a token stands for; the reason why not otherwise.
func userOf(token string) (user, refusal string) {
	user, ok := strings.CutPrefix(token, tokenPrefix)
	switch {
	case !ok || user == "":
		return "", "the demo tenant's tokens are valid:USER"
	case len(user) > maxUserID:
		return "", "user id too long"
	}
	return user, ""
}

// members are the users who have logged in, in order of their last login. Safe
// for concurrent use.
type members struct {
	mu    sync.Mutex
	limit int
	order *list.List // of string, oldest login first
	at    map[string]*list.Element
}

func newMembers(limit int) *members {
	return &members{limit: limit, order: list.New(), at: map[string]*list.Element{}}
}

func (m *members) login(user string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e, ok := m.at[user]; ok {
		m.order.MoveToBack(e)
		return
	}
	m.at[user] = m.order.PushBack(user)
	if m.order.Len() > m.limit {
		oldest := m.order.Remove(m.order.Front()).(string)
		delete(m.at, oldest)
	}
}

// all returns the members, sorted.
func (m *members) all() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	users := make([]string, 0, len(m.at))
	for u := range m.at {
		users = append(users, u)
	}
	slices.Sort(users)
	return users
}
