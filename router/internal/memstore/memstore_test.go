package memstore_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/mics-im/mics/internal/testkit"
	"github.com/mics-im/mics/router/internal/memstore"
	"github.com/mics-im/mics/router/internal/route"
	"github.com/mics-im/mics/router/internal/storetest"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T, f func(*testing.T, route.Store, func(time.Duration))) {
		synctest.Test(t, func(t *testing.T) { f(t, memstore.New(), time.Sleep) })
	})
}
