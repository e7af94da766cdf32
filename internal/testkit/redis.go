package testkit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Redis starts a real redis-server on a free loopback port and returns its
// address; it ends with the test. Without the program the test is skipped, or
// fails where MICS_REQUIRE_REDIS is set, as `make test` does.
func Redis(t testing.TB) string {
	t.Helper()
	return StartRedis(t).Addr
}

// RedisServer is a process that a test may mistreat. It ends with the test. It
// is not safe for concurrent use.
type RedisServer struct {
	Addr string

	args  []string // of the command, for Restart
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process is gone
	said  bytes.Buffer  // readable then
}

// StartRedis is Redis with a handle on the process; args are added to the
// command line.
func StartRedis(t testing.TB, args ...string) *RedisServer {
	t.Helper()
	dir := t.TempDir()
	return startOnFreePort(t, func(port int) []string {
		return append([]string{"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", dir}, args...)
	})
}

// maxStarts bounds the attempts to find a port that nobody else takes between
// looking for it and using it.
const maxStarts = 10

func startOnFreePort(t testing.TB, args func(port int) []string) *RedisServer {
	t.Helper()
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("MICS_REQUIRE_REDIS") != "" {
			t.Fatal("redis-server is not installed")
		}
		t.Skip("SKIPPED: redis-server is not installed (Debian package redis-server)")
	}
	for attempt := 1; ; attempt++ {
		// A cluster's nodes also use the port 10000 above.
		port := FreePort(t)
		if port > 55000 {
			port -= 10000
		}
		s := &RedisServer{Addr: fmt.Sprintf("127.0.0.1:%d", port), args: append([]string{bin}, args(port)...)}
		if s.start(t) {
			return s
		}
		if attempt == maxStarts {
			t.Fatalf("redis-server does not start:\n%s", s.said.String())
		}
	}
}

// start starts the process and waits until it, and not another one on its port,
// answers; false if it ended before.
func (s *RedisServer) start(t testing.TB) bool {
	t.Helper()
	s.said.Reset()
	cmd := exec.Command(s.args[0], s.args[1:]...)
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
	t.Cleanup(s.Kill)
	mine := fmt.Sprintf("process_id:%d\r\n", cmd.Process.Pid)
	up := false
	Eventually(t, "redis-server answers", func() bool {
		select {
		case <-ended:
			return true
		default:
		}
		info, err := s.Do("INFO", "server")
		up = err == nil && strings.Contains(info[0], mine)
		return up
	})
	return up
}

// Kill ends the process without a word and waits until it is gone; all it knew
// is lost. No error if it is dead already.
func (s *RedisServer) Kill() {
	_ = s.cmd.Process.Kill()
	<-s.ended
}

// Restart starts the process again, empty, on its old port, after Kill.
func (s *RedisServer) Restart(t testing.TB) {
	t.Helper()
	if !s.start(t) {
		t.Fatalf("redis-server does not start again:\n%s", s.said.String())
	}
}

// Pause makes the process hang, its connections open, until Resume.
func (s *RedisServer) Pause(t testing.TB) { s.signal(t, syscall.SIGSTOP) }

// Resume ends a Pause.
func (s *RedisServer) Resume(t testing.TB) { s.signal(t, syscall.SIGCONT) }

func (s *RedisServer) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// replyTimeout bounds one command of Do.
const replyTimeout = 5 * time.Second

// Do sends one command over a connection of its own and returns the reply, an
// array's elements flattened.
func (s *RedisServer) Do(args ...string) ([]string, error) {
	c, err := net.DialTimeout("tcp", s.Addr, replyTimeout)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(replyTimeout)); err != nil {
		return nil, err
	}
	b := fmt.Appendf(nil, "*%d\r\n", len(args))
	for _, a := range args {
		b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := c.Write(b); err != nil {
		return nil, err
	}
	return readReply(bufio.NewReader(c))
}

