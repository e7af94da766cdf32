// Package trust is how the cluster's own processes know each other: by a shared
// token, or by certificates of the cluster's authority. Each RPC on an
// INTERNAL_LISTEN proves one of them, once per call; a stream is one call.
package trust

import (
	"errors"
	"fmt"
	"strings"

	"github.com/mics-im/mics/internal/config"
)

// Names of settings.
const (
	settingToken     = "CLUSTER_TOKEN"
	settingTokenFile = "CLUSTER_TOKEN_FILE"
	settingCert      = "INTERNAL_TLS_CERT_FILE"
	settingKey       = "INTERNAL_TLS_KEY_FILE"
	settingCA        = "INTERNAL_TLS_CA_FILE"
	settingNames     = "INTERNAL_TLS_NAMES"
	settingInsecure  = "CLUSTER_INSECURE"
)

// Config is a process's part in the cluster. The zero value trusts whoever can
// reach it, which Check allows on loopback only.
//
// Token and certificates may both be there: either is accepted then, which is how
// a running cluster changes from one to the other.
type Config struct {
	// Token is CLUSTER_TOKEN. TokenFile, instead, holds one token a line: the first
	// is sent, all are accepted; it is watched.
	Token, TokenFile string
	// TLSCert and TLSKey are this process's certificate, as server and as client;
	// TLSCA the authority of everybody's. PEM files, read again when they change.
	TLSCert, TLSKey, TLSCA string
	// TLSNames are DNS names, one of which everybody's certificate must have. Empty:
	// every certificate of TLSCA will do, which should then be the cluster's own.
	// Addresses are not compared: those of pods come and go.
	TLSNames []string
	// Insecure allows a listener that everybody reaches and nobody guards.
	Insecure bool
}

// Register declares the settings. Call Check with the others.
func (c *Config) Register(s *config.Set) {
	s.String(&c.Token, settingToken, "", "secret that the cluster's processes show each other, the same for all; better "+settingTokenFile)
	s.String(&c.TokenFile, settingTokenFile, "", "file with such secrets, one a line: the first is sent, all are accepted; watched")
	s.String(&c.TLSCert, settingCert, "", "PEM file: this process's certificate on INTERNAL_LISTEN and towards other processes; read again when it changes")
	s.String(&c.TLSKey, settingKey, "", "PEM file with its key")
	s.String(&c.TLSCA, settingCA, "", "PEM file with the authorities of the cluster's certificates")
	s.List(&c.TLSNames, settingNames, "DNS names, comma-separated, one of which the certificate of every process must have; empty: any certificate of the authorities")
	s.Bool(&c.Insecure, settingInsecure, "let INTERNAL_LISTEN be reachable from other machines without token and certificates")
}

// Scheme is http, or https when others find this process behind TLS.
func (c Config) Scheme() string {
	if c.tls() {
		return "https"
	}
	return "http"
}

func (c Config) tls() bool   { return c.TLSCert != "" || c.TLSKey != "" || c.TLSCA != "" }
func (c Config) token() bool { return c.Token != "" || c.TokenFile != "" }

// Check says what is wrong with the settings of a process that listens at listen.
// urls are those under which processes of the cluster are called.
func (c Config) Check(listen string, urls ...string) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Token != "" {
		if c.TokenFile != "" {
			bad("%s, %s: one of them", settingToken, settingTokenFile)
		}
		if err := checkToken(c.Token); err != nil {
			bad("%s: %w", settingToken, err)
		}
	}
	if c.tls() && (c.TLSCert == "" || c.TLSKey == "" || c.TLSCA == "") {
		bad("%s, %s, %s: all three are needed", settingCert, settingKey, settingCA)
	}
	if len(c.TLSNames) > 0 && !c.tls() {
		bad("%s: of no use without %s", settingNames, settingCert)
	}
	if c.tls() && !c.token() {
		for _, u := range urls {
			if strings.HasPrefix(u, "http://") {
				bad("%q: must be https://: with %s and no cluster token every call is by TLS", u, settingCert)
			}
		}
	}
	if !c.tls() && !c.token() && !c.Insecure && !config.Loopback(listen) {
		bad("INTERNAL_LISTEN: %q can be reached from other machines, and nothing tells the cluster's processes from others: "+
			"set %s (or %s and its companions), listen on 127.0.0.1, or set %s=true", listen, settingTokenFile, settingCert, settingInsecure)
	}
	return errors.Join(errs...)
}

const (
	minToken  = 16
	maxToken  = 512
	maxTokens = 16
)

// checkToken never quotes the token.
func checkToken(t string) error {
	if len(t) < minToken || len(t) > maxToken {
		return fmt.Errorf("a token must have %d to %d characters", minToken, maxToken)
	}
	if strings.ContainsFunc(t, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("a token must be printable ASCII without blanks")
	}
	return nil
}
