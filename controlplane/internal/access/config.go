// Package access is who may operate the cluster: operators prove who they are by a
// token or a client certificate, viewers may look and operators may change, and
// every change, done or refused, is recorded.
package access

import (
	"errors"
	"fmt"

	"github.com/mics-im/mics/internal/config"
)

// Names of settings.
const (
	settingFile     = "OPERATORS_FILE"
	settingCert     = "OPERATOR_TLS_CERT_FILE"
	settingKey      = "OPERATOR_TLS_KEY_FILE"
	settingCA       = "OPERATOR_TLS_CLIENT_CA_FILE"
	settingInsecure = "OPERATOR_INSECURE"
)

// Config is how operators reach the control plane. The zero value lets whoever
// reaches it do everything, which Check allows on loopback only.
type Config struct {
	// File names the operators; it is watched. Empty: whoever comes is one.
	File string
	// Cert and Key are the certificate of the operators' listener, PEM files read
	// again when they change; empty: no TLS. ClientCA holds the authorities of
	// operators' certificates; empty: operators have tokens only.
	Cert, Key, ClientCA string
	// Insecure allows a listener that everybody reaches and nobody guards.
	Insecure bool
}

// Register declares the settings. Call Check with the others.
func (c *Config) Register(s *config.Set) {
	s.String(&c.File, settingFile, "", "YAML file of operators: name, role, and token or certificate; watched")
	s.String(&c.Cert, settingCert, "", "PEM file with the certificate for operators; read again when it changes")
	s.String(&c.Key, settingKey, "", "PEM file with its key")
	s.String(&c.ClientCA, settingCA, "", "PEM file with the authorities of operators' own certificates")
	s.Bool(&c.Insecure, settingInsecure, "let LISTEN be reachable from other machines without "+settingFile)
}

// Scheme is http, or https where operators connect by TLS.
func (c Config) Scheme() string {
	if c.Cert != "" {
		return "https"
	}
	return "http"
}

// Check says what is wrong with the settings of a control plane whose operators
// connect at listen.
func (c Config) Check(listen string) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if (c.Cert == "") != (c.Key == "") {
		bad("%s, %s: one of them alone is of no use", settingCert, settingKey)
	}
	if c.ClientCA != "" && (c.Cert == "" || c.File == "") {
		bad("%s: needs %s, and %s, which says whose certificates they are", settingCA, settingCert, settingFile)
	}
	if c.File == "" && !c.Insecure && !config.Loopback(listen) {
		bad("LISTEN: %q can be reached from other machines, and whoever comes may operate: set %s, listen on 127.0.0.1, or set %s=true",
			listen, settingFile, settingInsecure)
	}
	return errors.Join(errs...)
}
