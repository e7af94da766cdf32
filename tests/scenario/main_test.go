// Package scenario tests a cluster of real processes from outside: what users,
// tenants and operators are promised.
package scenario

import (
	"testing"

	"github.com/mics-im/mics/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
