package harness

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// Closing is how a connection ended.
type Closing struct {
	Code   int
	Reason string
}

// Device is a user's device in a scenario: a client program and what its
// application has seen. Its methods fail the test when they wait in vain; they
// are for the test's goroutine unless said otherwise.
type Device struct {
	Tenant, User, Name string

	c    *Cluster
	t    testing.TB
	dial Dialing
	isV1 bool

	mu       sync.Mutex
	end      Endpoint   // guarded by mu; nil: left
	inbox    []Incoming // guarded by mu; not wanted yet
	total    int        // guarded by mu
	connects int        // guarded by mu
	node     string     // guarded by mu; empty: not connected
	closings []Closing  // guarded by mu; not wanted yet
	errors   []Closing  // guarded by mu; ServerErrors
	ended    error      // guarded by mu
}

// Setting of a Device.
type Setting func(*Dialing)

// On has the device connect to these gateways only; the default is all.
func On(gateways ...string) Setting {
	return func(d *Dialing) { d.URLs = gateways } // names, resolved by device
}

// Called names the device; the default is phone.
func Called(device string) Setting { return func(d *Dialing) { d.Device = device } }

// Of names the tenant; the default is the first one.
func Of(tenant string) Setting { return func(d *Dialing) { d.Tenant = tenant } }

// Token sets the token; the default is the user's own.
func Token(token string) Setting { return func(d *Dialing) { d.Token = token } }

// Client starts a device on the Go SDK and waits until it is connected.
func (c *Cluster) Client(user string, settings ...Setting) *Device {
	c.t.Helper()
	d := c.device(user, settings)
	d.Joins()
	d.Connected()
	return d
}

// V1 is Client with an unmodified V1 client.
func (c *Cluster) V1(user string, settings ...Setting) *Device {
	c.t.Helper()
	d := c.device(user, settings)
	d.isV1 = true
	d.Joins()
	d.Connected()
	return d
}

// Try is V1 for a device that is going to be refused: it connects once.
func (c *Cluster) Try(user string, settings ...Setting) *Device {
	c.t.Helper()
	d := c.device(user, settings)
	d.isV1 = true
	d.Joins()
	d.V1().StaysAway()
	return d
}

func (c *Cluster) device(user string, settings []Setting) *Device {
	c.t.Helper()
	dial := Dialing{Tenant: c.tenants[0].Name, User: user, Device: "phone"}
	for _, s := range settings {
		s(&dial)
	}
	dial.URLs = c.URLs(dial.URLs...)
	d := &Device{Tenant: dial.Tenant, User: user, Name: dial.Device, c: c, t: c.t, dial: dial}
	d.dial.Observer = observed{d}
	c.mu.Lock()
	c.registry = append(c.registry, d)
	c.mu.Unlock()
	return d
}

// Joins starts the device's program, again after Leaves: a new instance.
func (d *Device) Joins() {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.end != nil {
		return
	}
	d.ended = nil
	if d.isV1 {
		d.end = DialV1(d.dial)
		return
	}
	e, err := DialSDK(d.dial)
	if err != nil {
		d.t.Fatal(err)
	}
	d.end = e
}

// Returns is Joins, and waits until it is connected.
func (d *Device) Returns() {
	d.t.Helper()
	d.Joins()
	d.Connected()
}

// Leaves closes the device's program in good order.
func (d *Device) Leaves() {
	d.mu.Lock()
	e := d.end
	d.end = nil
	d.mu.Unlock()
	if e != nil {
		e.Close()
	}
}

// V1 returns the V1 client, for what only that can do.
func (d *Device) V1() *V1 {
	d.t.Helper()
	v, ok := d.endpoint().(*V1)
	if !ok {
		d.t.Fatalf("%s is no V1 client, or has left", d)
	}
	return v
}

func (d *Device) endpoint() Endpoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.end
}

func (d *Device) String() string { return d.Tenant + "/" + d.User + "/" + d.Name }

// Connected waits until the device is connected.
func (d *Device) Connected() {
	d.t.Helper()
	d.eventually("is connected", func() bool { return d.node != "" })
}

