package trust

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
)

// tokens are the cluster's tokens at one time. Not modified.
type tokens struct {
	send   string // as a header's value
	accept [][sha256.Size]byte
}

func newTokens(list ...string) *tokens {
	t := &tokens{send: bearer + list[0]}
	for _, s := range list {
		t.accept = append(t.accept, sha256.Sum256([]byte(s)))
	}
	return t
}

// parseTokens reads CLUSTER_TOKEN_FILE: a token a line; empty lines and those that
// begin with # are left out. Errors name the line and quote nothing.
func parseTokens(text []byte) (*tokens, error) {
	var list []string
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		s := strings.TrimSpace(lines.Text())
		if s == "" || strings.HasPrefix(s, "#") {
			continue
		}
		if err := checkToken(s); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		list = append(list, s)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	switch {
	case len(list) == 0:
		return nil, errors.New("there is no token in it")
	case len(list) > maxTokens:
		return nil, fmt.Errorf("more than %d tokens", maxTokens)
	}
	return newTokens(list...), nil
}

const bearer = "Bearer "

// accepts compares in a time that depends on the number of tokens only.
func (t *tokens) accepts(header string) bool {
	given, ok := strings.CutPrefix(header, bearer)
	sum := sha256.Sum256([]byte(given))
	found := 0
	for i := range t.accept {
		found |= subtle.ConstantTimeCompare(sum[:], t.accept[i][:])
	}
	return ok && found == 1
}
