// Package harness runs a MICS cluster of real processes on loopback and speaks
// of it in the product's language: gateways that are killed, links that are cut,
// users who send and want messages.
//
//	c := harness.New(t, harness.Options{Gateways: 2, Routers: 2})
//	ann, bob := c.Client("ann"), c.V1("bob", harness.On("gw2"))
//	c.At(100 * time.Millisecond).Kill("gw1")
//	ann.Sends("hi").To("bob")
//	bob.Wants("hi")
//
// Every process, listener and goroutine ends with the test. Waiting is by
// condition, with a bound that is generous because the machine may be busy; it
// is no measurement.
package harness
