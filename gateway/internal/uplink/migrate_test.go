package uplink

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mics-im/mics/gateway/internal/routertest"
	routerv1 "github.com/mics-im/mics/proto/mics/router/v1"
)

func TestMigrateAsksEachHomeOnce(t *testing.T) {
	run(t, []string{base("a")}, func(w *world) {
		makes := func(r *routertest.Router) {
			r.Tokens = func(s *routerv1.MigratingSession) string { return fmt.Sprint(r.Info.GetNodeId(), s.GetSessionId()) }
		}
		a, b := w.router("a", makes), w.router("b", makes)
		w.cluster.Set(a, b)
		w.u.Start()
		w.pass(time.Second)
		var sessions []*routerv1.MigratingSession
		index := homeIndex([]member{{id: "a"}, {id: "b"}})
		var want []string
		for i := range 20 {
			s := &routerv1.MigratingSession{SessionId: uint64(i), TenantId: "t", UserId: fmt.Sprint("u", i), DeviceId: "d", Epoch: 3}
			sessions = append(sessions, s)
			want = append(want, fmt.Sprint([]string{"a", "b"}[index("t", s.UserId)], i))
		}
		tokens, err := w.u.migrate(w.t.Context(), sessions, 7*time.Second)
		if err != nil || fmt.Sprint(tokens) != fmt.Sprint(want) {
			t.Errorf("got %v, %v, want %v", tokens, err, want)
		}
		if m := a.Migrations(); len(m) != 1 || len(b.Migrations()) != 1 || m[0].GetDeadlineMs() != 7000 || m[0].GetGateway().GetNodeId() == "" || m[0].GetSessions()[0].GetEpoch() != 3 {
			t.Errorf("asked %v, %v", m, b.Migrations())
		}

		b.Do(func(r *routertest.Router) { r.Tokens = nil })
		tokens, err = w.u.migrate(w.t.Context(), sessions, time.Second)
		if err == nil {
			t.Error("no error although b makes no tokens")
		}
		for i, token := range tokens {
			if mine := strings.HasPrefix(want[i], "a"); mine && token != want[i] || !mine && token != "" {
				t.Errorf("session %d got %q", i, token)
			}
		}
	})
}
