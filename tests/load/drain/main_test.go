package drain

import (
	"testing"

	"github.com/mics-im/mics/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
