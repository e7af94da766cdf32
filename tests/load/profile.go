package load

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// profile is perf at work on the gateways and routers; they need no profiling
// code of their own, because perf unwinds Go by its frame pointers. nil is no
// profile.
type profile struct{ cmds []*exec.Cmd }

// startProfile records to DIR/NAME.perf, 997 samples of CPU time a second.
func startProfile(dir string, procs []Proc) (*profile, error) {
	if dir == "" {
		return nil, nil
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	p := &profile{}
	for _, proc := range procs {
		if k := proc.Kind(); k != Gateway && k != Router {
			continue
		}
		cmd := exec.Command("perf", "record", "-q", "-F", "997", "-e", "cpu-clock", "--call-graph", "fp",
			"-o", filepath.Join(dir, proc.Name+".perf"), "-p", strconv.Itoa(proc.PID))
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			p.stop()
			return nil, fmt.Errorf("profile %s: %w", proc.Name, err)
		}
		p.cmds = append(p.cmds, cmd)
	}
	return p, nil
}

// stop ends the records and waits until they are written.
func (p *profile) stop() {
	if p == nil {
		return
	}
	for _, c := range p.cmds {
		_ = c.Process.Signal(os.Interrupt)
	}
	for _, c := range p.cmds {
		_ = c.Wait() // perf reports the signal as its exit
	}
}
