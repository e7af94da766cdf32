package drain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/mics-im/mics/internal/fault"
	controlv1 "github.com/mics-im/mics/proto/mics/control/v1"
	"github.com/mics-im/mics/proto/mics/control/v1/controlv1connect"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
	"github.com/mics-im/mics/tests/load"
)

// operator does what one does with micsctl, at whichever control plane answers.
type operator struct {
	planes  []load.Plane
	clients []controlv1connect.ControlServiceClient
	http    *http.Client
}

func newOperator(planes []load.Plane) *operator {
	o := &operator{planes: planes, http: &http.Client{Timeout: 10 * time.Second}}
	for _, p := range planes {
		o.clients = append(o.clients, controlv1connect.NewControlServiceClient(o.http, p.URL))
	}
	return o
}

// patience is how long control planes may be without a leader.
const patience = 30 * time.Second

// do tries one after the other until one answers.
func (o *operator) do(ctx context.Context, f func(controlv1connect.ControlServiceClient) error) error {
	for deadline, i := time.Now().Add(patience), 0; ; i++ {
		err := f(o.clients[i%len(o.clients)])
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil, fault.KindOf(err) != fault.Unavailable, time.Now().After(deadline):
			return err
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

func (o *operator) drain(ctx context.Context, node string, timeout time.Duration, rate float64) (*controlv1.DrainOperation, error) {
	var op *controlv1.DrainOperation
	err := o.do(ctx, func(c controlv1connect.ControlServiceClient) error {
		res, err := c.Drain(ctx, connect.NewRequest(&controlv1.DrainRequest{
			NodeId: node, TimeoutMs: uint64(timeout.Milliseconds()), SessionsPerSecond: rate,
		}))
		if err == nil {
			op = res.Msg.GetDrain()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("drain %s: %w", node, err)
	}
	return op, nil
}

func (o *operator) undrain(ctx context.Context, node string) error {
	err := o.do(ctx, func(c controlv1connect.ControlServiceClient) error {
		_, err := c.Undrain(ctx, connect.NewRequest(&controlv1.UndrainRequest{NodeId: node}))
		return err
	})
	if err != nil {
		return fmt.Errorf("undrain %s: %w", node, err)
	}
	return nil
}

func (o *operator) cancel(ctx context.Context, id string) error {
	err := o.do(ctx, func(c controlv1connect.ControlServiceClient) error {
		_, err := c.ChangeDrain(ctx, connect.NewRequest(&controlv1.ChangeDrainRequest{
			OperationId: id, Change: controlv1.DrainChange_DRAIN_CHANGE_CANCEL,
		}))
		return err
	})
	if err != nil {
		return fmt.Errorf("cancel drain: %w", err)
	}
	return nil
}

// list returns the drains that match, newest first among those that have ended.
func (o *operator) list(ctx context.Context, q *controlv1.ListDrainsRequest) (all []*controlv1.DrainOperation, err error) {
	err = o.do(ctx, func(c controlv1connect.ControlServiceClient) error {
		res, err := c.ListDrains(ctx, connect.NewRequest(q))
		if err == nil {
			all = res.Msg.GetDrains()
		}
		return err
	})
	return all, err
}

// await waits until a drain is as it should be.
func (o *operator) await(ctx context.Context, id string, is func(*controlv1.DrainOperation) bool) (*controlv1.DrainOperation, error) {
	for {
		all, err := o.list(ctx, &controlv1.ListDrainsRequest{OperationId: id})
		if err != nil {
			return nil, fmt.Errorf("look at the drain: %w", err)
		}
		if len(all) > 0 && is(all[0]) {
			return all[0], nil
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func final(op *controlv1.DrainOperation) bool {
	return op.GetState() >= controlv1.DrainState_DRAIN_STATE_DONE
}

// gateways returns the sessions of those that serve.
func (o *operator) gateways(ctx context.Context) (map[string]int, error) {
	out := map[string]int{}
	err := o.do(ctx, func(c controlv1connect.ControlServiceClient) error {
		res, err := c.ListNodes(ctx, connect.NewRequest(&controlv1.ListNodesRequest{}))
		if err != nil {
			return err
		}
		clear(out)
		for _, n := range res.Msg.GetNodes() {
			if n.GetKind() == controlv1.NodeKind_NODE_KIND_GATEWAY && n.GetPhase() == gatewayv1.Phase_PHASE_SERVING && !n.GetUnreachable() {
				out[n.GetNodeId()] = int(n.GetSessions())
			}
		}
		return nil
	})
	return out, err
}

// serving waits until so many gateways serve.
func (o *operator) serving(ctx context.Context, n int) (map[string]int, error) {
	for {
		all, err := o.gateways(ctx)
		if err != nil || len(all) == n {
			return all, err
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// fullest waits until n gateways serve, and names the one with the most sessions.
func (o *operator) fullest(ctx context.Context, n int) (name string, sessions int, err error) {
	all, err := o.serving(ctx, n)
	for node, has := range all {
		if name == "" || has > sessions {
			name, sessions = node, has
		}
	}
	return name, sessions, err
}

var errNobodyLeads = errors.New("no control plane leads")

// leader names the control plane that leads.
func (o *operator) leader(ctx context.Context) (string, error) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		for _, p := range o.planes {
			if text, err := o.get(ctx, "http://"+p.Internal+"/metrics"); err == nil && leads(text) {
				return p.Name, nil
			}
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return "", err
		}
	}
	return "", errNobodyLeads
}

func leads(metrics string) bool {
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "mics_controlplane_leader") && !strings.HasPrefix(line, "mics_controlplane_leader_") {
			return strings.HasSuffix(strings.TrimSpace(line), " 1")
		}
	}
	return false
}

func (o *operator) get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	res, err := o.http.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(res.Body, 4<<20))
	return string(b), err
}
