package testkit

import "testing"

func TestAKilledKafkaComesBack(t *testing.T) {
	s := StartKafka(t, KafkaOptions{})
	s.Kill()
	if err := s.answers(); err == nil {
		t.Fatal("a dead broker answered")
	}
	s.Restart(t)
	s.Pause(t)
	s.Resume(t)
	s.Stop(t)
	if s.CPU() <= 0 {
		t.Error("it used no processor")
	}
}
