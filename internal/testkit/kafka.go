package testkit

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// KafkaOptions configure a broker; the zero value is usual.
type KafkaOptions struct {
	// Properties are added to the broker's, or replace them.
	Properties map[string]string
	// Secure is the security protocol of a second listener at SecureAddr: SSL,
	// SASL_PLAINTEXT or SASL_SSL, to be configured by Properties. The first one
	// takes everybody.
	Secure string
	// Disks is how many directories the topics are spread over, and the broker's own
	// metadata apart from them; 0: one for everything. A broker lives as long as
	// one of them does.
	Disks int
	// Via returns where clients are to reach the broker that listens at addr, for a
	// proxy in between; nil: there.
	Via func(addr string) (string, error)
}

// KafkaServer is a real Apache Kafka broker, a cluster of one, that a test may
// mistreat. What it stored survives Kill and Restart. It ends with the test. Not
// safe for concurrent use.
type KafkaServer struct {
	Addr, SecureAddr string
	// Reach is where clients reach Addr: KafkaOptions.Via.
	Reach string

	java, config string
	libs         string // class path
	cmd          *exec.Cmd
	ended        chan struct{} // closed when the process is gone
	said         bytes.Buffer  // readable then
}

// kafkaCluster is the id of every cluster of one: brokers of several tests share
// a formatted, empty store.
const kafkaCluster = "bWljcy10ZXN0cy0wMDAwMQ"

// StartKafka starts a broker on free loopback ports. Java and Maven, which
// fetches Kafka once and into the user's cache, must be installed: without them
// the test is skipped, or fails where MICS_REQUIRE_KAFKA is set, as `make test`
// does.
func StartKafka(t testing.TB, o KafkaOptions) *KafkaServer {
	t.Helper()
	k := findKafka(t)
	for attempt := 1; ; attempt++ {
		s := k.server(t, o)
		if s.start(t) {
			t.Cleanup(s.Kill) // not in start: a subtest may restart it
			return s
		}
		if attempt == maxStarts {
			t.Fatalf("Kafka does not start:\n%s", s.said.String())
		}
	}
}

