// Package testkit holds what tests of several modules need.
package testkit

import (
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Main runs a package's tests and fails if a goroutine is left.
func Main(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// MainWithin is Main for a package that uses a library whose goroutines end by
// themselves, but only some time after everything was closed.
func MainWithin(m *testing.M, grace time.Duration) {
	code := m.Run()
	deadline := time.Now().Add(grace)
	for code == 0 {
		err := goleak.Find() // waits a little itself
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			fmt.Fprintf(os.Stderr, "goroutines are left after %v: %v\n", grace, err)
			code = 1
		}
	}
	os.Exit(code)
}

// Eventually waits until cond holds; what is named in the failure. The bound is
// generous because the machine may be busy: it is not a measurement.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("never came true: %s", what)
		}
		time.Sleep(2 * time.Millisecond) // polling a real system
	}
}

// FreePort returns a loopback port that was free a moment ago.
func FreePort(t testing.TB) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().(*net.TCPAddr).Port
}
