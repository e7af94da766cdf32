package harness

import "sync"

// Sending is a message being written.
type Sending struct {
	d    *Device
	body []byte
	id   string

	done chan struct{} // closed with the first answer
	once sync.Once
	got  Answer
}

// Sends begins a message; To or ToGroup sends it and wants SENT.
func (d *Device) Sends(body string) *Sending {
	return &Sending{d: d, body: []byte(body), done: make(chan struct{})}
}

// As gives the message an id (SDK).
func (s *Sending) As(id string) *Sending { s.id = id; return s }

// To sends to a user and wants SENT.
func (s *Sending) To(user string) Answer {
	s.d.t.Helper()
	return s.Submit(Outgoing{To: user}).wantSent()
}

// ToGroup sends to a group and wants SENT.
func (s *Sending) ToGroup(group string) Answer {
	s.d.t.Helper()
	return s.Submit(Outgoing{Group: group}).wantSent()
}

// FailsTo sends to a user and wants FAILED with a reason.
func (s *Sending) FailsTo(user, reason string) {
	s.d.t.Helper()
	s.Submit(Outgoing{To: user}).wantFailed(reason)
}

// FailsToGroup sends to a group and wants FAILED with a reason.
func (s *Sending) FailsToGroup(group, reason string) {
	s.d.t.Helper()
	s.Submit(Outgoing{Group: group}).wantFailed(reason)
}

// Submit sends without waiting; Answer waits.
func (s *Sending) Submit(to Outgoing) *Sending {
	s.d.t.Helper()
	to.ID, to.Body = s.id, s.body
	e := s.d.endpoint()
	if e == nil || !e.Submit(to, s.answered) {
		s.d.t.Errorf("%s has left and cannot send", s.d)
		s.answered(Answer{Err: ErrLeft})
	}
	return s
}

func (s *Sending) answered(a Answer) {
	s.once.Do(func() {
		s.got = a
		close(s.done)
	})
}

// Answer waits for the outcome.
func (s *Sending) Answer() Answer {
	<-s.done // bounded by the endpoint
	return s.got
}

func (s *Sending) wantSent() Answer {
	s.d.t.Helper()
	a := s.Answer()
	if !a.Sent {
		s.d.t.Errorf("%s: %q was answered %+v, want SENT", s.d, excerpt(string(s.body), 40), a)
	}
	return a
}

func (s *Sending) wantFailed(reason string) {
	s.d.t.Helper()
	if a := s.Answer(); a.Sent || a.Err != nil || a.Reason != reason {
		s.d.t.Errorf("%s: %q was answered %+v, want FAILED %s", s.d, excerpt(string(s.body), 40), a, reason)
	}
}
