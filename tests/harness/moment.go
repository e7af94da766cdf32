package harness

import "time"

// Moment is a time from now at which something is to happen.
type Moment struct {
	c     *Cluster
	after time.Duration
}

// At schedules what is done to the cluster; the test goes on at once and does
// not end before it has happened.
func (c *Cluster) At(after time.Duration) Moment { return Moment{c, after} }

// Do runs f then.
func (m Moment) Do(f func()) {
	m.c.later.Go(func() {
		time.Sleep(m.after) // the script's own time, in a real cluster
		f()
	})
}

// Kill, Stop, Pause, Resume and Start do so to a process then.
func (m Moment) Kill(name string)   { m.Do(m.c.Process(name).Kill) }
func (m Moment) Stop(name string)   { m.Do(func() { m.c.Process(name).Stop() }) }
func (m Moment) Pause(name string)  { m.Do(m.c.Process(name).Pause) }
func (m Moment) Resume(name string) { m.Do(m.c.Process(name).Resume) }
func (m Moment) Start(name string)  { m.Do(m.c.Process(name).Start) }

// Cut and Heal do so to all links of a process, and to all links, then.
func (m Moment) Cut(name string) { m.Do(func() { m.c.Net.Isolate(name, Condition{Cut: true}) }) }
func (m Moment) Heal()           { m.Do(m.c.Net.Heal) }

// Await waits for what was scheduled.
func (c *Cluster) Await() { c.later.Wait() }
