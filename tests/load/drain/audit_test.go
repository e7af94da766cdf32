package drain

import "testing"

func TestAuditTellsEveryMessagesFate(t *testing.T) {
	for name, c := range map[string]struct {
		sent   int
		failed []uint64
		open   []uint64
		got    []uint64
		want   Audit // without examples
	}{
		"nothing":          {want: Audit{}},
		"all":              {sent: 3, got: []uint64{0, 1, 2}, want: Audit{Sent: 3, Delivered: 3}},
		"the last is lost": {sent: 3, got: []uint64{0, 1}, want: Audit{Sent: 3, Delivered: 2, Lost: 1}},
		"one is lost":      {sent: 3, got: []uint64{0, 2}, want: Audit{Sent: 3, Delivered: 2, Lost: 1}},
		"repeated":         {sent: 2, got: []uint64{0, 1, 0}, want: Audit{Sent: 2, Delivered: 3, Repeated: 1}},
		"one repeated, one lost": {
			sent: 3, got: []uint64{0, 1, 1}, want: Audit{Sent: 3, Delivered: 3, Repeated: 1, Lost: 1},
		},
		"out of order":   {sent: 3, got: []uint64{0, 2, 1}, want: Audit{Sent: 3, Delivered: 3, Disordered: 1}},
		"failed":         {sent: 2, failed: []uint64{0}, got: []uint64{1}, want: Audit{Sent: 2, Delivered: 1, Failed: 1}},
		"failed, came":   {sent: 1, failed: []uint64{0}, got: []uint64{0}, want: Audit{Sent: 1, Delivered: 1, Failed: 1, Contradicted: 1}},
		"not answered":   {sent: 2, open: []uint64{1}, got: []uint64{0}, want: Audit{Sent: 2, Delivered: 1, Unanswered: 1}},
		"unanswered, in": {sent: 1, open: []uint64{0}, got: []uint64{0}, want: Audit{Sent: 1, Delivered: 1, Unanswered: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			var s sending
			var r receiving
			skip := map[uint64]bool{}
			for _, n := range c.open {
				skip[n] = true
			}
			for range c.sent {
				s.begin()
			}
			for n := range s.next {
				if !skip[n] {
					s.answer(n, true, "")
				}
			}
			for _, n := range c.failed {
				s.answer(n, false, "no")
			}
			for _, n := range c.got {
				r.got(n)
			}
			got := audit("a → b", &s, &r)
			clean := c.want.Lost+c.want.Repeated+c.want.Disordered+c.want.Contradicted+c.want.Failed+c.want.Unanswered == 0
			if (len(got.Examples) == 0) != clean {
				t.Errorf("examples: %q", got.Examples)
			}
			got.Examples = nil
			var sum Audit
			sum.add(got)
			if sum.Sent != c.want.Sent || sum.Delivered != c.want.Delivered || sum.Lost != c.want.Lost || sum.Repeated != c.want.Repeated ||
				sum.Disordered != c.want.Disordered || sum.Contradicted != c.want.Contradicted || sum.Failed != c.want.Failed || sum.Unanswered != c.want.Unanswered {
				t.Errorf("%+v, want %+v", sum, c.want)
			}
		})
	}
}

func TestALaterAnswerMayBeSENT(t *testing.T) {
	var s sending
	var r receiving
	n := s.begin()
	s.answer(n, false, "no answer in time")
	s.answer(n, true, "duplicate")
	r.got(n)
	if a := audit("a → b", &s, &r); a.Failed+a.Contradicted+a.Lost != 0 {
		t.Errorf("%+v", a)
	}
}
