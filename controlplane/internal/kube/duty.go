package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mics-im/mics/controlplane/internal/fleet"
	"github.com/mics-im/mics/controlplane/internal/store"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// drainAgain is how long a drain that was refused is not asked for again.
const drainAgain = 15 * time.Second

// seen is a pod together with what its gateway says. Called with mu held.
func (k *Kube) seen(p *unstructured.Unstructured, gateways map[string]fleet.Node) Pod {
	name, labels, notes := p.GetName(), p.GetLabels(), p.GetAnnotations()
	out := Pod{
		Name: name, Node: placeOf(p), Track: labels[trackLabel], Hash: labels[hashLabel], Terminating: p.GetDeletionTimestamp() != nil,
		Accept: labels[acceptLabel] == "true", Cost: notes[costAnnotation], Cordon: notes[cordonAnnotation] != "",
		CostAt: k.written[name],
	}
	conditions, _, _ := unstructured.NestedSlice(p.Object, "status", "conditions")
	for _, c := range conditions {
		if c, ok := c.(map[string]any); ok {
			out.Ready = out.Ready || c["type"] == "Ready" && c["status"] == "True"
		}
	}
	if g, found := gateways[name]; found && !g.Unreachable {
		out.Known, out.Sessions = true, g.Sessions
		out.Serving = g.Phase == gatewayv1.Phase_PHASE_SERVING
		out.Draining = g.Phase == gatewayv1.Phase_PHASE_DRAINING || g.Phase == gatewayv1.Phase_PHASE_DRAINED
	}
	return out
}

// Duty is what the leader does, until ctx ends: after every round of the inventory it
// looks and acts.
func (k *Kube) Duty(ctx context.Context, _ *store.Tenure) {
	var seq uint64
	for {
		snap, err := k.cfg.Inventory.Next(ctx, seq)
		if err != nil {
			return
		}
		seq = snap.Seq
		if !k.ready() {
			continue
		}
		gateways := map[string]fleet.Node{}
		for _, n := range snap.Nodes {
			if n.Kind == fleet.Gateway {
				gateways[n.ID] = n
			}
		}
		for _, a := range Decide(k.view(gateways, time.Now())) {
			k.act(ctx, a)
		}
	}
}

// act carries one action out. What fails is tried again after the next look.
func (k *Kube) act(ctx context.Context, a Action) {
	if a.Verb == Drain && k.lately(a.Pod) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var err error
	switch a.Verb {
	case Accept:
		err = k.patch(ctx, a.Pod, map[string]any{"labels": map[string]any{acceptLabel: a.Value}})
	case Cost:
		err = k.patch(ctx, a.Pod, map[string]any{"annotations": map[string]any{costAnnotation: a.Value}})
	case Drain:
		if err = k.cfg.Drains.Drain(ctx, a.Pod, a.Why); err == nil {
			err = k.patch(ctx, a.Pod, map[string]any{"annotations": map[string]any{cordonAnnotation: "true"}})
		}
	case Undrain:
		if err = k.cfg.Drains.Undrain(ctx, a.Pod); err == nil {
			err = k.patch(ctx, a.Pod, map[string]any{"annotations": map[string]any{cordonAnnotation: nil}})
		}
	}
	if apierrors.IsNotFound(err) || errors.Is(ctx.Err(), context.Canceled) {
		return // the pod has gone, or this process is not the leader any more
	}
	k.mu.Lock()
	again := time.Since(k.refused[a.Pod]) < 2*drainAgain
	switch {
	case a.Verb == Cost && err == nil:
		k.written[a.Pod] = time.Now()
	case a.Verb == Drain && err != nil:
		k.refused[a.Pod] = time.Now()
	}
	k.mu.Unlock()
	if err != nil {
		if a.Verb == Drain && !again {
			k.event(ctx, reference{"v1", "Pod", a.Pod}, "DrainRefused", fmt.Sprintf("not drained: %s: %v", a.Why, err))
		}
		k.failed.With(string(a.Verb)).Inc()
		k.log.WarnContext(ctx, "kube_action_failed", "verb", string(a.Verb), "pod", a.Pod, "why", a.Why, "err", err)
		return
	}
	k.actions.With(string(a.Verb)).Inc()
	if a.Verb == Cost {
		return
	}
	k.log.InfoContext(ctx, "kube_action", "verb", string(a.Verb), "pod", a.Pod, "value", a.Value, "why", a.Why)
	reason, text := "Drain", "drained: "+a.Why
	switch {
	case a.Verb == Undrain:
		reason, text = "Undrain", "serves again: "+a.Why
	case a.Verb == Accept && a.Value == "true":
		reason, text = "Accept", "gets new connections: "+a.Why
	case a.Verb == Accept:
		reason, text = "NoAccept", "gets no new connections: "+a.Why
	}
	k.event(ctx, reference{"v1", "Pod", a.Pod}, reason, text)
}

// lately: a drain of the pod was refused a moment ago.
func (k *Kube) lately(pod string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	at, found := k.refused[pod]
	return found && time.Since(at) < drainAgain
}

func (k *Kube) patch(ctx context.Context, pod string, metadata map[string]any) error {
	body, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return err
	}
	_, err = k.cfg.Client.Resource(pods).Namespace(k.cfg.Namespace).Patch(ctx, pod, types.MergePatchType, body, metav1.PatchOptions{FieldManager: manager})
	return err
}

// reference is what an event is about.
type reference struct{ version, kind, name string }

// event tells people, in `kubectl describe` and `kubectl get events`. One that is
// not taken is not worth more than a log line: nothing depends on it.
func (k *Kube) event(ctx context.Context, about reference, reason, text string) {
	now := time.Now().UTC().Format(time.RFC3339)
	_, err := k.cfg.Client.Resource(events).Namespace(k.cfg.Namespace).Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Event",
		"metadata": map[string]any{"name": about.name + "." + strconv.FormatInt(time.Now().UnixNano(), 16), "namespace": k.cfg.Namespace},
		"involvedObject": map[string]any{
			"apiVersion": about.version, "kind": about.kind, "name": about.name, "namespace": k.cfg.Namespace,
		},
		"reason": reason, "message": text, "type": "Normal", "source": map[string]any{"component": manager},
		"firstTimestamp": now, "lastTimestamp": now, "count": int64(1),
	}}, metav1.CreateOptions{FieldManager: manager})
	if err != nil {
		k.log.DebugContext(ctx, "kube_event_refused", "about", fmt.Sprintf("%s/%s", about.kind, about.name), "err", err)
	}
}
