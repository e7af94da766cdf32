package route

import (
	"reflect"
	"testing"
	"time"
)

func TestPlanFor(t *testing.T) {
	now := time.Unix(1000, 0)
	g1, dead := NodeRef{"g1", 7}, NodeRef{"g1", 6}
	alive := func(n NodeRef) bool { return n == g1 }
	live := Record{Device: "phone", State: Live, Node: g1, Session: 1}
	for name, tc := range map[string]struct {
		records []Record
		only    string
		want    Plan
	}{
		"unknown user":                  {nil, "", Plan{}},
		"live":                          {[]Record{live}, "", Plan{Live: []Record{live}}},
		"an earlier incarnation":        {[]Record{{Device: "phone", State: Live, Node: dead}}, "", Plan{Absent: []string{"phone"}}},
		"closing takes nothing":         {[]Record{{Device: "phone", State: Closing, Node: g1}}, "", Plan{Absent: []string{"phone"}}},
		"ghost is owed":                 {[]Record{live, {Device: "desk", State: Ghost, Until: now.Add(time.Second)}}, "", Plan{Live: []Record{live}, Absent: []string{"desk"}}},
		"forgotten ghost":               {[]Record{{Device: "desk", State: Ghost, Until: now}}, "", Plan{}},
		"one device of several":         {[]Record{live, {Device: "desk", State: Live, Node: g1}}, "phone", Plan{Live: []Record{live}}},
		"one device that has gone away": {[]Record{live}, "desk", Plan{Absent: []string{"desk"}}},
	} {
		if got := PlanFor(tc.records, tc.only, alive, now); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: got %+v, want %+v", name, got, tc.want)
		}
	}
}