// Node is the gateway that the device is connected to; empty: none.
func (d *Device) Node() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.node
}

// Connects is how often the device has been connected.
func (d *Device) Connects() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.connects
}

// eventually waits for a condition, which is looked at with mu held.
func (d *Device) eventually(what string, cond func() bool) {
	d.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		d.mu.Lock()
		ok := cond()
		state := fmt.Sprintf("at %q, inbox %s, closings %v, errors %v, ended %v", d.node, bodies(d.inbox), d.closings, d.errors, d.ended)
		d.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("%s: never came true: %s (%s)", d, what, state)
		}
		time.Sleep(2 * time.Millisecond) // polling real processes
	}
}

func bodies(in []Incoming) string {
	var out []string
	for i, m := range in {
		if i == 10 {
			out = append(out, "…")
			break
		}
		out = append(out, excerpt(string(m.Body), 40))
	}
	return fmt.Sprintf("%q", out)
}

// Wants waits for messages with these bodies and takes them: they are the next
// ones, in this order.
func (d *Device) Wants(want ...string) {
	d.t.Helper()
	d.eventually(fmt.Sprintf("gets %q", want), func() bool { return len(d.inbox) >= len(want) })
	for i, m := range d.take(len(want)) {
		if string(m.Body) != want[i] {
			d.t.Errorf("%s: message %d is %q, want %q", d, i+1, excerpt(string(m.Body), 100), want[i])
		}
	}
}

// Next waits for the next message and takes it.
func (d *Device) Next() Incoming {
	d.t.Helper()
	d.eventually("gets a message", func() bool { return len(d.inbox) > 0 })
	return d.take(1)[0]
}

func (d *Device) take(n int) []Incoming {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.inbox[:n:n]
	d.inbox = d.inbox[n:]
	return out
}

// Total is how many messages the device has got so far.
func (d *Device) Total() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.total
}

// HasNothing fails if there are messages that nobody wanted. Send something that
// must come after them and want that first: waiting proves nothing.
func (d *Device) HasNothing() {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.inbox) > 0 {
		d.t.Errorf("%s got %s unasked", d, bodies(d.inbox))
	}
}

// WantsClose waits for the end of a connection and takes it; an empty reason
// matches all.
func (d *Device) WantsClose(code int, reason string) {
	d.t.Helper()
	d.eventually(fmt.Sprintf("is closed with %d", code), func() bool { return len(d.closings) > 0 })
	d.mu.Lock()
	got := d.closings[0]
	d.closings = d.closings[1:]
	d.mu.Unlock()
	if got.Code != code || reason != "" && got.Reason != reason {
		d.t.Errorf("%s was closed with %d %q, want %d %q", d, got.Code, got.Reason, code, reason)
	}
}

// WantsError waits for a ServerError and takes it (V1).
func (d *Device) WantsError(code int) {
	d.t.Helper()
	d.eventually(fmt.Sprintf("gets error %d", code), func() bool { return len(d.errors) > 0 })
	d.mu.Lock()
	got := d.errors[0]
	d.errors = d.errors[1:]
	d.mu.Unlock()
	if got.Code != code {
		d.t.Errorf("%s got error %d %q, want %d", d, got.Code, got.Reason, code)
	}
}

// Ends waits until the client has stopped for good and returns why.
func (d *Device) Ends() error {
	d.t.Helper()
	d.eventually("stops for good", func() bool { return d.ended != nil })
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ended
}

// observed is a Device as its client sees it: an Observer and a RawObserver.
type observed struct{ *Device }

func (d observed) Connected(node string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.node = node
	d.connects++
}

func (d observed) Disconnected(code int, reason string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.node = ""
	d.closings = append(d.closings, Closing{code, reason})
}

func (d observed) Delivered(m Incoming) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.total++
	d.inbox = append(d.inbox, m)
}

func (d observed) Ended(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = err
}

func (d observed) ServerError(code int, message string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.errors = append(d.errors, Closing{code, message})
}
