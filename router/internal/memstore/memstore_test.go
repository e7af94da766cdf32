package memstore_test

import (
	"testing"

	"github.com/mics-im/mics/internal/testkit"
	"github.com/mics-im/mics/router/internal/memstore"
	"github.com/mics-im/mics/router/internal/route"
	"github.com/mics-im/mics/router/internal/storetest"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestContract(t *testing.T) {
	storetest.Run(t, func(*testing.T) route.Store { return memstore.New() })
}
