package gateway

import (
	"bytes"
	"os"
	"runtime/metrics"
	"strconv"

	gatewayv1 "github.com/mics-im/mics/proto/mics/gateway/v1"
)

// complete adds to a Status what the sessions do not know.
func (g *Gateway) complete(res *gatewayv1.StatusResponse) {
	res.AcceptMs = histogram(g.upgrades.AcceptMS())
	res.AckMs = histogram(g.uplink.AckMS())
	res.ResidentBytes = residentBytes()
	res.ResumesFailedTotal = g.upgrades.ResumesFailed()
	res.Arrivals = g.arrivals.List()
	res.SessionsMax = uint64(g.cfg.MaxConnections)
	res.Drain = g.drainer.Progress()
	c := g.steerer.Counts()
	res.RuleGeneration, res.SessionsMisplaced, res.SessionsMisplacedV1, res.SessionsOfCanary = c.Generation, c.Misplaced, c.MisplacedV1, c.OfCanary
	res.SessionsByPlace = c.Places
}

func histogram(bounds []float64, counts []uint64) *gatewayv1.Histogram {
	return &gatewayv1.Histogram{Bounds: bounds, Counts: counts}
}

// residentBytes is the process's resident memory; where the system does not tell
// (proc_pid_statm(5)), what the Go runtime has mapped.
func residentBytes() uint64 {
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		if f := bytes.Fields(b); len(f) > 1 {
			if pages, err := strconv.ParseUint(string(f[1]), 10, 64); err == nil {
				return pages * uint64(os.Getpagesize())
			}
		}
	}
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
