// Package token seals what a client holds to go on with its session: nobody but
// the routers reads or makes it (CONTRACT section 1.4). A token is, in base64url
// without padding,
//
//	format (1 byte, 1) | key (4 bytes, of its id) | nonce (24) | sealed claims
//
// with XChaCha20-Poly1305, whose nonces may be random for any number of tokens.
package token

import (
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mics-im/mics/router/internal/route"
	"golang.org/x/crypto/chacha20poly1305"
)

// Kind says what a token is good for.
type Kind uint8

const (
	// Resume goes on with a session, by a client that authenticates as always.
	Resume Kind = iota + 1
	// Migrate stands for the authentication, too, until its deadline.
	Migrate
)

// Claims are what a token says.
type Claims struct {
	Kind Kind
	Key  route.DeviceKey
	// Loc and Epoch name the session: of the device's record.
	Loc   route.Location
	Epoch uint64
	// Deadline of a Migrate, in milliseconds; the zero time for a Resume.
	Deadline time.Time
}

var (
	// ErrInvalid: no router made this, or it was altered.
	ErrInvalid = errors.New("invalid token")
	// ErrUnknownKey: it may be good, but its key is not known here.
	ErrUnknownKey = errors.New("token of an unknown key")
)

const (
	format = 1
	header = 1 + 4
	// MaxSize bounds a token, in bytes. The longest names make 1,400.
	MaxSize = 2048
	// maxMillis keeps a deadline within what a time can be.
	maxMillis = 1 << 53
	// keySize is in bytes.
	keySize = chacha20poly1305.KeySize
)

// Keys seal with the first and open with all. Safe for concurrent use.
type Keys struct {
	first [4]byte
	aeads map[[4]byte]cipher.AEAD
}

// Random returns keys that no other process has.
func Random() *Keys {
	var key [keySize]byte
	_, _ = rand.Read(key[:]) // it does not fail
	k := &Keys{aeads: map[[4]byte]cipher.AEAD{}}
	_, _ = rand.Read(k.first[:])
	k.aeads[k.first] = aead(key[:])
	return k
}

// Parse reads `id:base64,…`: each key is 32 bytes in standard or URL base64, with
// or without padding.
func Parse(s string) (*Keys, error) {
	k := &Keys{aeads: map[[4]byte]cipher.AEAD{}}
	for i, part := range strings.Split(s, ",") {
		id, text, ok := strings.Cut(strings.TrimSpace(part), ":")
		if !ok || id == "" {
			return nil, fmt.Errorf("key %d: must be id:base64", i+1)
		}
		text = strings.TrimRight(strings.NewReplacer("-", "+", "_", "/").Replace(text), "=")
		key, err := base64.RawStdEncoding.DecodeString(text)
		if err != nil || len(key) != keySize {
			return nil, fmt.Errorf("key %q: must be %d bytes in base64", id, keySize) // not what it is
		}
		sum := sha256.Sum256([]byte(id))
		name := [4]byte(sum[:])
		if k.aeads[name] != nil {
			return nil, fmt.Errorf("key %q: this id, or one of the same hash, is there twice", id)
		}
		k.aeads[name] = aead(key)
		if i == 0 {
			k.first = name
		}
	}
	return k, nil
}

func aead(key []byte) cipher.AEAD {
	a, err := chacha20poly1305.NewX(key)
	if err != nil {
		panic(err) // the size is right
	}
	return a
}

// Seal makes a token.
func (k *Keys) Seal(c Claims) string {
	b := make([]byte, header+chacha20poly1305.NonceSizeX, 256)
	b[0] = format
	copy(b[1:], k.first[:])
	nonce := b[header:]
	_, _ = rand.Read(nonce)
	b = k.aeads[k.first].Seal(b, nonce, c.append(nil), b[:header])
	return base64.RawURLEncoding.EncodeToString(b)
}

// Open reads a token that one of the keys has sealed; it does not look at the
// deadline.
func (k *Keys) Open(token string) (Claims, error) {
	if len(token) > MaxSize {
		return Claims{}, ErrInvalid
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) < header+chacha20poly1305.NonceSizeX+chacha20poly1305.Overhead || b[0] != format {
		return Claims{}, ErrInvalid
	}
	a := k.aeads[[4]byte(b[1:header])]
	if a == nil {
		return Claims{}, ErrUnknownKey
	}
	nonce, sealed := b[header:header+chacha20poly1305.NonceSizeX], b[header+chacha20poly1305.NonceSizeX:]
	plain, err := a.Open(nil, nonce, sealed, b[:header])
	if err != nil {
		return Claims{}, ErrInvalid
	}
	return parse(plain)
}

// append writes the claims: kind, numbers as varints, texts with their lengths.
// Later versions append; this one ignores what it does not know.
func (c Claims) append(b []byte) []byte {
	b = append(b, byte(c.Kind))
	deadline := uint64(0)
	if !c.Deadline.IsZero() {
		deadline = uint64(max(0, c.Deadline.UnixMilli()))
	}
	for _, n := range []uint64{c.Loc.Node.Incarnation, c.Loc.Session, c.Epoch, deadline} {
		b = binary.AppendUvarint(b, n)
	}
	for _, s := range []string{c.Key.Tenant, c.Key.User, c.Key.Device, c.Loc.Node.ID} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	return b
}

func parse(b []byte) (c Claims, err error) {
	if len(b) == 0 || Kind(b[0]) != Resume && Kind(b[0]) != Migrate {
		return Claims{}, ErrInvalid
	}
	c.Kind, b = Kind(b[0]), b[1:]
	number := func() uint64 {
		n, size := binary.Uvarint(b)
		if size <= 0 {
			err = ErrInvalid
			return 0
		}
		b = b[size:]
		return n
	}
	text := func() string {
		n := number()
		if n > uint64(len(b)) {
			err = ErrInvalid
			return ""
		}
		s := string(b[:n])
		b = b[n:]
		return s
	}
	c.Loc.Node.Incarnation, c.Loc.Session, c.Epoch = number(), number(), number()
	if ms := number(); ms > maxMillis {
		return Claims{}, ErrInvalid
	} else if ms > 0 {
		c.Deadline = time.UnixMilli(int64(ms))
	}
	c.Key.Tenant, c.Key.User, c.Key.Device, c.Loc.Node.ID = text(), text(), text(), text()
	if err != nil {
		return Claims{}, err
	}
	return c, nil
}
