package store_test

import (
	"testing"

	"github.com/mics-im/mics/controlplane/internal/store"
	"github.com/mics-im/mics/controlplane/internal/store/storetest"
	"github.com/mics-im/mics/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestMemory(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return store.NewMemory() })
}
