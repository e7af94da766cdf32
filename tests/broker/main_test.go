// Package broker tests what tenants get on Kafka, with a real one and real
// processes: that nothing is missing without being counted, and that messages do
// not notice.
package broker

import (
	"testing"

	"github.com/mics-im/mics/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