// server lays a broker's files out; a new one for each attempt, because a port
// may be gone.
func (k kafka) server(t testing.TB, o KafkaOptions) *KafkaServer {
	t.Helper()
	dir := t.TempDir()
	logs := filepath.Join(dir, "logs")
	if err := os.CopyFS(logs, os.DirFS(k.store)); err != nil {
		t.Fatal(err)
	}
	addr := func() string { return fmt.Sprintf("127.0.0.1:%d", FreePort(t)) }
	s := &KafkaServer{Addr: addr(), java: k.java, libs: k.libs, config: filepath.Join(dir, "server.properties")}
	s.Reach = s.Addr
	if o.Via != nil {
		reach, err := o.Via(s.Addr)
		if err != nil {
			t.Fatal(err)
		}
		s.Reach = reach
	}
	controller := addr()
	p := map[string]string{
		"listeners":                      "PLAIN://" + s.Addr + ",CONTROLLER://" + controller,
		"advertised.listeners":           "PLAIN://" + s.Reach,
		"listener.security.protocol.map": "PLAIN:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"controller.quorum.voters":       "1@" + controller,
		"log.dirs":                       logs,
	}
	if o.Disks > 0 {
		p["metadata.log.dir"] = logs
		disks := make([]string, o.Disks)
		for i := range disks {
			disks[i] = filepath.Join(dir, fmt.Sprint("disk", i))
			if err := formatDisk(disks[i]); err != nil {
				t.Fatal(err)
			}
		}
		p["log.dirs"] = strings.Join(disks, ",")
	}
	if o.Secure != "" {
		s.SecureAddr = addr()
		p["listeners"] += ",SECURE://" + s.SecureAddr
		p["advertised.listeners"] += ",SECURE://" + s.SecureAddr
		p["listener.security.protocol.map"] += ",SECURE:" + o.Secure
	}
	maps.Copy(p, kafkaProperties())
	maps.Copy(p, o.Properties)
	if err := os.WriteFile(s.config, properties(p), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// formatDisk makes an empty store of a broker, but without metadata.
func formatDisk(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	return os.WriteFile(filepath.Join(dir, "meta.properties"), properties(map[string]string{
		"version": "1", "node.id": "1", "cluster.id": kafkaCluster, "directory.id": base64.RawURLEncoding.EncodeToString(id[:]),
	}), 0o600)
}

// kafkaProperties are those of every broker: small, quick to start and to stop.
func kafkaProperties() map[string]string {
	return map[string]string{
		"process.roles":                            "broker,controller",
		"node.id":                                  "1",
		"controller.listener.names":                "CONTROLLER",
		"inter.broker.listener.name":               "PLAIN",
		"offsets.topic.replication.factor":         "1",
		"offsets.topic.num.partitions":             "1",
		"transaction.state.log.replication.factor": "1",
		"transaction.state.log.min.isr":            "1",
		"auto.create.topics.enable":                "false",
		"group.initial.rebalance.delay.ms":         "0",
		"num.network.threads":                      "2",
		"num.io.threads":                           "2",
		"log.cleaner.enable":                       "false",
	}
}

func properties(p map[string]string) []byte {
	var b bytes.Buffer
	for _, k := range slices.Sorted(maps.Keys(p)) {
		fmt.Fprintf(&b, "%s=%s\n", k, strings.ReplaceAll(p[k], `\`, `\\`))
	}
	return b.Bytes()
}

// javaOptions keep a broker small; the first compiler alone makes it start
// sooner on a busy machine.
var javaOptions = []string{"-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true"}

// start starts the process and waits until it answers; false if it ended
// before.
func (s *KafkaServer) start(t testing.TB) bool {
	t.Helper()
	s.said.Reset()
	cmd := exec.Command(s.java, append(slices.Clone(javaOptions), "-cp", s.libs, "kafka.Kafka", s.config)...)
	cmd.Stdout, cmd.Stderr = &s.said, &s.said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	s.cmd, s.ended = cmd, ended
	deadline := time.Now().Add(2 * time.Minute) // a Java process on a busy machine
	for time.Now().Before(deadline) {
		select {
		case <-ended:
			return false
		default:
		}
		if s.answers() == nil {
			return true
		}
		time.Sleep(50 * time.Millisecond) // polling a real process
	}
	s.Kill()
	t.Fatalf("Kafka never answered:\n%s", s.said.String())
	return false
}

// answers asks for the API versions, which a broker answers once it works.
func (s *KafkaServer) answers() error {
	c, err := net.DialTimeout("tcp", s.Addr, time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(replyTimeout)); err != nil {
		return err
	}
	// Size, key 18, version 0, correlation id 7, no client id.
	if _, err := c.Write([]byte{0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 7, 0xff, 0xff}); err != nil {
		return err
	}
	var head [10]byte // size, correlation id, error code
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return err
	}
	if id, code := binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint16(head[8:]); id != 7 || code != 0 {
		return fmt.Errorf("answer %d, error %d", id, code)
	}
	return nil
}

// Kill ends the process without a word and waits until it is gone. No error if
// it is dead already.
func (s *KafkaServer) Kill() {
	_ = s.cmd.Process.Kill()
	<-s.ended
}

// Stop ends the process in good order.
func (s *KafkaServer) Stop(t testing.TB) {
	t.Helper()
	s.signal(t, syscall.SIGTERM)
	<-s.ended
}

// Restart starts the process again, on its old ports and with what it had
// stored, after Kill or Stop.
func (s *KafkaServer) Restart(t testing.TB) {
	t.Helper()
	if !s.start(t) {
		t.Fatalf("Kafka does not start again:\n%s", s.said.String())
	}
}

// Pause makes the process hang, its connections open, until Resume.
func (s *KafkaServer) Pause(t testing.TB) { s.signal(t, syscall.SIGSTOP) }

// Resume ends a Pause.
func (s *KafkaServer) Resume(t testing.TB) { s.signal(t, syscall.SIGCONT) }

func (s *KafkaServer) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// CPU is the processor time that an ended process used.
func (s *KafkaServer) CPU() time.Duration {
	st := cmp.Or(s.cmd.ProcessState, new(os.ProcessState))
	return st.UserTime() + st.SystemTime()
}
