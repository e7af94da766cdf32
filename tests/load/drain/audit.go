package drain

import "fmt"

// Audit adds up what became of messages. All but Sent and Delivered must be 0.
type Audit struct {
	Sent      int `json:"sent"`
	Delivered int `json:"delivered"`
	// Lost were answered SENT and never came, Repeated came again, Disordered came
	// after a later one.
	Lost       int `json:"lost"`
	Repeated   int `json:"repeated"`
	Disordered int `json:"disordered"`
	// Contradicted were answered FAILED and came all the same.
	Contradicted int `json:"contradicted"`
	Failed       int `json:"failed"`
	Unanswered   int `json:"unanswered"`
	// Examples are some of what is wrong, in words.
	Examples []string `json:"examples,omitempty"`
}

const maxExamples = 10

func (a *Audit) example(format string, args ...any) {
	if len(a.Examples) < maxExamples {
		a.Examples = append(a.Examples, fmt.Sprintf(format, args...))
	}
}

// add counts what o has counted as well.
func (a *Audit) add(o Audit) {
	a.Sent += o.Sent
	a.Delivered += o.Delivered
	a.Lost += o.Lost
	a.Repeated += o.Repeated
	a.Disordered += o.Disordered
	a.Contradicted += o.Contradicted
	a.Failed += o.Failed
	a.Unanswered += o.Unanswered
	for _, e := range o.Examples {
		a.example("%s", e)
	}
}

// sending is a sender's side of the messages from one device to another, numbered
// from 0 on.
type sending struct {
	next uint64
	// open are not answered yet; failed were answered FAILED, or given up on, with
	// the reason.
	open   map[uint64]struct{}
	failed map[uint64]string
}

func (s *sending) begin() uint64 {
	if s.open == nil {
		s.open = map[uint64]struct{}{}
	}
	n := s.next
	s.next++
	s.open[n] = struct{}{}
	return n
}

// answer takes the first answer; what a repeat is answered changes nothing, but
// that it may be SENT after all.
func (s *sending) answer(n uint64, sent bool, reason string) {
	delete(s.open, n)
	switch {
	case sent:
		delete(s.failed, n)
	case s.failed == nil:
		s.failed = map[uint64]string{n: reason}
	default:
		s.failed[n] = reason
	}
}

// receiving is the recipient's side.
type receiving struct {
	next    uint64
	missing map[uint64]struct{} // below next
	total   int

	repeated, disordered int
}

func (r *receiving) got(n uint64) {
	r.total++
	if n >= r.next {
		for ; r.next < n; r.next++ {
			if r.missing == nil {
				r.missing = map[uint64]struct{}{}
			}
			r.missing[r.next] = struct{}{}
		}
		r.next++
		return
	}
	if _, ok := r.missing[n]; ok {
		delete(r.missing, n)
		r.disordered++
		return
	}
	r.repeated++
}

func (r *receiving) has(n uint64) bool {
	_, missing := r.missing[n]
	return n < r.next && !missing
}

// audit compares both sides. who is for examples.
func audit(who string, s *sending, r *receiving) Audit {
	a := Audit{
		Sent: int(s.next), Delivered: r.total, Repeated: r.repeated, Disordered: r.disordered,
		Failed: len(s.failed), Unanswered: len(s.open),
	}
	if a.Repeated > 0 || a.Disordered > 0 {
		a.example("%s: %d repeated, %d out of order", who, a.Repeated, a.Disordered)
	}
	for n := range s.next {
		_, open := s.open[n]
		reason, failed := s.failed[n]
		switch has := r.has(n); {
		case open:
			a.example("%s: message %d was never answered, came: %v", who, n, has)
		case failed && has:
			a.Contradicted++
			a.example("%s: message %d failed (%s), and came", who, n, reason)
		case failed:
			a.example("%s: message %d failed: %s", who, n, reason)
		case !has:
			a.Lost++
			a.example("%s: message %d was SENT and never came", who, n)
		}
	}
	return a
}
