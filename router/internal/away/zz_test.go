package away
import ("testing";"testing/synctest";"fmt";"os")
func TestZZ(t *testing.T) {
	if os.Getenv("ZZ")=="" { t.Skip() }
	for i := range 3000 {
		t.Run(fmt.Sprint(i), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { play(t, 1386) }) })
		if t.Failed() { break }
	}
}
func init() { zzdump = func(w *world, k string) {
	for _, m := range w.routers {
		kk := key(k, "x").UserKey
		recs, c := m.mirror.records(kk)
		st, _ := w.redis.Load().LookupFresh(w.t.Context(), kk)
		fmt.Println("ZZ", m.opts.Self.ID, "mine", m.mine(kk), "phase", m.phase(), recs, c, "store", st, "dirty", m.mirror.unsavedLen())
		fmt.Println(m.logs.String())
	}
} }
