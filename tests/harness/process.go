package harness

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is one process of a cluster, over all its incarnations. Its methods
// are safe for concurrent use, but a Kill racing a Start means what it says.
type Process struct {
	Name string
	// Internal is where /readyz and /metrics are, host:port; empty for Redis.
	Internal string
	// Public is where clients, or operators, connect, host:port; empty: nowhere.
	Public string

	t     testing.TB
	path  string
	args  []string
	env   []string
	log   string // file, of all incarnations
	ready func() bool

	mu  sync.Mutex
	run *incarnation // guarded by mu; the last one
}

// incarnation is one run of a process.
type incarnation struct {
	pid   int
	ended chan struct{} // closed when it has; err is set then
	err   error
	// expected: the harness had it end; guarded by Process.mu
	expected bool
}

const (
	readyTimeout = 60 * time.Second
	// stopTimeout is above every drain timeout in use.
	stopTimeout = 60 * time.Second
)

// Start starts the process, again after Kill or Stop under the same name and
// addresses, and waits until it is ready.
func (p *Process) Start() {
	p.t.Helper()
	p.Launch()
	p.AwaitReady()
}

// Launch is Start without waiting.
func (p *Process) Launch() {
	p.t.Helper()
	if err := p.launch(); err != nil {
		p.t.Errorf("start %s: %v", p.Name, err)
	}
}

func (p *Process) launch() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run != nil && p.run.alive() {
		return nil
	}
	log, err := os.OpenFile(p.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	cmd := exec.Command(p.path, p.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Dir(p.log)}, p.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	run := &incarnation{ended: make(chan struct{})}
	started := make(chan error)
	go func() { // ends with the process, which cleanup kills
		defer close(run.ended)
		// Pdeathsig is about the thread that started the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		_ = log.Close() // the process has its own
		if err != nil {
			run.err = err
			started <- err
			return
		}
		run.pid = cmd.Process.Pid
		started <- nil
		run.err = cmd.Wait()
	}()
	err = <-started
	p.run = run
	return err
}

func (r *incarnation) alive() bool {
	select {
	case <-r.ended:
		return false
	default:
		return true
	}
}

// current returns the last incarnation, marked as one that may end; nil: none.
func (p *Process) current(mayEnd bool) *incarnation {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run != nil && mayEnd {
		p.run.expected = true
	}
	return p.run
}

// AwaitReady waits until the process can do its work.
func (p *Process) AwaitReady() {
	p.t.Helper()
	if !p.awaitReady() {
		p.t.Errorf("%s does not become ready", p.Name)
	}
}

func (p *Process) awaitReady() bool {
	run := p.current(false)
	for deadline := time.Now().Add(readyTimeout); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if run == nil || !run.alive() {
			return false
		}
		if p.ready() {
			return true
		}
	}
	return false
}

// Ready reports whether the process can do its work.
func (p *Process) Ready() bool { return p.Alive() && p.ready() }

// Alive reports whether there is a process.
func (p *Process) Alive() bool {
	run := p.current(false)
	return run != nil && run.alive()
}

// PID returns the process id, 0 without a process.
func (p *Process) PID() int {
	if run := p.current(false); run != nil && run.alive() {
		return run.pid
	}
	return 0
}

// Kill ends the process without a word and waits until it is gone.
func (p *Process) Kill() {
	if run := p.current(true); run != nil {
		p.signal(run, syscall.SIGKILL)
		<-run.ended
	}
}

// Stop asks the process to end (SIGTERM), waits until it has, and returns its
// exit code and how long it took; code -1: a signal ended it, or it had to be
// killed.
func (p *Process) Stop() (code int, took time.Duration) {
	run := p.current(true)
	if run == nil {
		return -1, 0
	}
	p.signal(run, syscall.SIGTERM)
	return p.await(run)
}

// Ended is Stop after Terminate: a second signal would end the process at once.
func (p *Process) Ended() (code int, took time.Duration) {
	p.t.Helper()
	run := p.current(true)
	if run == nil {
		return -1, 0
	}
	return p.await(run)
}

func (p *Process) await(run *incarnation) (code int, took time.Duration) {
	p.t.Helper()
	began := time.Now()
	select {
	case <-run.ended:
	case <-time.After(stopTimeout):
		p.t.Errorf("%s did not stop and was killed", p.Name)
		p.signal(run, syscall.SIGKILL)
		<-run.ended
		return -1, time.Since(began)
	}
	return exitCode(run.err), time.Since(began)
}

func exitCode(err error) int {
	var e *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.ExitCode()
	}
	return -1
}

// Terminate is Stop without waiting.
func (p *Process) Terminate() {
	if run := p.current(true); run != nil {
		p.signal(run, syscall.SIGTERM)
	}
}

// Pause makes the process hang, its connections open, until Resume.
func (p *Process) Pause() { p.signal(p.current(false), syscall.SIGSTOP) }

// Resume ends a Pause.
func (p *Process) Resume() { p.signal(p.current(false), syscall.SIGCONT) }

// Supervise starts the process anew if it ends within that time, as whatever runs
// it would: one that was declared dead while it was silent does.
func (p *Process) Supervise(within time.Duration) {
	p.t.Helper()
	run := p.current(true)
	if run == nil {
		return
	}
	select {
	case <-run.ended:
		if exitCode(run.err) == 1 { // not by a signal: who sent that starts it anew
			p.Start()
		}
	case <-time.After(within):
		p.mu.Lock()
		run.expected = false
		p.mu.Unlock()
	}
}

func (p *Process) signal(run *incarnation, sig syscall.Signal) {
	if run != nil && run.alive() {
		_ = syscall.Kill(run.pid, sig) // it may have ended by now
	}
}

// Metrics reads the process's metrics.
func (p *Process) Metrics() Metrics {
	p.t.Helper()
	m, err := readMetrics("http://" + p.Internal + "/metrics")
	if err != nil {
		p.t.Errorf("metrics of %s: %v", p.Name, err)
	}
	return m
}

// Log returns what the process has written so far, in all incarnations.
func (p *Process) Log() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// bug returns what in a log can only be a mistake in a program.
func bug(log string) string {
	for _, sign := range []string{"WARNING: DATA RACE", "\npanic: ", "\nfatal error: ", "unexpected fault address"} {
		if i := strings.Index("\n"+log, sign); i >= 0 {
			return excerpt(("\n" + log)[i:], 4000)
		}
	}
	return ""
}

func excerpt(s string, n int) string { return s[:min(n, len(s))] }

// unexpected says how the process ended, if nobody had it do so.
func (p *Process) unexpected() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run == nil || p.run.alive() || p.run.expected {
		return nil
	}
	if p.run.err == nil {
		return fmt.Errorf("%s has ended by itself", p.Name)
	}
	return fmt.Errorf("%s has ended by itself: %w", p.Name, p.run.err)
}

// tail returns the last lines of the log.
func (p *Process) tail(lines int) string {
	b := bytes.TrimRight([]byte(p.Log()), "\n")
	at := len(b)
	for ; lines > 0 && at > 0; lines-- {
		at = max(bytes.LastIndexByte(b[:at], '\n'), 0)
	}
	return string(b[at:])
}

// Set changes a setting, NAME=VALUE, from the next start on.
func (p *Process) Set(setting string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.env = append(p.env, setting) // the last one counts
}
