package event

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/IBM/sarama"
)

const (
	// requestTimeout bounds a connect, and a request from its first byte to its
	// answer. ackTimeout is what the broker may wait for its replicas.
	requestTimeout = 3 * time.Second
	ackTimeout     = 2500 * time.Millisecond
	// maxConns bounds the connections to one broker. One carries one request at a
	// time, so that a tenant whose replicas are slow holds up no other one.
	maxConns = 32
	// idleConn is how long a connection is kept unused; brokers close them after
	// ten minutes by default.
	idleConn = time.Minute
)

// dialFunc opens a connection.
type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// cluster is the connections to the brokers. Safe for concurrent use.
type cluster struct {
	conf  *sarama.Config // template
	seeds []string
	dial  dialFunc

	ctx    context.Context // ends with close
	cancel context.CancelFunc

	mu     sync.Mutex
	nodes  map[string]*node      // guarded by mu
	known  []string              // guarded by mu: brokers by the last metadata
	ctrl   string                // guarded by mu: the controller
	open   map[net.Conn]struct{} // guarded by mu
	closed bool                  // guarded by mu
}

// node is one broker.
type node struct {
	places chan struct{} // one for each connection in use
	idle   []*conn       // guarded by cluster.mu, the latest used last
}

type conn struct {
	*sarama.Broker
	used time.Time
}

func newCluster(conf *sarama.Config, seeds []string, dial dialFunc) *cluster {
	if dial == nil {
		dial = (&net.Dialer{Timeout: requestTimeout}).DialContext
	}
	c := &cluster{conf: conf, seeds: seeds, dial: dial, nodes: map[string]*node{}, open: map[net.Conn]struct{}{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

var errClosed = errors.New("the connections to Kafka are closed")

// close cuts off what is under way and closes all connections.
func (c *cluster) close() {
	c.cancel()
	c.mu.Lock()
	c.closed = true
	var idle []*conn
	for _, n := range c.nodes {
		idle = append(idle, n.idle...)
		n.idle = nil
	}
	for raw := range c.open {
		_ = raw.Close() // whoever reads from it is told
	}
	c.mu.Unlock()
	for _, k := range idle {
		_ = k.Close()
	}
}

// tracked is a socket that close can cut off.
type tracked struct {
	net.Conn
	c *cluster
}

func (t *tracked) Close() error {
	t.c.mu.Lock()
	delete(t.c.open, t.Conn)
	t.c.mu.Unlock()
	return t.Conn.Close()
}

// Dial implements sarama's proxy.Dialer.
func (c *cluster) Dial(network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(c.ctx, requestTimeout)
	defer cancel()
	raw, err := c.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_ = raw.Close()
		return nil, errClosed
	}
	c.open[raw] = struct{}{}
	return &tracked{raw, c}, nil
}

// config is a configuration that dials through c.
func (c *cluster) config() *sarama.Config {
	conf := *c.conf
	conf.Net.Proxy.Enable, conf.Net.Proxy.Dialer = true, c
	return &conf
}

// with runs f on a connection that is nobody else's meanwhile. After an error
// the connection is closed. It fails with errNotSent if f was not run.
func (c *cluster) with(addr string, f func(*sarama.Broker) error) error {
	c.mu.Lock()
	n := c.nodes[addr]
	if n == nil {
		n = &node{places: make(chan struct{}, maxConns)}
		c.nodes[addr] = n
	}
	c.mu.Unlock()
	select {
	case n.places <- struct{}{}:
		defer func() { <-n.places }()
	case <-c.ctx.Done():
		return fmt.Errorf("%w: %w", errNotSent, errClosed)
	}
	k, err := c.take(n, addr)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotSent, err)
	}
	if err := f(k.Broker); err != nil {
		_ = k.Close()
		return err
	}
	c.put(n, k)
	return nil
}

// errNotSent: the request has not left this process.
var errNotSent = errors.New("not sent")

// take returns an idle connection or a new one.
func (c *cluster) take(n *node, addr string) (*conn, error) {
	c.mu.Lock()
	if last := len(n.idle) - 1; last >= 0 {
		k := n.idle[last]
		n.idle = n.idle[:last]
		if time.Since(k.used) < idleConn {
			c.mu.Unlock()
			return k, nil
		}
		n.idle = append(n.idle, k) // all are as old
	}
	old := n.idle
	n.idle = nil
	c.mu.Unlock()
	for _, k := range old {
		_ = k.Close()
	}
	k := &conn{Broker: sarama.NewBroker(addr)}
	if err := k.Open(c.config()); err != nil {
		return nil, err
	}
	if ok, err := k.Connected(); err != nil || !ok { // waits until it is decided
		_ = k.Close()
		return nil, errors.Join(err, c.ctx.Err())
	}
	return k, nil
}

