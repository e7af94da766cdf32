package drainer

import (
	"fmt"
	"math"
	"net/url"

	"github.com/mics-im/mics/internal/fault"
	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// Bounds of what an operation may ask for.
const (
	maxOperation = 128
	maxTargets   = 1024
	maxPace      = 1e6
	maxURL       = 2048
)

func checkOrder(o Order) error {
	switch {
	case o.Operation == "" || len(o.Operation) > maxOperation:
		return fault.New(fault.Invalid, fmt.Sprintf("operation_id is required, of at most %d bytes", maxOperation))
	case math.IsNaN(o.Pace) || o.Pace < 0 || o.Pace > maxPace:
		return fault.New(fault.Invalid, fmt.Sprintf("sessions_per_second must be between 0 and %g", maxPace))
	}
	return CheckTargets(o.Targets)
}

// CheckTargets says what is wrong with targets: a client is sent to a ws:// or
// wss:// URL, or by a reference to one like that which it dialled.
func CheckTargets(list []*gatewayv1.Target) error {
	if len(list) > maxTargets {
		return fault.New(fault.Invalid, fmt.Sprintf("at most %d targets", maxTargets))
	}
	for _, t := range list {
		u, err := url.Parse(t.GetUrl())
		if err != nil || len(t.GetUrl()) > maxURL || u.User != nil || u.Scheme != "" && u.Scheme != "ws" && u.Scheme != "wss" || u.Scheme != "" && u.Host == "" {
			return fault.New(fault.Invalid, fmt.Sprintf("target %q: url must be ws:// or wss://, or a reference", t.GetNodeId()))
		}
	}
	return nil
}
