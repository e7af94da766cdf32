package event

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/IBM/sarama"
	"github.com/rcrowley/go-metrics"
	"github.com/xdg-go/scram"
)

// sarama's own metrics cost time with every request and keep a goroutine for the
// life of the process; what operators see is in mics_mq_*. Only sarama uses this
// library here, and it can be told in no other way.
func init() { metrics.UseNilMetrics = true }

// tlsConfig is how connections are secured; nil: not at all.
func (c *Config) tlsConfig() (*tls.Config, error) {
	if !c.TLS {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("KAFKA_TLS_CA_FILE: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("KAFKA_TLS_CA_FILE: %s holds no certificate", c.CAFile)
		}
	}
	if c.CertFile == "" {
		return t, nil
	}
	if _, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile); err != nil {
		return nil, fmt.Errorf("KAFKA_TLS_CERT_FILE: %w", err)
	}
	// Read at every connect: a certificate is renewed without a restart.
	t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		return &cert, err
	}
	return t, nil
}

// scramClient adapts a SCRAM conversation to what sarama wants.
type scramClient struct {
	hash scram.HashGeneratorFcn
	*scram.ClientConversation
}

func (s *scramClient) Begin(user, password, authzID string) error {
	c, err := s.hash.NewClient(user, password, authzID)
	if err != nil {
		return err
	}
	s.ClientConversation = c.NewConversation()
	return nil
}

// saramaConfig is the template of every connection's.
func (c *Config) saramaConfig() (*sarama.Config, error) {
	s := sarama.NewConfig()
	s.ClientID = "mics-router"
	// The oldest cluster that is supported: one with its own idea of a topic's
	// default replication.
	s.Version = sarama.V2_4_0_0
	s.Net.DialTimeout, s.Net.ReadTimeout, s.Net.WriteTimeout = requestTimeout, requestTimeout, requestTimeout
	t, err := c.tlsConfig()
	if err != nil {
		return nil, err
	}
	s.Net.TLS.Enable, s.Net.TLS.Config = t != nil, t
	if c.Mechanism != "" {
		s.Net.SASL.Enable = true
		s.Net.SASL.Mechanism = sarama.SASLMechanism(c.Mechanism)
		s.Net.SASL.User, s.Net.SASL.Password = c.Username, c.Password
		s.Net.SASL.SCRAMClientGeneratorFunc = func() sarama.SCRAMClient {
			if c.Mechanism == ScramSHA256 {
				return &scramClient{hash: scram.SHA256}
			}
			return &scramClient{hash: scram.SHA512}
		}
	}
	return s, nil
}
