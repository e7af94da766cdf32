package access

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Role is what somebody may do: a viewer looks, an operator changes too.
type Role string

// Roles.
const (
	Viewer   Role = "viewer"
	Operator Role = "operator"
)

// Identity is who asks.
type Identity struct {
	Name string
	Role Role
	// From is the address that the request came from.
	From string
}

// may reports whether who asks may do what needs the role.
func (i Identity) may(needs Role) bool { return i.Role == Operator || i.Role == needs }

// anonymous is whoever comes where no operators are named.
const anonymous = "anonymous"

// operators are those of OPERATORS_FILE at one time. Not modified.
type operators struct {
	list []operator
}

type operator struct {
	name         string
	role         Role
	tokens       [][sha256.Size]byte
	certificates []string
}

// maxName bounds an operator's name, in bytes.
const maxName = 128

// oneOrMore is a text or a list of texts.
type oneOrMore []string

func (o *oneOrMore) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.SequenceNode {
		return n.Decode((*[]string)(o))
	}
	var s string
	if err := n.Decode(&s); err != nil {
		return err
	}
	*o = oneOrMore{s}
	return nil
}

// parseOperators reads OPERATORS_FILE:
//
//	operators:
//	  - name: ann
//	    role: operator
//	    token_sha256: 5e88…            # hexadecimal, one or a list
//	  - name: dashboard
//	    role: viewer
//	    certificate: dash.ops.example  # common name, or a DNS name, e-mail address
//	                                   # or URI of the certificate; one or a list
//
// Unknown keys are errors. Errors name the operator and quote no token's hash.
func parseOperators(text []byte) (*operators, error) {
	var doc struct {
		Operators []struct {
			Name        string    `yaml:"name"`
			Role        Role      `yaml:"role"`
			Tokens      oneOrMore `yaml:"token_sha256"`
			Certificate oneOrMore `yaml:"certificate"`
		} `yaml:"operators"`
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(doc.Operators) == 0 {
		return nil, errors.New("there is no operator in it: operators: [{name, role, token_sha256 or certificate}]")
	}
	out := &operators{}
	var errs []error
	for i, o := range doc.Operators {
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("operator %d (%q): "+format, append([]any{i + 1, o.Name}, args...)...))
		}
		if o.Name == "" || len(o.Name) > maxName || strings.ContainsFunc(o.Name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			bad("name: must be 1 to %d bytes on one line", maxName)
		}
		if slices.ContainsFunc(out.list, func(other operator) bool { return other.name == o.Name }) {
			bad("name: there is another one of this name")
		}
		if o.Role != Viewer && o.Role != Operator {
			bad("role: must be %s or %s", Viewer, Operator)
		}
		if len(o.Tokens)+len(o.Certificate) == 0 {
			bad("token_sha256 or certificate is needed")
		}
		one := operator{name: o.Name, role: o.Role, certificates: o.Certificate}
		for _, t := range o.Tokens {
			b, err := hex.DecodeString(t)
			if err != nil || len(b) != sha256.Size {
				bad("token_sha256: must be %d hexadecimal digits", 2*sha256.Size)
				continue
			}
			one.tokens = append(one.tokens, [sha256.Size]byte(b))
		}
		if slices.Contains(o.Certificate, "") {
			bad("certificate: must not be empty")
		}
		out.list = append(out.list, one)
	}
	return out, errors.Join(errs...)
}

// byToken compares with every token there is, so that the time says nothing.
func (o *operators) byToken(token string) (Identity, bool) {
	sum := sha256.Sum256([]byte(token))
	found := -1
	for i := range o.list {
		for j := range o.list[i].tokens {
			found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(sum[:], o.list[i].tokens[j][:]), i, found)
		}
	}
	return o.at(found)
}

// byCertificate takes a certificate that has been verified.
func (o *operators) byCertificate(leaf *x509.Certificate) (Identity, bool) {
	names := slices.Concat([]string{leaf.Subject.CommonName}, leaf.DNSNames, leaf.EmailAddresses)
	for _, u := range leaf.URIs {
		names = append(names, u.String())
	}
	return o.at(slices.IndexFunc(o.list, func(one operator) bool {
		return slices.ContainsFunc(one.certificates, func(want string) bool { return slices.Contains(names, want) })
	}))
}

func (o *operators) at(i int) (Identity, bool) {
	if i < 0 {
		return Identity{}, false
	}
	return Identity{Name: o.list[i].name, Role: o.list[i].role}, true
}
