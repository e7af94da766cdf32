package event

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/mics-im/mics/internal/config"
)

// SASL mechanisms of KAFKA_SASL_MECHANISM; empty: none.
const (
	Plain       = "PLAIN"
	ScramSHA256 = "SCRAM-SHA-256"
	ScramSHA512 = "SCRAM-SHA-512"
)

// Config is what operators say about Kafka. Register fills in the defaults.
type Config struct {
	Brokers []string // KAFKA__BOOTSTRAP_SERVERS, host:port; none: no events

	MaxAttempts  int           // KAFKA_MAX_ATTEMPTS, at a topic before its dead letters
	RetryBackoff time.Duration // KAFKA_RETRY_BACKOFF_MS, doubled with each attempt

	QueueCapacity       int // KAFKA_QUEUE_CAPACITY, events of all tenants
	MaxPendingPerTenant int // KAFKA_MAX_PENDING_PER_TENANT
	QueueMaxBytes       int // KAFKA_QUEUE_MAX_BYTES, of all tenants

	CreateTopics     bool // KAFKA_CREATE_TOPICS
	TopicPartitions  int  // KAFKA_TOPIC_PARTITIONS
	TopicReplication int  // KAFKA_TOPIC_REPLICATION; 0: the cluster's default

	TLS                       bool   // KAFKA_TLS
	CAFile, CertFile, KeyFile string // KAFKA_TLS_CA_FILE, _CERT_FILE, _KEY_FILE

	Mechanism, Username, Password string // KAFKA_SASL_MECHANISM, _USERNAME, _PASSWORD
}

// Register declares the settings.
func (c *Config) Register(s *config.Set) {
	*c = Config{
		MaxAttempts: 3, RetryBackoff: 50 * time.Millisecond, QueueCapacity: 50_000, MaxPendingPerTenant: 10_000,
		QueueMaxBytes: 256 << 20, CreateTopics: true, TopicPartitions: 6,
	}
	s.List(&c.Brokers, "KAFKA__BOOTSTRAP_SERVERS", "Kafka brokers, comma-separated HOST:PORT; empty: no events")
	s.Int(&c.MaxAttempts, "KAFKA_MAX_ATTEMPTS", config.Bound{Min: 1, Max: 100}, "attempts at a topic before an event goes to its dead letters")
	s.Duration(&c.RetryBackoff, "KAFKA_RETRY_BACKOFF_MS", time.Millisecond, config.Bound{Min: 1, Max: 60_000}, "milliseconds before the second attempt, doubled with each further one")
	s.Int(&c.QueueCapacity, "KAFKA_QUEUE_CAPACITY", config.Bound{Min: 2, Max: 10_000_000}, "events of all tenants waiting for Kafka")
	s.Int(&c.MaxPendingPerTenant, "KAFKA_MAX_PENDING_PER_TENANT", config.Bound{Min: 1, Max: 10_000_000}, "events of one tenant waiting for Kafka")
	s.Int(&c.QueueMaxBytes, "KAFKA_QUEUE_MAX_BYTES", config.Bound{Min: 1 << 20, Max: 1 << 40}, "bytes of all events waiting for Kafka")
	s.Bool(&c.CreateTopics, "KAFKA_CREATE_TOPICS", "create the tenants' topics where they are missing")
	s.Int(&c.TopicPartitions, "KAFKA_TOPIC_PARTITIONS", config.Bound{Min: 1, Max: 10_000}, "partitions of a topic that is created")
	s.Int(&c.TopicReplication, "KAFKA_TOPIC_REPLICATION", config.Bound{Min: 0, Max: 100}, "replicas of a topic that is created; 0: the cluster's default")
	s.Bool(&c.TLS, "KAFKA_TLS", "TLS to the brokers")
	s.String(&c.CAFile, "KAFKA_TLS_CA_FILE", "", "PEM file of authorities for the brokers' certificates (default: the system's)")
	s.String(&c.CertFile, "KAFKA_TLS_CERT_FILE", "", "PEM file of this client's certificate, read at every connect")
	s.String(&c.KeyFile, "KAFKA_TLS_KEY_FILE", "", "PEM file of its private key")
	s.Enum(&c.Mechanism, "KAFKA_SASL_MECHANISM", "SASL mechanism: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512; empty: none", "", Plain, ScramSHA256, ScramSHA512)
	s.String(&c.Username, "KAFKA_SASL_USERNAME", "", "SASL user")
	s.String(&c.Password, "KAFKA_SASL_PASSWORD", "", "SASL password")
	s.Check(c.check)
}

func (c *Config) check() error {
	var problems []error
	for _, b := range c.Brokers {
		if host, port, err := net.SplitHostPort(b); err != nil || host == "" || port == "" {
			problems = append(problems, fmt.Errorf("KAFKA__BOOTSTRAP_SERVERS: %q is no HOST:PORT", b))
		}
	}
	if !c.TLS && c.CAFile+c.CertFile+c.KeyFile != "" {
		problems = append(problems, errors.New("KAFKA_TLS: must be true when a KAFKA_TLS_… file is given"))
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		problems = append(problems, errors.New("KAFKA_TLS_CERT_FILE and KAFKA_TLS_KEY_FILE: both or none"))
	}
	switch given := c.Username != "" && c.Password != ""; {
	case c.Mechanism != "" && !given:
		problems = append(problems, errors.New("KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD: required with KAFKA_SASL_MECHANISM"))
	case c.Mechanism == "" && c.Username+c.Password != "":
		problems = append(problems, errors.New("KAFKA_SASL_MECHANISM: required with a SASL user or password: "+strings.Join([]string{Plain, ScramSHA256, ScramSHA512}, ", ")))
	}
	return errors.Join(problems...)
}
