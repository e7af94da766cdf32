// Package storetest is the contract of route.Store as tests, run on every
// backend.
package storetest

import (
	"slices"
	"testing"
	"time"

	"github.com/mics-im/mics/router/internal/route"
)

// Backend runs f once with an empty store that nobody else uses. pass makes d
// go by for everything the store remembers: a backend that cannot wait moves
// what it remembers into the past.
type Backend func(t *testing.T, f func(t *testing.T, s route.Store, pass func(d time.Duration)))

// test is one test of the suite.
type test func(t *testing.T, s route.Store, pass func(time.Duration))

// Run runs the suite.
func Run(t *testing.T, on Backend) {
	for name, f := range map[string]test{
		"BindCountsEpochs":                  bindCountsEpochs,
		"BindReturnsWhatItReplaced":         bindReturnsPrevious,
		"ConcurrentBindsAreOrdered":         concurrentBinds,
		"EmptyNamesAreInvalid":              emptyNames,
		"ChangeComparesNodeEpochAndSession": changeCompares,
		"ChangesApplyInTheirOrder":          changesInOrder,
		"AnInvalidChangeAppliesNone":        invalidChange,
		"AGhostWithoutTimeIsGone":           ghostWithoutTime,
		"GhostsAreForgotten":                ghostsAreForgotten,
		"LiveDevicesOutliveGhosts":          liveOutliveGhosts,
		"MillisecondsAreRoundedUp":          roundedUp,
		"LookupKeepsTheOrderOfKeys":         lookupOrder,
		"LookupCatchesUp":                   lookupCatchesUp,
		"ManyUsersAtOnce":                   manyUsers,
		"HostileNamesStayApart":             hostileNames,
		"NodeLeases":                        func(t *testing.T, s route.Store, pass func(time.Duration)) { leases(t, nodeLeases{s}, pass) },
		"RouterLeases":                      func(t *testing.T, s route.Store, pass func(time.Duration)) { leases(t, routerLeases{s}, pass) },
		"NodesSayWhatTheyAre":               nodesDescribed,
		"RoutersSayWhatTheyAre":             routersDescribed,
		"NodesAndRoutersAreApart":           leasesApart,
		"ConnectionsAreSummedOverLive":      connectionsSummed,
		"TheNodeItselfIsLive":               nodeItselfLives,
		"ARefusedConnectionIsNotCounted":    refusedNotCounted,
		"ConnectionsAreGivenBack":           connectionsReleased,
		"CountsOfTheAbsentLastAWeek":        countsForgotten,
		"CountsOfTheLivingLast":             livingCountsLast,
		"ConcurrentConnectionsKeepTheLimit": concurrentConnections,
		"TenantsCountApart":                 tenantsCountApart,
		"ABucketHoldsASecondsWorth":         bucketHolds,
		"ABucketRefills":                    bucketRefills,
		"NoTokensForNothing":                noTokens,
		"ABucketFollowsItsRate":             bucketFollowsRate,
		"ConcurrentLeasesShareOneBucket":    concurrentLeases,
		"ABackendThatIsThereAnswers":        answers,
		"DeadNodesAreKnown":                 deadNodesKnown,
		"TheBuriedAreRefused":               buriedRefused,
		"ReapingMakesGhosts":                reapingMakesGhosts,
		"ReapingFindsAllInBatches":          reapingInBatches,
		"ReapingDropsCounts":                reapingDropsCounts,
		"OnlyRoutesAreReaped":               onlyRoutesAreReaped,
		"ALateBindIsReaped":                 lateBindReaped,
		"BindsDuringReaping":                bindsDuringReaping,
		"HostileNamesAreReaped":             hostileReaped,
		"EachRouteIsReapedByOne":            reapedByOne,
		"RestoreKnowsWhatIsNewer":           restoreKnowsNewer,
		"RestoredRoutesAreReaped":           restoredReaped,
		"RestoredGhostsAreForgotten":        restoredGhosts,
		"AnInvalidRestoreSetsNone":          invalidRestore,
		"ManyAreRestored":                   manyRestored,
		"CountsAreSet":                      countsSet,
		"TheMarkerStays":                    markerStays,
		"AUserIsRestoredAsAWhole":           restoredWhole,
		"OneHoldsALock":                     oneHoldsALock,
		"ConcurrentLocksHaveOneHolder":      concurrentLocks,
	} {
		t.Run(name, func(t *testing.T) { on(t, f) })
	}
}

var (
	phone = device("ann", "phone")
	g1    = route.NodeRef{ID: "g1", Incarnation: 7}
	g2    = route.NodeRef{ID: "g2", Incarnation: 1}

	// hostile are names that a careless key or record format would mix up.
	hostile = []string{"a", "}", "{", "{a}", "a/b", "a%2Fb", "%", "日本", "a\x00b", "a:b", " ", "a\nb", `"`}
)

func device(user, device string) route.DeviceKey {
	return route.DeviceKey{UserKey: route.UserKey{Tenant: "t", User: user}, Device: device}
}

func bind(t *testing.T, s route.Store, k route.DeviceKey, n route.NodeRef, session uint64) (uint64, *route.Record) {
	t.Helper()
	epoch, prev, err := s.Bind(t.Context(), k, route.Location{Node: n, Session: session}, 1)
	if err != nil {
		t.Fatal(err)
	}
	return epoch, prev
}

func lookup(t *testing.T, s route.Store, k route.UserKey) []route.Record {
	t.Helper()
	r, err := s.LookupFresh(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func change(t *testing.T, s route.Store, c ...route.Change) []bool {
	t.Helper()
	applied, err := s.Change(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if len(applied) != len(c) {
		t.Fatalf("%d answers to %d changes", len(applied), len(c))
	}
	return applied
}

// ghost turns the device's record at epoch into one for ttl.
func ghost(k route.DeviceKey, n route.NodeRef, epoch uint64, ttl time.Duration) route.Change {
	return route.Change{Key: k, Node: n, Epoch: epoch, To: route.Ghost, GhostTTL: ttl}
}

func want[T comparable](t *testing.T, what string, got, want []T) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s: %+v, want %+v", what, got, want)
	}
}

func answers(t *testing.T, s route.Store, _ func(time.Duration)) {
	if err := s.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
}
