package event

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/mics-im/mics/internal/testkit"
)

const saslPassword = "pass-w0rd"

// pki are files in PEM: an authority, the broker's key and certificate in one,
// and a client's.
type pki struct{ ca, server, cert, key string }

func newPKI(t *testing.T) pki {
	t.Helper()
	dir := t.TempDir()
	caKey, ca := certificate(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	key, cert := certificate(t, &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, ca, caKey)
	clientKey, client := certificate(t, &x509.Certificate{}, ca, caKey)
	write := func(name string, parts ...*pem.Block) string {
		var b []byte
		for _, p := range parts {
			b = append(b, pem.EncodeToMemory(p)...)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	private := func(k *ecdsa.PrivateKey) *pem.Block {
		b, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return &pem.Block{Type: "PRIVATE KEY", Bytes: b}
	}
	public := func(c *x509.Certificate) *pem.Block { return &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw} }
	return pki{
		ca: write("ca.pem", public(ca)), server: write("server.pem", private(key), public(cert)),
		cert: write("client.pem", public(client)), key: write("client.key", private(clientKey)),
	}
}

func certificate(t *testing.T, template, ca *x509.Certificate, caKey *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.Subject = pkix.Name{CommonName: "mics test"}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if ca == nil {
		ca, caKey = template, key
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, ca, &key.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

// admin runs f with the rights of an operator.
func (b *broker) admin(t *testing.T, f func(sarama.ClusterAdmin) error) {
	t.Helper()
	conf := sarama.NewConfig()
	conf.Version = sarama.V2_8_0_0
	a, err := sarama.NewClusterAdmin(b.addrs(), conf)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	if err := f(a); err != nil {
		t.Fatal(err)
	}
}

func (b *broker) alter(t *testing.T, topic, name, value string) {
	t.Helper()
	b.admin(t, func(a sarama.ClusterAdmin) error {
		return a.AlterConfig(sarama.TopicResource, topic, map[string]*string{name: &value}, false)
	})
}

// secured: TLS with a client's certificate, every SASL mechanism, and a tenant
// whose topics the router may not touch.
func (b *broker) secured(t *testing.T, p pki) {
	b.admin(t, func(a sarama.ClusterAdmin) error {
		for _, m := range []sarama.ScramMechanismType{sarama.SCRAM_MECHANISM_SHA_256, sarama.SCRAM_MECHANISM_SHA_512} {
			if _, err := a.UpsertUserScramCredentials([]sarama.AlterUserScramCredentialsUpsert{{
				Name: "mics", Mechanism: m, Iterations: 4096, Salt: []byte("salt-of-the-test"), Password: []byte(saslPassword),
			}}); err != nil {
				return err
			}
		}
		return a.CreateACLs(allowed("im-mics-open"))
	})
	secure := func(mechanism, password string) func(*Options) {
		return func(o *Options) {
			o.TLS, o.CAFile, o.CertFile, o.KeyFile = true, p.ca, p.cert, p.key
			o.Mechanism, o.Username, o.Password = mechanism, "mics", password
		}
	}
	for _, mechanism := range []string{Plain, ScramSHA256, ScramSHA512} {
		w := newWorld(t, []string{b.SecureAddr}, secure(mechanism, saslPassword))
		w.Publish("open", chat(mechanism, "ann", "bob"))
		testkit.Eventually(t, mechanism+" lets in", func() bool { return w.published() == 1 })
	}
	w := newWorld(t, []string{b.SecureAddr}, secure(ScramSHA512, "wrong"))
	w.patience = 0
	w.Publish("open", chat("wrong", "ann", "bob"))
	testkit.Eventually(t, "a wrong password is noticed", func() bool { return w.log.count("mq_unavailable") > 0 })
	if w.log.count("wrong")+w.log.count(saslPassword) > 0 {
		t.Error("the log holds a password")
	}
	w = newWorld(t, []string{b.SecureAddr}, secure(ScramSHA256, saslPassword))
	w.Publish("closed", chat("kept", "ann", "bob"))
	testkit.Eventually(t, "the missing permission is told", func() bool { return w.log.count("mq_topic_unavailable") == 1 })
	b.admin(t, func(a sarama.ClusterAdmin) error {
		if err := a.CreateTopic(Topic("closed"), &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: 1}, false); err != nil {
			return err
		}
		return a.CreateACLs(allowed("im-mics-closed"))
	})
	testkit.Eventually(t, "it is published once it may be", func() bool { return w.published() == 1 })
	if n := w.log.count("mq_topic_unavailable"); n > 2 {
		t.Errorf("told %d times", n)
	}
}

// allowed lets the router's user do everything to topics with a prefix.
func allowed(prefix string) []*sarama.ResourceAcls {
	return []*sarama.ResourceAcls{{
		Resource: sarama.Resource{ResourceType: sarama.AclResourceTopic, ResourceName: prefix, ResourcePatternType: sarama.AclPatternPrefixed},
		Acls:     []*sarama.Acl{{Principal: "User:mics", Host: "*", Operation: sarama.AclOperationAll, PermissionType: sarama.AclPermissionAllow}},
	}}
}