// put keeps a connection for the next one, and closes those not used lately.
func (c *cluster) put(n *node, k *conn) {
	k.used = time.Now()
	c.mu.Lock()
	var close []*conn
	if c.closed {
		close = append(close, k)
	} else {
		n.idle = append(n.idle, k)
		for len(n.idle) > 0 && time.Since(n.idle[0].used) >= idleConn {
			close = append(close, n.idle[0])
			n.idle = n.idle[1:]
		}
	}
	c.mu.Unlock()
	for _, k := range close {
		_ = k.Close()
	}
}

// any runs f on whichever broker answers, known ones in random order, then the
// seeds.
func (c *cluster) any(f func(*sarama.Broker) error) error {
	c.mu.Lock()
	addrs := slices.Clone(c.known)
	c.mu.Unlock()
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	for _, s := range c.seeds {
		if !slices.Contains(addrs, s) {
			addrs = append(addrs, s)
		}
	}
	var errs []error
	for _, a := range addrs {
		err := c.with(a, f)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", a, err))
		if c.ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// topic is what the cluster says about one.
type topic struct {
	// leaders are the addresses of the partitions' leaders, empty where there is
	// none at present; no partition at all: err says why.
	leaders []string
	err     error
}

// metadata asks for topics, which the answer has all of.
func (c *cluster) metadata(names ...string) (map[string]topic, error) {
	var res *sarama.MetadataResponse
	err := c.any(func(b *sarama.Broker) (err error) {
		res, err = b.GetMetadata(sarama.NewMetadataRequest(c.conf.Version, names))
		return err
	})
	if err != nil {
		return nil, err
	}
	addr := map[int32]string{}
	var known []string
	for _, b := range res.Brokers {
		addr[b.ID()] = b.Addr()
		known = append(known, b.Addr())
	}
	c.mu.Lock()
	c.known, c.ctrl = known, addr[res.ControllerID]
	c.mu.Unlock()
	out := make(map[string]topic, len(names))
	for _, n := range names {
		out[n] = topic{err: sarama.ErrUnknownTopicOrPartition}
	}
	for _, t := range res.Topics {
		out[t.Name] = newTopic(t, addr)
	}
	return out, nil
}

func newTopic(t *sarama.TopicMetadata, addr map[int32]string) topic {
	if t.Err != sarama.ErrNoError && len(t.Partitions) == 0 {
		return topic{err: t.Err}
	}
	out := topic{leaders: make([]string, len(t.Partitions))}
	for _, p := range t.Partitions {
		if int(p.ID) < len(out.leaders) && p.ID >= 0 {
			out.leaders[p.ID] = addr[p.Leader]
		}
	}
	if len(out.leaders) == 0 {
		out.err = sarama.ErrUnknownTopicOrPartition
	}
	return out
}

// create makes topics; one that is there already is no error. Any one that
// could not be made is in the error.
func (c *cluster) create(details map[string]*sarama.TopicDetail) error {
	req := sarama.NewCreateTopicsRequest(c.conf.Version, details, ackTimeout, false)
	var res *sarama.CreateTopicsResponse
	ask := func(b *sarama.Broker) (err error) {
		res, err = b.CreateTopics(req)
		return err
	}
	c.mu.Lock()
	ctrl := c.ctrl
	c.mu.Unlock()
	var err error
	if ctrl != "" {
		err = c.with(ctrl, ask)
	}
	if ctrl == "" || err != nil {
		err = c.any(ask) // brokers pass it on
	}
	if err != nil {
		return err
	}
	var errs []error
	for name, e := range res.TopicErrors {
		if e.Err != sarama.ErrNoError && e.Err != sarama.ErrTopicAlreadyExists {
			errs = append(errs, fmt.Errorf("create topic %s: %w", name, e))
		}
	}
	return errors.Join(errs...)
}

// producerID asks for a producer id on a connection.
func producerID(b *sarama.Broker) (id int64, epoch int16, err error) {
	res, err := b.InitProducerID(&sarama.InitProducerIDRequest{Version: 1, ProducerID: -1, ProducerEpoch: -1})
	if err != nil {
		return 0, 0, err
	}
	if res.Err != sarama.ErrNoError {
		return 0, 0, fmt.Errorf("get a producer id: %w", res.Err)
	}
	return res.ProducerID, res.ProducerEpoch, nil
}
