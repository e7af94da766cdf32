package load

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Kinds of processes: the part of a Proc's name before its number.
const (
	Gateway = "gateway"
	Router  = "router"
	Redis   = "redis"
	// ControlPlane is in no sum of CPU: it is in no message's way.
	ControlPlane = "controlplane"
	// Hooks is the tenant's own server: its CPU is told apart and is in no sum.
	Hooks = "tenant"
)

// Proc is a server process on this machine.
type Proc struct {
	// Name is a kind, possibly followed by - and a number.
	Name string
	PID  int
}

// Kind is the Name without its number.
func (p Proc) Kind() string {
	kind, _, _ := strings.Cut(p.Name, "-")
	return kind
}

// CPU is the processor time, user and system, that the process has used. It is
// what utime and stime in /proc/PID/stat add up to, in nanoseconds instead of
// ticks of 10 ms.
func (p Proc) CPU() (time.Duration, error) {
	// clock_getcpuclockid(3): the clock of a whole process.
	const wholeProcess = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^p.PID<<3|wholeProcess), &ts); err != nil {
		return 0, fmt.Errorf("CPU time of %s (process %d): %w", p.Name, p.PID, err)
	}
	return time.Duration(ts.Nano()), nil
}

// Memory is what a process has resident, in bytes. What the kernel holds for it
// (socket buffers, for instance) is not in it.
type Memory struct {
	All int64
	// Anonymous is without the pages of the program's file.
	Anonymous int64
}

// Memory reads /proc/PID/smaps_rollup.
func (p Proc) Memory() (Memory, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.PID))
	if err != nil {
		return Memory{}, fmt.Errorf("memory of %s: %w", p.Name, err)
	}
	var m Memory
	for name, to := range map[string]*int64{"\nRss:": &m.All, "\nAnonymous:": &m.Anonymous} {
		_, rest, ok := bytes.Cut(text, []byte(name))
		f := bytes.Fields(rest)
		if !ok || len(f) < 2 || string(f[1]) != "kB" {
			return Memory{}, fmt.Errorf("memory of %s: no %q in smaps_rollup", p.Name, name[1:])
		}
		kb, err := strconv.ParseInt(string(f[0]), 10, 64)
		if err != nil {
			return Memory{}, fmt.Errorf("memory of %s: %w", p.Name, err)
		}
		*to = kb << 10
	}
	return m, nil
}

// meter measures CPU over an interval.
type meter struct {
	procs []Proc
	at    []time.Duration
	self  time.Duration
	busy  time.Duration
	began time.Time
	perf  *profile
}

// usage is what an interval cost.
type usage struct {
	cpu  []time.Duration // of procs, in their order
	wall time.Duration
	self time.Duration // of this process
	// others is what processes other than these used, on all processors.
	others time.Duration
}

// startMeter starts an interval, and the profile that p may ask for.
func startMeter(procs []Proc, p Params) (*meter, error) {
	perf, err := startProfile(p.Profile, procs)
	if err != nil {
		return nil, err
	}
	m := &meter{procs: procs, perf: perf}
	m.at, m.self, m.busy, err = m.read()
	m.began = time.Now()
	if err != nil {
		perf.stop()
	}
	return m, err
}

func (m *meter) read() (cpu []time.Duration, self, busy time.Duration, err error) {
	for _, p := range m.procs {
		c, err := p.CPU()
		if err != nil {
			return nil, 0, 0, err
		}
		cpu = append(cpu, c)
	}
	if self, err = (Proc{"self", os.Getpid()}).CPU(); err != nil {
		return nil, 0, 0, err
	}
	busy, err = machineBusy()
	return cpu, self, busy, err
}

// stop ends the interval.
func (m *meter) stop() (usage, error) {
	cpu, self, busy, err := m.read()
	m.perf.stop()
	if err != nil {
		return usage{}, err
	}
	u := usage{cpu: cpu, wall: time.Since(m.began), self: self - m.self, others: busy - m.busy - (self - m.self)}
	for i := range cpu {
		cpu[i] -= m.at[i]
		u.others -= cpu[i]
	}
	u.others = max(u.others, 0)
	return u, nil
}

// machineBusy is the time that all processors together have worked.
func machineBusy() (time.Duration, error) {
	// The first line: cpu user nice system idle iowait irq softirq steal …
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("the machine's CPU time: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every architecture that Go runs on
	var sum time.Duration
	for i, s := range strings.Fields(line) {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || i == 4 || i == 5 || i > 7 {
			continue
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

// costs are the metrics of an interval in which units of work were done: CPU
// per unit in all, limited to limit µs, and by process.
func (u usage) costs(procs []Proc, per string, units int64, limit float64) []Metric {
	if units <= 0 {
		return []Metric{{Name: "CPU per " + per + ": nothing was done", Unit: "µs"}}
	}
	each := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) / float64(units) }
	sum := Metric{Name: "CPU per " + per, Unit: "µs", Limit: limit}
	kinds := map[string]time.Duration{}
	for i, p := range procs {
		kinds[p.Kind()] += u.cpu[i]
		if p.Kind() != Hooks {
			sum.Value += each(u.cpu[i])
		}
	}
	out := []Metric{sum}
	for _, p := range procs {
		k := p.Kind()
		if d, ok := kinds[k]; ok {
			name := "· " + k
			if k == Hooks {
				name += " (not in the sum)"
			}
			out = append(out, Metric{Name: name, Unit: "µs", Value: each(d)})
			delete(kinds, k)
		}
	}
	return append(out,
		Metric{Name: "· load generator (not in the sum)", Unit: "µs", Value: each(u.self)},
		Metric{Name: "rate", Unit: "/s", Value: float64(units) / u.wall.Seconds()},
		Metric{Name: "processors busy with other things", Unit: "", Value: u.others.Seconds() / u.wall.Seconds()},
	)
}
