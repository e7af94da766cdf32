package harness

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// Main runs a package's tests, removes the binaries that they built, and fails
// if a goroutine is left.
func Main(m *testing.M) {
	code := m.Run()
	if err := built.cleanup(); err != nil {
		fmt.Fprintln(os.Stderr, "remove the built services:", err)
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines are left:", err)
			code = 1
		}
	}
	os.Exit(code)
}