// readReply reads one RESP2 value.
func readReply(r *bufio.Reader) ([]string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if line == "" {
		return nil, errors.New("empty reply")
	}
	kind, rest := line[0], line[1:]
	switch kind {
	case '+', ':':
		return []string{rest}, nil
	case '-':
		return nil, errors.New(rest)
	}
	n, err := strconv.Atoi(rest)
	if err != nil || (kind != '$' && kind != '*') {
		return nil, fmt.Errorf("reply %q", line)
	}
	if kind == '$' {
		b := make([]byte, max(n, 0)+2)
		if n < 0 {
			return []string{""}, nil
		}
		_, err := io.ReadFull(r, b)
		return []string{string(b[:n])}, err
	}
	var all []string
	for range n {
		e, err := readReply(r)
		if err != nil {
			return nil, err
		}
		all = append(all, e...)
	}
	return all, nil
}

func (s *RedisServer) must(t testing.TB, args ...string) []string {
	t.Helper()
	out, err := s.Do(args...)
	if err != nil {
		t.Fatalf("%s: %s: %v", s.Addr, args[0], err)
	}
	return out
}

// hashSlots is how many a Redis Cluster has.
const hashSlots = 16384

// RedisCluster starts a Redis Cluster of masters that share the slots, and
// waits until all of them agree.
func RedisCluster(t testing.TB, masters int) []*RedisServer {
	t.Helper()
	all := make([]*RedisServer, masters)
	for i := range all {
		all[i] = StartRedis(t, "--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1")
		add := []string{"CLUSTER", "ADDSLOTS"}
		for slot := i * hashSlots / masters; slot < (i+1)*hashSlots/masters; slot++ {
			add = append(add, strconv.Itoa(slot))
		}
		all[i].must(t, add...)
		all[i].must(t, "CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1))
	}
	for _, s := range all[1:] {
		host, port, _ := net.SplitHostPort(s.Addr)
		all[0].must(t, "CLUSTER", "MEET", host, port)
	}
	Eventually(t, "the cluster's nodes agree", func() bool {
		for _, s := range all {
			info, err := s.Do("CLUSTER", "INFO")
			if err != nil || !strings.Contains(info[0], "cluster_state:ok") || !strings.Contains(info[0], fmt.Sprintf("cluster_known_nodes:%d\r\n", masters)) {
				return false
			}
		}
		return true
	})
	return all
}

// RedisSentinels is a master with a replica, watched by three Sentinels under
// the name Master set.
type RedisSentinels struct {
	Set             string
	Master, Replica *RedisServer
	Sentinels       []*RedisServer
}

// StartSentinels starts them and waits until a failover would succeed.
func StartSentinels(t testing.TB) *RedisSentinels {
	t.Helper()
	g := &RedisSentinels{Set: "mics", Master: StartRedis(t, "--repl-diskless-sync-delay", "0")}
	host, port, _ := net.SplitHostPort(g.Master.Addr)
	g.Replica = StartRedis(t, "--replicaof", host, port)
	for range 3 {
		dir := t.TempDir()
		g.Sentinels = append(g.Sentinels, startOnFreePort(t, func(own int) []string {
			file := filepath.Join(dir, "sentinel.conf") // it writes to it
			text := fmt.Sprintf("port %d\nbind 127.0.0.1\ndir %s\nsentinel monitor %s %s %s 2\n"+
				"sentinel down-after-milliseconds %[3]s 1000\nsentinel failover-timeout %[3]s 3000\n", own, dir, g.Set, host, port)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			return []string{file, "--sentinel"}
		}))
	}
	Eventually(t, "the Sentinels know each other and the replica", func() bool {
		replication, err := g.Replica.Do("INFO", "replication")
		if err != nil || !strings.Contains(replication[0], "master_link_status:up") {
			return false
		}
		for _, s := range g.Sentinels {
			about, err := s.Do("SENTINEL", "MASTER", g.Set)
			if err != nil || field(about, "num-other-sentinels") != "2" || field(about, "num-slaves") != "1" || field(about, "flags") != "master" {
				return false
			}
			if r, err := s.Do("SENTINEL", "REPLICAS", g.Set); err != nil || field(r, "flags") != "slave" || field(r, "master-link-status") != "ok" {
				return false
			}
		}
		return true
	})
	return g
}

// field finds a value in a reply of names and values.
func field(reply []string, name string) string {
	if i := slices.Index(reply, name); i >= 0 && i+1 < len(reply) {
		return reply[i+1]
	}
	return ""
}
